"""L' = SA(CA(L, [V; T; s]))"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class Perceiver(nn.Module):
    """Learned latents attend to all tokens of all modalities, then to each other (Jaegle et al. 2021,
    arXiv:2103.03206).

    The context is the latents, (B,num_latents,width). state_hidden: width of an MLP over the state; null: one linear
    layer.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        state_size: int,
        width: Width,
        num_latents: Width,
        depth: Depth,
        num_heads: Width,
        state_hidden: Width | None = None,
        hidden: Width | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = Modalities(vision_width, text_width, state_size, width, state_hidden)
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.cross = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.self_ = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        inputs = side_by_side(*self.enter(vision, text, state))
        latents = self.latents.expand(len(state), -1, -1)
        for cross, self_, mlp in zip(self.cross, self.self_, self.mlps, strict=True):
            latents = latents + cross(latents, inputs.features, inputs.mask)
            latents = latents + self_(latents, latents)
            latents = latents + mlp(latents)
        return Tokens.full(latents)
