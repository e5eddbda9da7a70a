"""No text at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from provla.core.types import Tokens


class NoText(nn.Module):
    """No token at all: the control that every claim about language needs."""

    width = 1
    device_marker: Tensor

    def __init__(self, instructions: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("device_marker", torch.zeros(()), persistent=False)

    def forward(self, instructions: list[str]) -> Tokens:
        return Tokens.full(self.device_marker.new_zeros(len(instructions), 0, 1))
