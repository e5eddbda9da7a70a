"""A vector per instruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from provla.core.checks import Width
from provla.core.device import send
from provla.core.types import Tokens
from provla.text.parts import Spelled


class TaskEmbedding(nn.Module):
    """One learned vector per training instruction; knows nothing of language. `ValueError` for an unknown
    instruction.
    """

    def __init__(self, instructions: Sequence[str], width: Width) -> None:
        super().__init__()
        self.width = width
        self._row = {text: i for i, text in enumerate(instructions)}
        self.table = nn.Embedding(len(self._row), width)
        self._rows = Spelled(self._spell)

    def forward(self, instructions: list[str]) -> Tokens:
        return Tokens.full(self.table(self._rows(instructions, self.table.weight.device)).unsqueeze(1))

    def _spell(self, sentences: list[str], device: torch.device) -> Tensor:
        unknown = [text for text in sentences if text not in self._row]
        if unknown:
            raise ValueError(
                f"text=task_embedding does not know the instruction {unknown[0]!r}; it was trained on: "
                f"{', '.join(map(repr, self._row))}. A text encoder such as text=qwen_tiny reads any sentence."
            )
        return send(torch.tensor([self._row[text] for text in sentences]), device)
