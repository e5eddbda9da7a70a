"""The chunk as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Even, Width
from provla.core.types import Tokens
from provla.head.parts import Conditioning, Pool, Pooling, TimeEmbedding, check_conditioning


class MLP(nn.Module):
    """Residual MLP over the flattened chunk, time and the pooled context (as in "Much Ado About Noising",
    arXiv:2512.01809).
    """

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
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon * action_size))

    def forward(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor:
        x = self.enter(torch.cat([actions.flatten(1), self.time(time), self.pool(context)], -1))
        for block in self.blocks:
            x = x + block(x)
        found: Tensor = self.out(x).view_as(actions)
        return found
