"""h = MLP([mean V; mean T; s])"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Width
from provla.core.types import Tokens


class ConcatMLP(nn.Module):
    """Late fusion: the pooled modalities side by side, as in Diffusion Policy's global conditioning (Chi et al. 2023,
    arXiv:2303.04137).
    """

    vector = True

    def __init__(self, vision_width: int, text_width: int, state_size: int, width: Width, hidden: Width) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(vision_width)  # the mean of many tokens is small beside the state
        self.mlp = nn.Sequential(
            nn.Linear(vision_width + text_width + state_size, hidden), nn.Mish(), nn.Linear(hidden, width)
        )

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        context = self.mlp(torch.cat([self.norm(vision.mean()), text.mean(), state.flatten(1)], -1))  # (B, D)
        return Tokens.full(context.unsqueeze(1))
