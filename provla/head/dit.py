"""A transformer over the chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from provla.core.checks import Depth, Even, Width
from provla.core.types import Tokens
from provla.head.parts import Conditioning, Pool, Pooling, TimeEmbedding, check_conditioning


class DiTBlock(nn.Module):
    """Self-attention and a feed-forward network, each scaled, shifted and gated by the condition (AdaLN-Zero); between
    them, attention to the context tokens, gated too, where there are any. The identity at the start."""

    def __init__(self, width: int, num_heads: int, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.cross = nn.MultiheadAttention(width, num_heads, batch_first=True) if attends else None
        self.norm_cross = nn.LayerNorm(width, elementwise_affine=False) if attends else None
        self.modulation = nn.Linear(width, (9 if attends else 6) * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, context: Tokens | None) -> Tensor:
        # (B, 1, D) each.
        parts = self.modulation(F.silu(condition)).unsqueeze(1).chunk(9 if self.cross is not None else 6, -1)
        found = (1 + parts[0]) * self.norm1(x) + parts[1]
        x = x + parts[2] * self.attention(found, found, found, need_weights=False)[0]
        if self.cross is not None and self.norm_cross is not None and context is not None:
            found = (1 + parts[6]) * self.norm_cross(x) + parts[7]
            x = (
                x
                + parts[8]
                * self.cross(
                    found, context.features, context.features, key_padding_mask=~context.mask, need_weights=False
                )[0]
            )
        found = (1 + parts[3]) * self.norm2(x) + parts[4]
        changed: Tensor = x + parts[5] * self.mlp(found)
        return changed


class DiT(nn.Module):
    """Transformer over the action chunk, a token per step (DiT, Peebles & Xie 2022, arXiv:2212.09748).

    conditioning: pooled: time and the pooled context modulate every block (AdaLN-Zero); tokens: time does, and every
    block attends to the context tokens.
    """

    def __init__(
        self,
        action_size: int,
        horizon: int,
        context_width: int,
        width: Even,
        depth: Depth,
        num_heads: Width,
        conditioning: Conditioning = "pooled",
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        check_conditioning(conditioning, ("pooled", "tokens"), "dit")
        if width % num_heads:
            raise ValueError(f"head.width={width} is not divisible by head.num_heads={num_heads}")
        tokens = conditioning == "tokens"
        self.time = TimeEmbedding(width)
        self.enter = nn.Linear(action_size, width)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.context = nn.Linear(context_width, width)
        self.pool = None if tokens else Pool(pooling, context_width)
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, tokens) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, action_size)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor:
        condition, seen = self.time(time), None
        if self.pool is None:
            seen = Tokens(self.context(context.features), context.mask)
        else:
            condition = condition + self.context(self.pool(context))
        x = self.enter(actions) + self.position[: actions.shape[1]]
        for block in self.blocks:
            x = block(x, condition, seen)
        scale, shift = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, -1)
        found: Tensor = self.out((1 + scale) * self.norm(x) + shift)
        return found
