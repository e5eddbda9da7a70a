"""What vision encoders share: tokens of a feature map, and pictures as a pretrained model wants them."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from provla.backbone.tower import Source
from provla.core.checks import Edge, Positive
from provla.core.hub import from_pretrained
from provla.core.libraries import transformers_library

Pool = Literal["spatial_softmax", "cells"]


def flatten(images: Tensor) -> Tensor:
    """(B,T,C,3,h,w) → (B·T·C,3,h,w)."""
    return images.flatten(0, 2)


class Tokenizer2d(nn.Module):
    """A feature map (M,F,h,w) → (M,N,D): learned keypoints or one token a cell.

    spatial_softmax (Levine et al. 2016, arXiv:1504.00702): each of `num_keypoints` attention maps gives a token from
    its expected position in [-1, 1]² and the feature found there. Every keypoint has its own projection of the
    position, so that the mean over tokens still knows which keypoint was where.
    """

    def __init__(self, channels: int, width: int, pool: Pool, num_keypoints: int) -> None:
        super().__init__()
        self.pool = pool
        self.feature = nn.Linear(channels, width)
        if pool == "spatial_softmax":
            self.attention = nn.Conv2d(channels, num_keypoints, 1)
            self.sharpness = nn.Parameter(torch.tensor(4.0))
            # Large beside the rest, so that the mean of the tokens starts as a code of where the keypoints are.
            self.position = nn.Parameter(torch.randn(num_keypoints, 2, width) * (num_keypoints / 2) ** 0.5)
            nn.init.normal_(self.feature.weight, std=0.02)
            nn.init.zeros_(self.feature.bias)
            self.identity = nn.Parameter(torch.randn(num_keypoints, width) * 0.02)
        else:
            self.position = nn.Parameter(torch.randn(2, width) / 2**0.5)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor
        grid = _grid(maps)  # (h·w, 2)
        cells = maps.flatten(2).transpose(1, 2)  # (M, h·w, F)
        if self.pool == "cells":
            found = self.feature(cells) + grid @ self.position
            return found
        # The convolution of one pixel as a product of matrices: on a CPU in half of its time.
        weight, bias = (
            self.sharpness * p for p in (self.attention.weight.flatten(1), self.attention.get_parameter("bias"))
        )
        scores = torch.baddbmm(bias[:, None], weight.expand(len(maps), -1, -1), maps.flatten(2))
        attention = scores.float().softmax(-1).to(maps.dtype)  # (M, K, h·w)
        where = attention @ grid  # (M, K, 2)
        found = self.feature(attention @ cells) + torch.einsum("mkp,kpd->mkd", where, self.position) + self.identity
        return found


def _grid(maps: Tensor) -> Tensor:
    """(h·w, 2): each cell's row and column in [-1, 1]."""
    rows = torch.linspace(-1, 1, maps.shape[-2], device=maps.device, dtype=maps.dtype)
    columns = torch.linspace(-1, 1, maps.shape[-1], device=maps.device, dtype=maps.dtype)
    return torch.cartesian_prod(rows, columns)


class Processor(TypedDict, total=False):
    """What an image processor would say: the edge of the images, and what their pixels in [0, 1] are
    normalised with.
    """

    size: Edge
    image_mean: tuple[float, float, float]
    image_std: tuple[Positive, Positive, Positive]


class Pixels(nn.Module):
    """images (M,3,h,w) uint8 → (M,3,h',w') as an image processor would make them, without leaving the device."""

    mean: Tensor
    std: Tensor

    def __init__(self, processor: Any, size: tuple[int, int] | None) -> None:
        super().__init__()
        stored = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        edge = (stored.height or stored.shortest_edge, stored.width or stored.shortest_edge)
        self.size = (int(size[0]), int(size[1])) if size is not None else (int(edge[0]), int(edge[1]))
        from torchvision.transforms.v2 import InterpolationMode, functional

        # PIL's numbers.
        modes = {
            0: InterpolationMode.NEAREST,
            2: InterpolationMode.BILINEAR,
            3: InterpolationMode.BICUBIC,
        }
        self._resize = functools.partial(
            functional.resize, size=list(self.size), interpolation=modes[int(processor.resample)], antialias=True
        )
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.size:
            images = self._resize(images)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def image_processor(source: Source, given: Processor) -> Any:
    transformers = transformers_library()
    if source.files is not None:
        return from_pretrained(transformers.AutoImageProcessor, source.files, None, f"{source.key}.files")
    if source.loads:
        return from_pretrained(transformers.AutoImageProcessor, str(source.name), source.revision, f"{source.key}.name")
    if "size" not in given:
        raise ValueError(f"{source.key}.processor.size is missing: the edge of the images that the model sees")
    return transformers.SiglipImageProcessor(**{**given, "size": {"height": given["size"], "width": given["size"]}})
