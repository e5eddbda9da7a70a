"""Augmentations of the observed images, in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoAugmentation(nn.Module):
    """The images as they are."""

    def forward(self, images: Tensor, draws: Tensor | None) -> Tensor:
        return images


class RandomCrop(nn.Module):
    """Pads every image by `pad` pixels (edges repeated) and cuts a window of the old size: a random shift (DrQ, arXiv:2004.13649).

    All observation steps and cameras of a sample shift together, so that motion between steps stays true.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        if pad < 1:
            raise ValueError(f"augmentation.pad={pad}: must be at least 1; augmentation=none leaves images alone")
        self.pad = pad

    def forward(self, images: Tensor, draws: Tensor | None) -> Tensor:
        """images (B,T,C,3,h,w) uint8; draws (B,2) uniform in [0, 1) say where the window lies."""
        h, w = images.shape[-2:]
        draws = torch.rand(len(images), 2, device=images.device) if draws is None else draws
        shift = (draws * (2 * self.pad + 1)).long() - self.pad  # (B, 2) in [-pad, pad]
        rows = (torch.arange(h, device=images.device) + shift[:, :1]).clamp(0, h - 1)  # (B, h)
        columns = (torch.arange(w, device=images.device) + shift[:, 1:]).clamp(0, w - 1)  # (B, w)
        flat = images.flatten(1, 3)  # (B, T·C·3, h, w)
        flat = flat.gather(2, rows[:, None, :, None].expand(-1, flat.shape[1], -1, w))
        return flat.gather(3, columns[:, None, None, :].expand(-1, flat.shape[1], h, -1)).view_as(images)


class CropColor(nn.Module):
    """`RandomCrop`, then brightness and contrast changed by up to `strength` (relative), one change per sample."""

    def __init__(self, pad: int, strength: float) -> None:
        super().__init__()
        if not 0 < strength < 1:
            raise ValueError(f"augmentation.strength={strength}: must lie between 0 and 1")
        self.crop, self.strength = RandomCrop(pad), strength

    def forward(self, images: Tensor, draws: Tensor | None) -> Tensor:
        images = self.crop(images, draws)
        change = 1 + self.strength * (2 * torch.rand(len(images), 2, 1, 1, 1, 1, 1, device=images.device) - 1)
        pixels = images.float() * change[:, 0]
        mean = pixels.mean((-3, -2, -1), keepdim=True)
        return (mean + (pixels - mean) * change[:, 1]).clamp(0, 255).to(torch.uint8)


__all__ = ["CropColor", "NoAugmentation", "RandomCrop"]
