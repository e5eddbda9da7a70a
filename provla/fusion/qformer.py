"""q' = SA([q; T; s]); q'' = CA(q', V)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class QFormer(nn.Module):
    """Learned queries that read the instruction, then the image (BLIP-2, Li et al. 2023, arXiv:2301.12597). The context
    is the queries.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        state_size: int,
        width: Width,
        num_queries: Width,
        depth: Depth,
        num_heads: Width,
        hidden: Width | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = Modalities(vision_width, text_width, state_size, width)
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.02)
        self.self_ = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.cross = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        seen, said, felt = self.enter(vision, text, state)
        queries = Tokens.full(self.queries.expand(len(state), -1, -1))
        count = queries.features.shape[1]
        joint = side_by_side(queries, said, felt)
        x = joint.features
        for self_, cross, mlp in zip(self.self_, self.cross, self.mlps, strict=True):
            x = x + self_(x, x, joint.mask)
            q = x[:, :count] + cross(x[:, :count], seen.features, seen.mask)
            x = torch.cat([q, x[:, count:]], 1)
            x = x + mlp(x)
        return Tokens.full(x[:, :count])
