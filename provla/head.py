"""Heads: the network that predicts from (noisy actions (B,H,A), time (B,), context Tokens) → (B,H,A)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from provla.checks import Channels, Depth, Even, Width
from provla.types import Tokens

Pooling = Literal["mean", "attention", "first"]
Conditioning = Literal["pooled", "tokens"]


class TimeEmbedding(nn.Module):
    """Sinusoidal features (Vaswani et al. 2017, arXiv:1706.03762) of the diffusion step, then a small MLP: (B,) → (B,width)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1)), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        found: Tensor = self.mlp(waves)
        return found


class Pool(nn.Module):
    """Context Tokens (B,K,D) → one vector (B,D): mean, first, or attention (softmax of a learned score per token)."""

    def __init__(self, kind: Pooling, width: int) -> None:
        super().__init__()
        self._kind = kind
        self.score = nn.Linear(width, 1) if kind == "attention" else None

    def forward(self, context: Tokens) -> Tensor:
        if self._kind == "first":
            return context.features[:, 0]
        if self.score is None:
            return context.mean()
        scores = self.score(context.features).squeeze(-1).masked_fill(~context.mask, float("-inf"))  # (B, K)
        weights = scores.softmax(-1).unsqueeze(-1)
        pooled: Tensor = (weights * torch.where(context.mask.unsqueeze(-1), context.features, 0)).sum(1)
        return pooled


def check_conditioning(conditioning: str, can: tuple[str, ...], head: str) -> None:
    """`ValueError` for a way of reading the context that this head does not have."""
    if conditioning not in can:
        other = "; head=dit reads tokens" if conditioning == "tokens" else ""
        raise ValueError(f"head.conditioning={conditioning!r}: {head} reads the context {' or '.join(can)}{other}")


class ResidualBlock1d(nn.Module):
    """Two convolutions over time with GroupNorm and Mish; the condition scales and shifts what is between them (FiLM)."""

    def __init__(self, before: int, after: int, condition: int, kernel_size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(before, after, kernel_size, padding=kernel_size // 2), nn.GroupNorm(8, after), nn.Mish())
        self.second = nn.Sequential(nn.Conv1d(after, after, kernel_size, padding=kernel_size // 2), nn.GroupNorm(8, after), nn.Mish())
        self.condition = nn.Linear(condition, 2 * after)
        self.skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition).unsqueeze(-1).chunk(2, 1)  # (B, after, 1)
        found: Tensor = self.second((1 + scale) * self.first(x) + shift) + self.skip(x)
        return found


class UNet1d(nn.Module):
    """FiLM-conditioned 1-D U-Net over the action chunk (Diffusion Policy, Chi et al. 2023, arXiv:2303.04137).

    Time and the pooled context condition every block (`pooling`: see `Pool`). The horizon is padded inside to what the
    levels need.
    """

    _concat = False

    def __init__(
        self,
        action_size: int,
        horizon: int,
        context_width: int,
        channels: Annotated[list[Channels], MinLen(1)],
        kernel_size: Depth,
        time_width: Even,
        conditioning: Conditioning = "pooled",
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        check_conditioning(conditioning, ("pooled",), "a U-Net")
        if kernel_size % 2 == 0:
            raise ValueError(f"head.kernel_size={kernel_size}: must be odd")
        self.time = TimeEmbedding(time_width)
        self.pool = Pool(pooling, context_width)
        self._multiple = 2 ** (len(channels) - 1)
        inputs = action_size + (context_width if self._concat else 0)
        condition = time_width + (0 if self._concat else context_width)

        def pair(before: int, after: int) -> nn.ModuleList:
            return nn.ModuleList([ResidualBlock1d(before, after, condition, kernel_size), ResidualBlock1d(after, after, condition, kernel_size)])

        self.down = nn.ModuleList(pair(a, b) for a, b in pairwise([inputs, *channels]))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, 2, 1) for c in channels[:-1])
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in pairwise(channels[::-1]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, 2, 1) for c in channels[-2::-1])
        last = channels[0]
        self.out = nn.Sequential(
            nn.Conv1d(last, last, kernel_size, padding=kernel_size // 2), nn.GroupNorm(8, last), nn.Mish(), nn.Conv1d(last, action_size, 1)
        )

    def forward(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor:
        horizon, pooled = actions.shape[1], self.pool(context)
        if self._concat:
            actions = torch.cat([actions, pooled.unsqueeze(1).expand(-1, horizon, -1).to(actions.dtype)], -1)  # (B, H, A + context)
            condition = F.mish(self.time(time))
        else:
            condition = F.mish(torch.cat([self.time(time), pooled], -1))  # (B, time + context)
        x = F.pad(actions.transpose(1, 2), (0, -horizon % self._multiple))  # (B, A, H')
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.middle:
            x = block(x, condition)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            x = torch.cat([x, skips.pop()], 1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            x = grow(x)
        found: Tensor = self.out(x).transpose(1, 2)[:, :horizon]
        return found


class UNet1dConcat(UNet1d):
    """The same U-Net that sees the context as extra channels of its input; time still conditions every block.

    (diffusers' UNet1DModel with plain blocks, often used this way, ignores time altogether.)
    """

    _concat = True


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
        parts = self.modulation(F.silu(condition)).unsqueeze(1).chunk(9 if self.cross is not None else 6, -1)  # (B, 1, D) each
        found = (1 + parts[0]) * self.norm1(x) + parts[1]
        x = x + parts[2] * self.attention(found, found, found, need_weights=False)[0]
        if self.cross is not None and self.norm_cross is not None and context is not None:
            found = (1 + parts[6]) * self.norm_cross(x) + parts[7]
            x = x + parts[8] * self.cross(found, context.features, context.features, key_padding_mask=~context.mask, need_weights=False)[0]
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


class MLP(nn.Module):
    """Residual MLP over the flattened chunk, time and the pooled context (as in "Much Ado About Noising", arXiv:2512.01809)."""

    def __init__(
        self,
        action_size: int,
        horizon: int,
        context_width: int,
        width: Width,
        depth: Depth,
        time_width: Even,
        conditioning: Conditioning = "pooled",
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        check_conditioning(conditioning, ("pooled",), "an MLP")
        self.time = TimeEmbedding(time_width)
        self.pool = Pool(pooling, context_width)
        self.enter = nn.Linear(horizon * action_size + time_width + context_width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon * action_size))

    def forward(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor:
        x = self.enter(torch.cat([actions.flatten(1), self.time(time), self.pool(context)], -1))
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.out(x).view_as(actions)
        return found
