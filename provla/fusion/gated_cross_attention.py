"""x += tanh(a) CA(x, V); x += tanh(b) FF(x)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class GatedCrossAttention(nn.Module):
    """Text and state tokens look at the image through gates that start closed (Flamingo, Alayrac et al. 2022,
    arXiv:2204.14198).

    With gates at 0 the context is text and state as they came in: the identity at the start.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        state_size: int,
        width: Width,
        depth: Depth,
        num_heads: Width,
        hidden: Width | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = Modalities(vision_width, text_width, state_size, width)
        self.cross = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(depth))
        self.gates = nn.Parameter(torch.zeros(depth, 2))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        seen, said, felt = self.enter(vision, text, state)
        words = side_by_side(said, felt)
        x = words.features
        for cross, mlp, gate in zip(self.cross, self.mlps, self.gates.tanh(), strict=True):
            x = x + gate[0] * cross(x, seen.features, seen.mask)
            x = x + gate[1] * mlp(x)
        return Tokens(x, words.mask)
