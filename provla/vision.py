"""Vision encoders: images (B,T,C,3,h,w) uint8 → Tokens (B,N,D)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from provla.hub import from_pretrained
from provla.types import Tokens

Pool = Literal["spatial_softmax", "cells"]


def _flatten(images: Tensor) -> Tensor:
    """(B,T,C,3,h,w) → (B·T·C,3,h,w)."""
    return images.flatten(0, 2)


class Tokenizer2d(nn.Module):
    """A feature map (M,F,h,w) → (M,N,D): learned keypoints or one token a cell.

    spatial_softmax (Levine et al. 2016, arXiv:1504.00702): each of `num_keypoints` attention maps gives a token from its
    expected position in [-1, 1]² and the feature found there. Every keypoint has its own projection of the position, so
    that the mean over tokens still knows which keypoint was where.
    """

    def __init__(self, channels: int, width: int, pool: Pool, num_keypoints: int) -> None:
        super().__init__()
        if pool not in ("spatial_softmax", "cells"):
            raise ValueError(f"vision.pool={pool!r}; valid: spatial_softmax, cells")
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
        attention = (self.sharpness * self.attention(maps)).flatten(2).float().softmax(-1).to(maps.dtype)  # (M, K, h·w)
        where = attention @ grid  # (M, K, 2)
        found = self.feature(attention @ cells) + torch.einsum("mkp,kpd->mkd", where, self.position) + self.identity
        return found


def _grid(maps: Tensor) -> Tensor:
    """(h·w, 2): each cell's row and column in [-1, 1]."""
    rows = torch.linspace(-1, 1, maps.shape[-2], device=maps.device, dtype=maps.dtype)
    columns = torch.linspace(-1, 1, maps.shape[-1], device=maps.device, dtype=maps.dtype)
    return torch.cartesian_prod(rows, columns)


class ConvSmall(nn.Module):
    """Convolutions with GroupNorm (Wu & He 2018, arXiv:1803.08494), made for 64×64 to 128×128 pixels and two CPU cores.

    Each stage but the last halves the resolution; the last keeps it.
    """

    pretrained = False

    def __init__(self, num_images: int, image_size: tuple[int, int], width: int, channels: list[int], pool: Pool, num_keypoints: int) -> None:
        super().__init__()
        if min(image_size) < 2 ** len(channels):
            raise ValueError(f"vision.channels={channels} halves images of {image_size} too often")
        if any(c % 8 for c in channels):
            raise ValueError(f"vision.channels={channels}: each must be a multiple of 8 (GroupNorm)")
        self.width = width
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([3, *channels], channels, strict=False)):
            last = i == len(channels) - 1
            kernel, stride = (5, 2) if i == 0 else (3, 1 if last else 2)
            layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.GroupNorm(8, after), nn.ReLU(inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.tokens = Tokenizer2d(channels[-1], width, pool, num_keypoints)
        self.view = nn.Parameter(torch.zeros(num_images, 1, width))

    def forward(self, images: Tensor) -> Tokens:
        pixels = _flatten(images).to(self.view.dtype) / 127.5 - 1
        features = self.tokens(self.trunk(pixels))  # (B·T·C, N, D)
        views = features.unflatten(0, (len(images), -1)) + self.view  # (B, T·C, N, D)
        return Tokens.full(views.flatten(1, 2))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) with GroupNorm instead of BatchNorm, as in Diffusion Policy (arXiv:2303.04137)."""

    pretrained = False
    mean: Tensor
    std: Tensor

    def __init__(self, num_images: int, image_size: tuple[int, int], width: int, pool: Pool, num_keypoints: int) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.width = width
        trunk = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        self.trunk = nn.Sequential(*list(trunk.children())[:-2])  # up to the 512-channel map at 1/32 resolution
        self.tokens = Tokenizer2d(512, width, pool, num_keypoints)
        self.view = nn.Parameter(torch.zeros(num_images, 1, width))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tokens:
        pixels = (_flatten(images).to(self.view.dtype) / 255 - self.mean) / self.std
        features = self.tokens(self.trunk(pixels))
        views = features.unflatten(0, (len(images), -1)) + self.view
        return Tokens.full(views.flatten(1, 2))


class Siglip(nn.Module):
    """SigLIP's vision tower (Zhai et al. 2023, arXiv:2303.15343): one token a patch, of the last layer.

    name: a Hub id or a local folder; null builds `config` (transformers' SiglipVisionConfig) with random weights. The
    attention-pooling head is left out: its fused projection cannot be quantised, and a token a patch says more.
    """

    def __init__(
        self, num_images: int, image_size: tuple[int, int], name: str | None = None, revision: str | None = None, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        from transformers import SiglipVisionConfig, SiglipVisionModel

        if (name is None) == (config is None):
            raise ValueError("vision: give either name (a Hub id or a folder) or config (a SiglipVisionConfig), not both or none")
        if name is not None:
            stored = from_pretrained(SiglipVisionConfig, name, revision, "vision.name")
            stored.vision_use_head = False
            self.tower: Any = from_pretrained(SiglipVisionModel, name, revision, "vision.name", config=stored)
        else:
            self.tower = SiglipVisionModel(SiglipVisionConfig(**config, vision_use_head=False))  # type: ignore[arg-type]
        self.pretrained = name is not None
        self.width: int = self.tower.config.hidden_size
        self._size: int = self.tower.config.image_size
        self.view = nn.Parameter(torch.zeros(num_images, 1, self.width))

    def forward(self, images: Tensor) -> Tokens:
        pixels = _flatten(images).to(self.view.dtype) / 127.5 - 1
        if pixels.shape[-2:] != (self._size, self._size):
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bilinear", antialias=True, align_corners=False)
        features = self.tower(pixel_values=pixels).last_hidden_state  # (B·T·C, N, D)
        views = features.unflatten(0, (len(images), -1)) + self.view
        return Tokens.full(views.flatten(1, 2))
