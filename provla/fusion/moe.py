"""h = Σ p_i(t, s) E_i(V)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Modalities, side_by_side


class MoE(nn.Module):
    """Soft experts on every vision token, weighted by instruction and state (Jacobs et al. 1991; as MoDE routes by
    noise level, arXiv:2412.12953).

    The context is the vision tokens the experts made, and the state.
    """

    def __init__(self, vision_width: int, text_width: int, state_size: int, width: Width, num_experts: Depth) -> None:
        super().__init__()
        self.width = width
        self.enter = Modalities(vision_width, text_width, state_size, width)
        self.gate = nn.Linear(2 * width, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))
            for _ in range(num_experts)
        )

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        seen, said, felt = self.enter(vision, text, state)
        weights = self.gate(torch.cat([said.mean(), felt.features[:, 0]], -1)).softmax(-1)  # (B, E)
        made = torch.stack([expert(seen.features) for expert in self.experts], 1)  # (B, E, N, D)
        return side_by_side(Tokens(torch.einsum("be,bend->bnd", weights, made), seen.mask), felt)
