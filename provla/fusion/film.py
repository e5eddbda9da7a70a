"""F' = (1 + γ(t)) F + β(t)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens


class FiLM(nn.Module):
    """The instruction scales and shifts every vision token (Perez et al. 2018, arXiv:1709.07871); the identity at the
    start.

    `depth` residual blocks, each modulated anew; then the mean of the tokens meets the state.
    """

    vector = True

    def __init__(self, vision_width: int, text_width: int, state_size: int, width: Width, depth: Depth) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(vision_width, width)
        self.modulations = nn.ModuleList(nn.Linear(text_width, 2 * width) for _ in range(depth))
        for modulation in self.modulations:
            nn.init.zeros_(modulation.weight)  # type: ignore[arg-type]
            nn.init.zeros_(modulation.bias)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Mish()) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)  # the mean of many tokens is small beside the state
        self.leave = nn.Sequential(nn.Linear(width + state_size, width), nn.Mish(), nn.Linear(width, width))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        features, instruction = self.enter(vision.features), text.mean()
        for modulation, block in zip(self.modulations, self.blocks, strict=True):
            gamma, beta = modulation(instruction).unsqueeze(1).chunk(2, -1)  # (B, 1, D)
            features = features + block((1 + gamma) * features + beta)
        pooled = Tokens(features, vision.mask).mean()
        return Tokens.full(self.leave(torch.cat([self.norm(pooled), state.flatten(1)], -1)).unsqueeze(1))
