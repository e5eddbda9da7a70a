"""Any text model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from provla.backbone.tower import DType, Source, Tower
from provla.core.checks import Name, Width
from provla.core.hub import from_pretrained, library
from provla.core.types import Tokens


class TextTower(Tower):
    """A language model's or sentence encoder's transformer, without any head; see `Source` for which.

    pool: tokens, mean (of the present tokens, what sentence encoders mean by an embedding), last (the last present
    token: CLIP's end of text, or what a causal model has read). pad_token: one of its tokens, where the tokenizer names
    none. Weights that come from nowhere are read with ByT5's byte tokenizer (Xue et al. 2022, arXiv:2105.13626), which
    needs no files.
    """

    def __init__(
        self,
        instructions: Sequence[str],
        architecture: Name,
        config: Mapping[str, Any],
        max_length: Width,
        name: Name | None = None,
        revision: Name | None = None,
        pretrained: bool = True,
        pool: Literal["tokens", "mean", "last"] = "tokens",
        layer: int | None = None,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        pad_token: Name | None = None,
        files: Name | None = None,
    ) -> None:
        source = Source(
            architecture, name, revision, config, pretrained, layer, dtype, gradient_checkpointing, files, "text"
        )
        tokenizer = _tokenizer(source, pad_token)
        if source.from_scratch:
            source.config = {**config, "vocab_size": len(tokenizer)}
        model = source.load()
        super().__init__(source, model, tokenizer)
        self.width: int = model.config.hidden_size
        self._max_length = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
        self._pool = pool

    def forward(self, instructions: list[str]) -> Tokens:
        words = self._processor(
            instructions, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        device = self.model.get_input_embeddings().weight.device
        mask: Tensor = words["attention_mask"].to(device)
        features = self.model(input_ids=words["input_ids"].to(device), attention_mask=mask).last_hidden_state.float()
        tokens = Tokens(features, mask.bool())
        if self._pool == "mean":
            return Tokens.full(tokens.mean().unsqueeze(1))
        if self._pool == "last":
            return Tokens.full(features[torch.arange(len(mask), device=device), mask.sum(1) - 1].unsqueeze(1))
        return tokens


def _tokenizer(source: Source, pad_token: str | None) -> Any:
    transformers = library()
    if source.files is not None:
        found = from_pretrained(transformers.AutoTokenizer, source.files, None, "text.files")
    elif source.loads:
        found = from_pretrained(transformers.AutoTokenizer, str(source.name), source.revision, "text.name")
    else:
        found = transformers.ByT5Tokenizer(extra_ids=0)
    if pad_token is not None:
        if pad_token not in found.get_vocab():
            raise ValueError(f"text.pad_token={pad_token!r} is no token of {source.name}")
        found.pad_token = pad_token
    if found.pad_token is None:
        hint = f", such as text.pad_token='{found.eos_token}'" if found.eos_token else ""
        raise ValueError(f"text.name={source.name!r}: its tokenizer has no padding token; name one of its tokens{hint}")
    found.padding_side = "right"
    return found
