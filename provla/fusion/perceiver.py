"""L' = SA(CA(L, [V; T; s]))"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from provla.types import Tokens


class Attention(nn.Module):
    """Pre-norm multi-head attention with a residual; queries (B,Q,D), keys and values (B,N,D), mask (B,N) of the keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(self.norm_q(queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, Q, d)
        k, v = self.kv(self.norm_kv(keys)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d)
        found = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        attended: Tensor = queries + self.out(found.transpose(1, 2).flatten(2))
        return attended


class Perceiver(nn.Module):
    """Learned latents attend to all tokens of all modalities, then to each other (Jaegle et al. 2021, arXiv:2103.03206).

    The context is the latents, (B,num_latents,width). state_hidden: width of an MLP over the state; null: one linear layer.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        state_size: int,
        width: int,
        num_latents: int,
        depth: int,
        num_heads: int,
        state_hidden: int | None = None,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"fusion.width={width} is not divisible by fusion.num_heads={num_heads}")
        self.width = width
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.vision, self.text = nn.Linear(vision_width, width), nn.Linear(text_width, width)
        self.state: nn.Module = nn.Linear(state_size, width)
        if state_hidden is not None:
            self.state = nn.Sequential(nn.Linear(state_size, state_hidden), nn.LayerNorm(state_hidden), nn.Mish(), nn.Linear(state_hidden, width))
        self.modality = nn.Parameter(torch.randn(3, width) * 0.02)
        self.cross = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.self_ = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        parts = [self.vision(vision.features), self.text(text.features), self.state(state.flatten(1)).unsqueeze(1)]
        inputs = torch.cat([part + kind for part, kind in zip(parts, self.modality, strict=True)], 1)  # (B, N, D)
        mask = torch.cat([vision.mask, text.mask, vision.mask.new_ones(len(state), 1)], 1)
        latents = self.latents.expand(len(state), -1, -1)
        for cross, self_, mlp in zip(self.cross, self.self_, self.mlps, strict=True):
            latents = self_(cross(latents, inputs, mask), latents)
            latents = latents + mlp(latents)
        return Tokens.full(latents)
