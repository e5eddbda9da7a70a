"""What heads share: the time as a vector, the context as one."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.core.types import Tokens

Pooling = Literal["mean", "attention", "first"]


Conditioning = Literal["pooled", "tokens"]


class TimeEmbedding(nn.Module):
    """Sinusoidal features (Vaswani et al. 2017, arXiv:1706.03762) of the diffusion step, then a small MLP: (B,) →
    (B,width).
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        found: Tensor = self.mlp(waves)
        return found


class Mish(nn.Module):
    """x · tanh(softplus(x)) (Misra 2019, arXiv:1908.08681). On a CPU torch's own takes three times as long in training:
    with n = eˣ(eˣ + 2) it is x · n / (n + 2), which one exponential gives, and its slope too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.dtype == torch.float32:
            found: Tensor = _Mish.apply(x)  # type: ignore[no-untyped-call]
            return found
        return nn.functional.mish(x)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        low = x.clamp(max=20.0)  # beyond, n / (n + 2) is 1, and its slope 0
        e = low.exp()
        n = (e + 2).mul_(e)
        rest = 2 / (n + 2)  # not 1 − n / (n + 2), of which nothing would be left
        ctx.save_for_backward(low, e, rest)
        return n.mul_(rest).mul_(0.5).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        low, e, rest = ctx.saved_tensors
        share = (e + 2).mul_(e).mul_(rest).mul_(0.5)
        slope = (e + 1).mul_(e).mul_(rest).mul_(rest)  # of the share
        found: Tensor = slope.mul_(low).add_(share).mul_(gradient)
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
