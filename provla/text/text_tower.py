"""Any text model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from provla.backbone.tower import DType, Source, Tower
from provla.core.checks import Name, Width
from provla.core.device import send
from provla.core.hub import from_pretrained
from provla.core.libraries import transformers_library
from provla.core.types import Tokens
from provla.text.parts import Spelled


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
        model = source.model()
        super().__init__(source, model, tokenizer)
        self.width: int = model.config.hidden_size
        self._max_length = min(max_length, getattr(model.config, "max_position_embeddings", max_length))
        self._pool = pool
        # Nobody reads on from here; what a cache is made of would come from the host at every call.
        takes = "use_cache" in inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if takes else {}
        self._spelled = Spelled(self._spell)

    def forward(self, instructions: list[str]) -> Tokens:
        model = self.ready()
        words = self._spelled(instructions, self.device)
        mask = words.mask
        with self._answering(words):
            features = model(input_ids=words.ids, attention_mask=mask, **self._options).last_hidden_state.float()
        tokens = Tokens(features, mask.bool())
        if self._pool == "mean":
            return Tokens.full(tokens.mean().unsqueeze(1))
        if self._pool == "last":
            return Tokens.full(features[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1].unsqueeze(1))
        return tokens

    def _spell(self, sentences: list[str], device: torch.device) -> _Words:
        made = self._processor(
            sentences, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        ids, mask = made["input_ids"], made["attention_mask"]
        return _Words(send(ids, device), send(mask, device), bool(mask.numpy().all()))

    def _answering(self, words: _Words) -> AbstractContextManager[Any]:
        compiled = self.model._compiled_call_impl is not None  # then nobody asks
        return nullcontext() if compiled else _Answering(words)


@dataclass(frozen=True)
class _Words:
    """ids and mask (N,L) int64; whole: no token is absent."""

    ids: Tensor
    mask: Tensor
    whole: bool


class _Answering(TorchFunctionMode):
    """transformers asks at every call whether all of its padding mask is there, and so waits for a GPU to have done all
    that it was told; here the tokenizer, which knew it before, answers.
    """

    def __init__(self, words: _Words) -> None:
        super().__init__()
        self._words = words

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all and not kwargs and len(args) == 1:
            asked: Tensor = args[0]
            if asked.dtype == torch.bool and asked.shape == self._words.mask.shape:
                return self._words.whole
        return func(*args, **(kwargs or {}))


def _tokenizer(source: Source, pad_token: str | None) -> Any:
    transformers = transformers_library()
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
