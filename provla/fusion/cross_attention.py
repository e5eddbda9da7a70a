"""T' = T + CA(T, V), V' = V + CA(V, T')"""

from __future__ import annotations

from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class CrossAttention(nn.Module):
    """Text attends to vision and vision to text, in turn (as RDT-1B alternates them, Liu et al. 2024,
    arXiv:2410.07864).

    The state stands beside the text. The context is all tokens.
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
        self.to_vision = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.to_text = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(2 * depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        seen, said, felt = self.enter(vision, text, state)
        words = side_by_side(said, felt)
        t, v = words.features, seen.features
        for i, (to_vision, to_text) in enumerate(zip(self.to_vision, self.to_text, strict=True)):
            t = t + to_vision(t, v, seen.mask)
            t = t + self.mlps[2 * i](t)
            v = v + to_text(v, t, words.mask)
            v = v + self.mlps[2 * i + 1](v)
        return side_by_side(Tokens(v, seen.mask), Tokens(t, words.mask))
