"""torchvision's ResNet-18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from provla.backbone.tower import DType, Source, Tower
from provla.core.checks import Name, Width
from provla.core.types import Tokens
from provla.vision.parts import Pixels, Pool, Processor, Tokenizer2d, flatten, image_processor


class ResNet18(Tower):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385), its feature map at 1/32 resolution as keypoints or cells.

    pretrained: false: random weights and GroupNorm instead of BatchNorm, as in Diffusion Policy (arXiv:2303.04137).
    true: ImageNet weights of `name`, BatchNorm with its stored statistics, as in ACT (arXiv:2304.13705).
    """

    def __init__(
        self,
        num_images: int,
        image_size: tuple[int, int],
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
        super().__init__(source, source.load(), image_processor(source, {**processor, "size": image_size[0]}))
        if not pretrained:
            for path, norm in list(self.model.named_modules()):
                if isinstance(norm, nn.BatchNorm2d):
                    self.model.set_submodule(path, nn.GroupNorm(norm.num_features // 16, norm.num_features))
        self.width = width
        self._pixels = Pixels(self._processor, image_size)
        self.tokens = Tokenizer2d(self.model.config.hidden_sizes[-1], width, pool, num_keypoints)
        self.view = nn.Parameter(torch.zeros(num_images, 1, width))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self.model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        return self

    def forward(self, images: Tensor) -> Tokens:
        return self.assemble(self.encode(flatten(images)), len(images))

    def encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,F,h/32,w/32)."""
        maps: Tensor = self.model(pixel_values=self._pixels(pictures).to(self.model.dtype)).last_hidden_state
        return maps

    def assemble(self, encoded: Tensor, samples: int) -> Tokens:
        """What `encode` gave for the samples' pictures, as their tokens."""
        features = self.tokens(encoded.to(self.view.dtype))
        views = features.unflatten(0, (samples, -1)) + self.view
        return Tokens.full(views.flatten(1, 2))
