"""torchvision's ResNet-18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from provla.backbone.tower import DType, Source, Tower
from provla.core.cameras import Images, ImageSize, count, distinct, each
from provla.core.checks import Name, Width
from provla.core.types import Tokens
from provla.vision.parts import Pixels, Pool, Processor, Tokenizer2d, encoded, image_processor, seen_by


class ResNet18(Tower):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385), its feature map at 1/32 resolution as keypoints or cells.

    pretrained: false: random weights and GroupNorm instead of BatchNorm, as in Diffusion Policy (arXiv:2303.04137).
    true: ImageNet weights of `name`, BatchNorm with its stored statistics, as in ACT (arXiv:2304.13705).
    """

    many_sizes = True

    def __init__(
        self,
        num_images: int,
        image_size: ImageSize,
        width: Width,
        pool: Pool,
        num_keypoints: Width,
        name: Name | None,
        revision: Name | None,
        config: Mapping[str, Any],
        processor: Processor,
        pretrained: bool = False,
        dtype: DType = "float32",
        files: Name | None = None,
    ) -> None:
        source = Source(
            "ResNetModel",
            name if pretrained else None,
            revision,
            config,
            pretrained,
            None,
            dtype,
            False,
            files,
            "vision",
        )
        sizes = distinct(image_size)  # which pictures keep
        super().__init__(source, source.load(), image_processor(source, {**processor, "size": sizes[0][0]}))
        if not pretrained:
            for path, norm in list(self.model.named_modules()):
                if isinstance(norm, nn.BatchNorm2d):
                    self.model.set_submodule(path, nn.GroupNorm(norm.num_features // 16, norm.num_features))
        self.width = width
        self._pixels = Pixels(self._processor, sizes[0], sizes)
        self.tokens = Tokenizer2d(self.model.config.hidden_sizes[-1], width, pool, num_keypoints)
        self.view = nn.Parameter(torch.zeros(num_images, 1, width))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self.model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        return self

    def forward(self, images: Images) -> Tokens:
        return self.assemble(encoded(images, self.encode), count(images))

    def encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,F,h/32,w/32)."""
        maps: Tensor = self.model(pixel_values=self._pixels(pictures).to(self.model.dtype)).last_hidden_state
        return maps

    def assemble(self, encoded: Images, samples: int) -> Tokens:
        """What `encode` gave for the samples' pictures, or for each camera's, as their tokens."""
        return seen_by(self.view, each(encoded, lambda one: self.tokens(one.to(self.view.dtype))), samples)
