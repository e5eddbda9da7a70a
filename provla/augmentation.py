"""Augmentations of the observed images, in training only. What they draw comes with the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypedDict

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from provla.core.cameras import Images, apart, count, each
from provla.core.checks import Depth, Inside, Natural, NonNegative
from provla.core.types import Batch


class NoAugmentation(nn.Module):
    """The images as they are."""

    many_sizes = True

    def forward(self, batch: Batch) -> Images:
        return batch.observation.images


class RandomCrop(nn.Module):
    """Pads every image by `pad` pixels (edges repeated) and cuts a window of the old size: a random shift (DrQ,
    arXiv:2004.13649).

    All observation steps and cameras of a sample shift together, so that motion between steps stays true.
    """

    many_sizes = True

    def __init__(self, pad: Depth) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, batch: Batch) -> Images:
        """`batch.crop` says where the windows lie."""
        images = batch.observation.images
        by = (_drawn(batch.crop, images) * (2 * self.pad + 1)).long() - self.pad  # by [-pad, pad]
        return each(images, lambda one: _shift(one, by))


def _drawn(draws: Tensor | None, images: Images) -> Tensor:
    """(B,2): a batch's draws, or new ones."""
    return torch.rand(count(images), 2, device=_device(images)) if draws is None else draws


def _device(images: Images) -> torch.device:
    return images[0].device  # of the first sample, or camera


def _shift(images: Tensor, by: Tensor) -> Tensor:
    """images (N,…,h,w), each moved up and left by `by` (N,2) whole pixels, edges repeated."""
    h, w = images.shape[-2:]
    rows = (torch.arange(h, device=images.device) + by[:, :1]).clamp(0, h - 1)  # (N, h)
    columns = (torch.arange(w, device=images.device) + by[:, 1:]).clamp(0, w - 1)  # (N, w)
    flat = images.flatten(1, -3)  # (N, …, h, w)
    flat = flat.gather(2, rows[:, None, :, None].expand(-1, flat.shape[1], -1, w))
    return flat.gather(3, columns[:, None, None, :].expand(-1, flat.shape[1], h, -1)).view_as(images)


class CropColor(nn.Module):
    """`RandomCrop`, then brightness and contrast changed by up to `strength` (relative), one change per sample."""

    many_sizes = True

    def __init__(self, pad: Depth, strength: Inside) -> None:
        super().__init__()
        self.crop, self.strength = RandomCrop(pad), strength

    def forward(self, batch: Batch) -> Images:
        """`batch.color` holds brightness and contrast."""
        images = self.crop(batch)
        change = 1 + self.strength * (2 * _drawn(batch.color, images) - 1)

        def changed(one: Tensor) -> Tensor:
            brightness, contrast = (change[:, i].view(-1, *[1] * (one.dim() - 1)) for i in (0, 1))
            pixels = one.float() * brightness
            mean = pixels.mean((-3, -2, -1), keepdim=True)
            return (mean + (pixels - mean) * contrast).clamp(0, 255).to(torch.uint8)

        return each(images, changed)


class Part(TypedDict):
    """A change of pictures: how much at most, and of how many of a batch's cameras."""

    strength: NonNegative
    probability: Annotated[float, Ge(0), Le(1)]


class CameraAugmentation(nn.Module):
    """What other cameras, mountings, lamps and cables do to pictures: `RandomCrop` by `pad` pixels (0: none), then the
    parts below, in this order, each of a share `probability` of a batch's cameras, by up to its `strength`:

    rotate [degrees] around the middle, translate [of height and width, whole pixels], both with edges repeated; shadow
    [of the light that is lost], a wedge with soft edges; color [relative] brightness, contrast and saturation, and hue
    by a tenth of a turn times it; gamma [relative] of the exponent; blur [standard deviation, of the height]; noise
    [grey levels, standard deviation]; jpeg [quality below 100]. null, strength 0 or probability 0: none.

    A sample's camera is changed alike at all its observation steps (the noise too), so that motion between them stays
    true. Where a part is not drawn, it changes no pixel. All is drawn from the bits of `batch.color`, on its device.

    Cost on two cores, as in conf/augmentation/camera.yaml: 14 ms for a batch of 64 at 64×64 and 81 ms for 32 at 224×224
    (`crop_color`: 2 and 14; each part: `python benchmarks/augmentation.py`).
    """

    many_sizes = True

    def __init__(
        self,
        pad: Natural = 0,
        rotate: Part | None = None,
        translate: Part | None = None,
        shadow: Part | None = None,
        color: Part | None = None,
        gamma: Part | None = None,
        blur: Part | None = None,
        noise: Part | None = None,
        jpeg: Part | None = None,
    ) -> None:
        super().__init__()
        given = (rotate, translate, shadow, color, gamma, blur, noise, jpeg)
        self.parts = {
            name: part
            for name, part in zip(PARTS, given, strict=True)
            if part and part["strength"] > 0 and part["probability"] > 0
        }
        self.crop = RandomCrop(pad) if pad else NoAugmentation()
        self.utmost = False  # every part at its strength, of every camera: for people to look at

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for a strength that leaves no picture."""
        for name, kind in PARTS.items():
            part = given.get(name)
            if part and part["strength"] > kind.most:
                raise ValueError(
                    f"{where}.{name}.strength={part['strength']}: expected at most {kind.most:g} ({kind.unit})"
                )

    def alone(self) -> dict[str, nn.Module]:
        """Each part by itself, at its strength, of every camera; and crops."""
        found: dict[str, nn.Module] = {}
        if isinstance(self.crop, RandomCrop):
            found[f"crop {self.crop.pad} pixels"] = self.crop
        for name, part in self.parts.items():
            only = CameraAugmentation(0, *(part if name == other else None for other in PARTS))
            only.utmost = True
            found[f"{name} {part['strength']:g} {PARTS[name].unit}"] = only
        return found

    def forward(self, batch: Batch) -> Images:
        images: Images = self.crop(batch)
        if not self.parts:
            return images
        draws: Any = _draws(_drawn(batch.color, images), len(apart(images, 2)))  # (B, C, …)
        with torch.autocast(_device(images).type, enabled=False):
            if isinstance(images, tuple):
                return tuple(self._all(one, draws[:, c]) for c, one in enumerate(images))
            flat = images.transpose(1, 2).flatten(0, 1)  # (B·C, T, 3, h, w): a sample's cameras
            changed = self._all(flat, draws.flatten(0, 1))
        return changed.view(*draws.shape[:2], *changed.shape[1:]).transpose(1, 2)

    def _all(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """Every part in turn: pictures (M,T,3,h,w) uint8, draws (M,…)."""
        pixels = pictures.float()
        for name, part in self.parts.items():
            pixels = self._change(pixels, PARTS[name], part, draws[:, PARTS[name].columns])
        return pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)  # rounded

    def _change(self, pixels: Tensor, kind: Kind, part: Part, draws: Tensor) -> Tensor:
        """Those that are drawn. A CPU looks which those are; a GPU is not asked, changes all and keeps what was."""
        on, draws = draws[:, 0] < part["probability"], draws[:, 1:]
        if self.utmost:
            on, draws = torch.ones_like(on), kind.utmost(draws)
        if pixels.device.type == "cpu":
            (rows,) = on.nonzero(as_tuple=True)
            if len(rows):
                pixels[rows] = kind.change(pixels[rows], draws[rows], part["strength"])
            return pixels
        return torch.where(on.view(-1, 1, 1, 1, 1), kind.change(pixels, draws, part["strength"]), pixels)


def _draws(color: Tensor, cameras: int) -> Tensor:
    """(B,C, all parts' draws) uniform in [0, 1), of the 48 random bits that `batch.color` has (splitmix64, whose output
    is counted by camera and draw). A part's draws are the same whichever others there are.
    """
    bits = (color * 2**24).long()
    seed = bits[:, 0] << 24 | bits[:, 1]  # (B,)
    count = torch.arange(1, cameras * WIDTH + 1, device=color.device)
    x = (seed * 0x2545F4914F6CDD1D)[:, None] + count * -0x61C8864680B583EB
    x = (x ^ (x >> 30 & 2**34 - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 2**37 - 1)) * -0x6B2FB644ECCEEE15
    x = x ^ (x >> 31 & 2**33 - 1)
    return ((x >> 40 & 2**24 - 1).float() * 2**-24).view(len(color), cameras, WIDTH)


# Each takes pixels (M,T,3,h,w) float in 0…255, draws (M,…) uniform in [0, 1) and its strength.


def _rotate(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    h, w = pixels.shape[-2:]
    angle = (2 * draws[:, 0] - 1) * math.radians(strength)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turned = torch.stack([torch.stack([cos, -sin * h / w, zero], 1), torch.stack([sin * w / h, cos, zero], 1)], 1)
    flat = pixels.flatten(1, 2)
    grid = nn.functional.affine_grid(turned, list(flat.shape), align_corners=False)
    return nn.functional.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(pixels)


def _translate(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    most = [round(side * strength) for side in pixels.shape[-2:]]
    by = torch.stack([(2 * draws[:, i] - 1) * most[i] for i in (0, 1)], 1)
    return _shift(pixels, by.round().long())


def _shadow(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    h, w = pixels.shape[-2:]
    y = torch.linspace(-1, 1, h, device=pixels.device).view(h, 1)
    x = torch.linspace(-1, 1, w, device=pixels.device)
    dark = torch.ones_like(pixels[:, 0, 0])
    for i in (1, 3):  # behind two edges
        angle, at = (2 * math.pi * draws[:, i]).view(-1, 1, 1), (draws[:, i + 1] - 0.7).view(-1, 1, 1)
        dark = dark * torch.sigmoid((x * angle.cos() + y * angle.sin() - at) * 20)
    return pixels * (1 - strength * draws[:, 0].view(-1, 1, 1) * dark)[:, None, None]


def _color(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    change = 1 + strength * (2 * draws - 1)  # (M, 4)
    hue = (2 * draws[:, 3] - 1) * strength * 0.2 * math.pi
    grey = torch.full((3, 3), 1 / 3, device=pixels.device)
    one = torch.eye(3, device=pixels.device) - grey
    around = hue.cos().view(-1, 1, 1) * one + hue.sin().view(-1, 1, 1) * _turn(pixels.device)  # about the grey axis
    mix = (grey + change[:, 2].view(-1, 1, 1) * around) * change[:, 0].view(-1, 1, 1)
    pixels = (mix[:, None] @ pixels.flatten(3)).view_as(pixels)
    mean = pixels.mean((1, 2, 3, 4), keepdim=True)
    return (mean + (pixels - mean) * change[:, 1].view(-1, 1, 1, 1, 1)).clamp(0, 255)


@cache  # like the other numbers that are the same in every step: a GPU is sent them once
def _turn(device: torch.device) -> Tensor:
    return torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)


def _gamma(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    exponent = torch.exp((2 * draws[:, 0] - 1) * math.log1p(strength)).view(-1, 1, 1, 1, 1)
    return (pixels / 255).clamp(0, 1).pow(exponent) * 255


def _blur(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Gaussian, as a product with a matrix on either side: any width costs the same, and edges repeat."""
    h, w = pixels.shape[-2:]
    std = (draws[:, 0] * strength * h).clamp(min=1e-3).view(-1, 1, 1)
    return _kernel(h, std)[:, None, None] @ pixels @ _kernel(w, std).mT[:, None, None]


def _kernel(size: int, std: Tensor) -> Tensor:
    """(M,size,size): row i weighs what pixel i becomes."""
    reach = min(size, 64)
    offset = torch.arange(-reach, reach + 1, device=std.device)
    weight = torch.softmax(-(offset**2) / (2 * std.view(-1, 1) ** 2), -1)  # (M, taps)
    at = torch.arange(size, device=std.device)[:, None] + offset  # (size, taps)
    matrix = torch.zeros(len(std), size, size, device=std.device)
    return matrix.scatter_add_(2, at.clamp(0, size - 1).expand(len(std), -1, -1), weight[:, None].expand(-1, size, -1))


def _noise(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Normal; each camera's picture is another window of a million numbers."""
    bank, size = _bank(pixels.device), pixels[0, 0].numel()
    begin = (draws[:, 1] * len(bank)).long()
    at = (begin[:, None] + torch.arange(size, device=pixels.device)) % len(bank)
    field = bank[at].view(len(pixels), 1, *pixels.shape[2:])
    return torch.addcmul(pixels, field, strength * draws[:, 0].view(-1, 1, 1, 1, 1)).clamp(0, 255)


@cache
def _bank(device: torch.device) -> Tensor:
    return torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device)


def _jpeg(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """What JPEG loses: libjpeg's tables at a quality, on 8×8 blocks of all three channels at full resolution (4:4:4).
    On tensors, because an encoder takes pictures one by one; what a codec does without loss is left out.
    """
    h, w = pixels.shape[-2:]
    tables = _tables(pixels.device)
    quality = (100 - strength * draws[:, 0]).round().clamp(1, 100).view(-1, 1, 1)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = ((tables[0] * scale + 50) / 100).floor().clamp(1, 255)[:, None, :, None]  # (M, 1, 3, 1, 64)
    flat = (tables[1] @ (pixels.round() - 128).flatten(3)).view_as(pixels)  # as signed numbers
    flat = nn.functional.pad(flat.flatten(0, 1).round(), (0, -w % 8, 0, -h % 8), mode="replicate")
    n, _, tall, wide = flat.shape
    blocks = (
        flat.view(n, 3, tall // 8, 8, wide // 8, 8).transpose(3, 4).reshape(len(pixels), -1, 3, tall * wide // 64, 64)
    )
    # Exact ties fall to one side, however sums were rounded.
    blocks = torch.round(blocks @ tables[3].mT / steps + 1e-4) * steps @ tables[3]
    flat = blocks.view(n, 3, tall // 8, wide // 8, 8, 8).transpose(3, 4).reshape(n, 3, tall, wide)[..., :h, :w]
    return (tables[2] @ flat.reshape(*pixels.shape[:3], -1)).view_as(pixels).add(128).clamp(0, 255)


@cache
def _tables(device: torch.device) -> tuple[Tensor, ...]:
    """Quantisation (3,64) of Y, Cb, Cr (ITU-T T.81, annex K); RGB → YCbCr (JFIF), all less 128, and
    back; the cosine transform of a block of 64.
    """
    light = (
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    )
    corner = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
    colour = torch.full((8, 8), 99.0)
    colour[:4, :4] = torch.tensor(corner)
    there = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    cosine = torch.cos(math.pi * k * (2 * n + 1) / 16) / 2
    cosine[0] /= math.sqrt(2)
    steps = torch.stack([torch.tensor(light, dtype=torch.float32), colour.flatten(), colour.flatten()])
    found = steps, there, there.double().inverse().float(), torch.kron(cosine, cosine)
    return tuple(table.to(device) for table in found)


@dataclass(frozen=True)
class Kind:
    """change: of pixels. columns: its draws among all: whether, and what. signs: for each of the latter, whether it
    goes both ways (-1), up to its strength (1), or says where and not how much (0). most: the greatest strength."""

    change: Callable[[Tensor, Tensor, float], Tensor]
    columns: slice
    signs: tuple[int, ...]
    most: float
    unit: str

    def utmost(self, draws: Tensor) -> Tensor:
        """As far as the strength goes."""
        signs = torch.tensor(self.signs, device=draws.device)
        return torch.where(signs == 0, draws, torch.where(signs > 0, 1.0, (draws > 0.5).float()))


def _kinds() -> dict[str, Kind]:
    found, first = {}, 0
    for name, change, signs, most, unit in (
        ("rotate", _rotate, (-1,), 45.0, "degrees"),
        ("translate", _translate, (-1, -1), 0.5, "of the side"),
        ("shadow", _shadow, (1, 0, 0, 0, 0), 1.0, "of the light"),
        ("color", _color, (-1, -1, -1, -1), 0.95, "relative"),
        ("gamma", _gamma, (-1,), 4.0, "relative"),
        ("blur", _blur, (1,), 0.1, "of the height"),
        ("noise", _noise, (1, 0), 128.0, "grey levels"),
        ("jpeg", _jpeg, (1,), 99.0, "below quality 100"),
    ):
        found[name] = Kind(change, slice(first, first + 1 + len(signs)), signs, most, unit)
        first += 1 + len(signs)
    return found


PARTS = _kinds()
WIDTH = max(kind.columns.stop for kind in PARTS.values())

__all__ = ["CameraAugmentation", "CropColor", "NoAugmentation", "RandomCrop"]
