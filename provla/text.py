"""Text encoders: B instructions → Tokens (B,N,D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from provla.hub import from_pretrained
from provla.types import Tokens


class NoText(nn.Module):
    """No token at all: the control that every claim about language needs."""

    pretrained = False
    width = 1
    device_marker: Tensor

    def __init__(self, instructions: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("device_marker", torch.zeros(()), persistent=False)

    def forward(self, instructions: list[str]) -> Tokens:
        return Tokens.full(self.device_marker.new_zeros(len(instructions), 0, 1))


class TaskEmbedding(nn.Module):
    """One learned vector per training instruction; knows nothing of language. `ValueError` for an unknown instruction."""

    pretrained = False

    def __init__(self, instructions: Sequence[str], width: int) -> None:
        super().__init__()
        self.width = width
        self._row = {text: i for i, text in enumerate(instructions)}
        self.table = nn.Embedding(len(self._row), width)

    def forward(self, instructions: list[str]) -> Tokens:
        unknown = [text for text in instructions if text not in self._row]
        if unknown:
            raise ValueError(
                f"text=task_embedding does not know the instruction {unknown[0]!r}; it was trained on: {', '.join(map(repr, self._row))}. "
                "A text encoder such as text=qwen_tiny reads any sentence."
            )
        rows = torch.tensor([self._row[text] for text in instructions], device=self.table.weight.device)
        return Tokens.full(self.table(rows).unsqueeze(1))


class Qwen(nn.Module):
    """Qwen2's transformer (Yang et al. 2024, arXiv:2407.10671) without the language-model head; tokens of the last layer.

    name: a Hub id or a local folder, with its own tokenizer; null builds `config` (transformers' Qwen2Config) with random
    weights and ByT5's byte tokenizer (Xue et al. 2022, arXiv:2105.13626), which needs no files.
    """

    def __init__(
        self, instructions: Sequence[str], max_length: int, name: str | None = None, revision: str | None = None, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2Config, Qwen2Model

        if (name is None) == (config is None):
            raise ValueError("text: give either name (a Hub id or a folder) or config (a Qwen2Config), not both or none")
        if name is not None:
            self.tower: Any = from_pretrained(Qwen2Model, name, revision, "text.name")
            self._tokenizer: Any = from_pretrained(AutoTokenizer, name, revision, "text.name")
        else:
            self._tokenizer = ByT5Tokenizer(extra_ids=0)
            self.tower = Qwen2Model(Qwen2Config(**config, vocab_size=len(self._tokenizer)))  # type: ignore[arg-type]
        self.pretrained = name is not None
        self.width: int = self.tower.config.hidden_size
        self._max_length = max_length

    def forward(self, instructions: list[str]) -> Tokens:
        words = self._tokenizer(instructions, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt")
        device = self.tower.get_input_embeddings().weight.device
        mask: Tensor = words["attention_mask"].to(device)
        found = self.tower(input_ids=words["input_ids"].to(device), attention_mask=mask, use_cache=False)
        return Tokens(found.last_hidden_state, mask.bool())
