"""What several fusions are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from provla.core.types import Tokens


class Attention(nn.Module):
    """What pre-norm multi-head attention adds to its queries (B,Q,D), from keys (B,N,D) with mask (B,N); nothing where
    no key is present.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"fusion.width={width} is not divisible by fusion.num_heads={num_heads}")
        self.num_heads = num_heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        if keys.shape[1] == 0:
            return torch.zeros_like(queries)
        q = self.q(self.norm_q(queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, Q, d)
        k, v = self.kv(self.norm_kv(keys)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d)
        found = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        added: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return added


class FeedForward(nn.Sequential):
    """What a transformer's pre-norm two-layer network adds. hidden: its width; None: 4 · width."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        hidden = hidden or 4 * width
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Modalities(nn.Module):
    """Vision tokens, text tokens and a state token (B,1,·) in one width, each with what says which modality it is.

    state_hidden: width of an MLP over the state; null: one linear layer.
    """

    def __init__(
        self, vision_width: int, text_width: int, state_size: int, width: int, state_hidden: int | None = None
    ) -> None:
        super().__init__()
        self.vision, self.text = nn.Linear(vision_width, width), nn.Linear(text_width, width)
        self.state: nn.Module = nn.Linear(state_size, width)
        if state_hidden is not None:
            self.state = nn.Sequential(
                nn.Linear(state_size, state_hidden),
                nn.LayerNorm(state_hidden),
                nn.Mish(),
                nn.Linear(state_hidden, width),
            )
        self.kind = nn.Parameter(torch.randn(3, width) * 0.02)

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> tuple[Tokens, Tokens, Tokens]:
        seen = Tokens(self.vision(vision.features) + self.kind[0], vision.mask)
        said = Tokens(self.text(text.features) + self.kind[1], text.mask)
        felt = Tokens.full(self.state(state.flatten(1)).unsqueeze(1) + self.kind[2])
        return seen, said, felt


def side_by_side(*parts: Tokens) -> Tokens:
    """Tokens one after the other, (B,ΣN,D)."""
    return Tokens(torch.cat([part.features for part in parts], 1), torch.cat([part.mask for part in parts], 1))
