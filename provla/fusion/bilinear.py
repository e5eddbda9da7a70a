"""h = P (tanh(U v) ∘ tanh(W t))"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Width
from provla.core.types import Tokens


class Bilinear(nn.Module):
    """Low-rank bilinear pooling of vision and text (MLB, Kim et al. 2016, arXiv:1610.04325); the state joins the
    product.

    Without text there is no product to form: the text factor is then that of an empty sentence, its bias.
    """

    vector = True

    def __init__(self, vision_width: int, text_width: int, state_size: int, width: Width, rank: Width) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(vision_width)
        self.vision, self.text = nn.Linear(vision_width, rank), nn.Linear(text_width, rank)
        self.leave = nn.Sequential(nn.Linear(rank + state_size, 2 * width), nn.Mish(), nn.Linear(2 * width, width))

    def forward(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens:
        product = self.vision(self.norm(vision.mean())).tanh() * self.text(text.mean()).tanh()  # (B, rank)
        return Tokens.full(self.leave(torch.cat([product, state.flatten(1)], -1)).unsqueeze(1))
