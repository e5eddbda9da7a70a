"""Z = SA([V; T; s; r]), read out at r"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class JointAttention(nn.Module):
    """One transformer over all tokens with a learned read-out token, as in Octo (Ghosh et al. 2024, arXiv:2405.12213)
    and BAKU's trunk.

    The context is the read-out token.
    """

    vector = True

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
        self.read_out = nn.Parameter(torch.randn(1, width) * 0.02)
        self.self_ = nn.ModuleList(Attention(width, num_heads) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        tokens = side_by_side(*self.enter(vision, text, state), Tokens.full(self.read_out.expand(len(state), -1, -1)))
        x = tokens.features
        for self_, mlp in zip(self.self_, self.mlps, strict=True):
            x = x + self_(x, x, tokens.mask)
            x = x + mlp(x)
        return Tokens.full(x[:, -1:])
