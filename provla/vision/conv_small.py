"""A small convolutional network, from scratch."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from provla.core.checks import Channels, Width
from provla.core.types import Tokens
from provla.vision.parts import Pool, Tokenizer2d, flatten


class ConvSmall(nn.Module):
    """Convolutions with GroupNorm (Wu & He 2018, arXiv:1803.08494), made for 64×64 to 128×128 pixels and two CPU cores.

    Each stage but the last halves the resolution; the last keeps it.
    """

    def __init__(
        self,
        num_images: int,
        image_size: tuple[int, int],
        width: Width,
        channels: Annotated[list[Channels], MinLen(1)],
        pool: Pool,
        num_keypoints: Width,
    ) -> None:
        super().__init__()
        if min(image_size) < 2 ** len(channels):
            raise ValueError(f"vision.channels={channels} halves images of {image_size} too often")
        self.width = width
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([3, *channels], channels, strict=False)):
            last = i == len(channels) - 1
            kernel, stride = (5, 2) if i == 0 else (3, 1 if last else 2)
            layers += [
                nn.Conv2d(before, after, kernel, stride, kernel // 2),
                nn.GroupNorm(8, after),
                nn.ReLU(inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.tokens = Tokenizer2d(channels[-1], width, pool, num_keypoints)
        self.view = nn.Parameter(torch.zeros(num_images, 1, width))

    def forward(self, images: Tensor) -> Tokens:
        pixels = flatten(images).to(self.view.dtype) / 127.5 - 1
        features = self.tokens(self.trunk(pixels))  # (B·T·C, N, D)
        views = features.unflatten(0, (len(images), -1)) + self.view  # (B, T·C, N, D)
        return Tokens.full(views.flatten(1, 2))
