"""A small convolutional network, from scratch."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from provla.core.cameras import Images, ImageSize, count, distinct
from provla.core.checks import Channels, Width
from provla.core.types import Tokens
from provla.vision.parts import Pool, Tokenizer2d, encoded, seen_by


class ConvSmall(nn.Module):
    """Convolutions with GroupNorm (Wu & He 2018, arXiv:1803.08494), made for 64×64 to 128×128 pixels and two CPU cores.

    Each stage but the last halves the resolution; the last keeps it.
    """

    many_sizes = True

    def __init__(
        self,
        num_images: int,
        image_size: ImageSize,
        width: Width,
        channels: Annotated[list[Channels], MinLen(1)],
        pool: Pool,
        num_keypoints: Width,
    ) -> None:
        super().__init__()
        for size in distinct(image_size):
            if min(size) < 2 ** len(channels):
                raise ValueError(f"vision.channels={channels} halves images of {size} too often")
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

    def forward(self, images: Images) -> Tokens:
        return seen_by(self.view, encoded(images, self._encode), count(images))

    def _encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,N,D)."""
        found: Tensor = self.tokens(self.trunk(pictures.to(self.view.dtype) / 127.5 - 1))
        return found
