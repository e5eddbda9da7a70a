"""h = MLP(Wv v + Wt t + Ws s)"""

from __future__ import annotations

from torch import Tensor, nn

from provla.core.checks import Width
from provla.core.types import Tokens


class Add(nn.Module):
    """The pooled modalities in one width, added (CLIPort, Shridhar et al. 2021, arXiv:2109.12098)."""

    vector = True

    def __init__(self, vision_width: int, text_width: int, state_size: int, width: Width) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(vision_width)  # the mean of many tokens is small beside the state
        self.vision, self.text, self.state = (
            nn.Linear(vision_width, width),
            nn.Linear(text_width, width),
            nn.Linear(state_size, width),
        )
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        total = self.vision(self.norm(vision.mean())) + self.text(text.mean()) + self.state(state.flatten(1))
        return Tokens.full(self.mlp(total).unsqueeze(1))
