"""[V; b] = SA([V; b]), [T; s; b'] = SA([T; s; b]), b = (b + b') / 2"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Width
from provla.core.types import Tokens
from provla.fusion.parts import Attention, FeedForward, Modalities, side_by_side


class Bottleneck(nn.Module):
    """Vision and text exchange through a few tokens only (MBT, Nagrani et al. 2021, arXiv:2107.00135).

    The state stands beside the text. The context is the bottleneck tokens.
    """

    def __init__(
        self,
        vision_width: int,
        text_width: int,
        state_size: int,
        width: Width,
        num_bottlenecks: Width,
        depth: Depth,
        num_heads: Width,
        hidden: Width | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = Modalities(vision_width, text_width, state_size, width)
        self.bottlenecks = nn.Parameter(torch.randn(num_bottlenecks, width) * 0.02)
        self.self_ = nn.ModuleList(Attention(width, num_heads) for _ in range(2 * depth))
        self.mlps = nn.ModuleList(FeedForward(width, hidden) for _ in range(2 * depth))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        seen, said, felt = self.enter(vision, text, state)
        streams = [seen, side_by_side(said, felt)]
        between = self.bottlenecks.expand(len(state), -1, -1)  # (B, b, D)
        layers = list(zip(self.self_, self.mlps, strict=True))
        for depth in range(len(layers) // 2):
            passed = []
            for i, (self_, mlp) in enumerate(layers[2 * depth : 2 * depth + 2]):
                joint = side_by_side(streams[i], Tokens.full(between))
                x = joint.features + self_(joint.features, joint.features, joint.mask)
                x = x + mlp(x)
                own = streams[i].features.shape[1]
                streams[i] = Tokens(x[:, :own], streams[i].mask)
                passed.append(x[:, own:])
            between = torch.stack(passed).mean(0)
        return Tokens.full(between)
