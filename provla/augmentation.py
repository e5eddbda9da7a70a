"""Augmentations of the observed images, in training only. What they draw comes with the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Depth, Inside
from provla.core.types import Batch


class NoAugmentation(nn.Module):
    """The images as they are."""

    def forward(self, batch: Batch) -> Tensor:
        return batch.observation.images


class RandomCrop(nn.Module):
    """Pads every image by `pad` pixels (edges repeated) and cuts a window of the old size: a random shift (DrQ,
    arXiv:2004.13649).

    All observation steps and cameras of a sample shift together, so that motion between steps stays true.
    """

    def __init__(self, pad: Depth) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, batch: Batch) -> Tensor:
        """`batch.crop` says where the windows lie."""
        images = batch.observation.images
        h, w = images.shape[-2:]
        draws = torch.rand(len(images), 2, device=images.device) if batch.crop is None else batch.crop
        shift = (draws * (2 * self.pad + 1)).long() - self.pad  # (B, 2) in [-pad, pad]
        rows = (torch.arange(h, device=images.device) + shift[:, :1]).clamp(0, h - 1)  # (B, h)
        columns = (torch.arange(w, device=images.device) + shift[:, 1:]).clamp(0, w - 1)  # (B, w)
        flat = images.flatten(1, 3)  # (B, T·C·3, h, w)
        flat = flat.gather(2, rows[:, None, :, None].expand(-1, flat.shape[1], -1, w))
        return flat.gather(3, columns[:, None, None, :].expand(-1, flat.shape[1], h, -1)).view_as(images)


class CropColor(nn.Module):
    """`RandomCrop`, then brightness and contrast changed by up to `strength` (relative), one change per sample."""

    def __init__(self, pad: Depth, strength: Inside) -> None:
        super().__init__()
        self.crop, self.strength = RandomCrop(pad), strength

    def forward(self, batch: Batch) -> Tensor:
        """`batch.color` holds brightness and contrast."""
        images = self.crop(batch)
        draws = torch.rand(len(images), 2, device=images.device) if batch.color is None else batch.color
        change = (1 + self.strength * (2 * draws - 1)).view(-1, 2, 1, 1, 1, 1, 1)
        pixels = images.float() * change[:, 0]
        mean = pixels.mean((-3, -2, -1), keepdim=True)
        changed: Tensor = (mean + (pixels - mean) * change[:, 1]).clamp(0, 255).to(torch.uint8)
        return changed


__all__ = ["CropColor", "NoAugmentation", "RandomCrop"]
