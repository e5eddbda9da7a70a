"""Vision encoders: images (B,T,C,3,h,w) uint8 → Tokens (B,N,D)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypedDict

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from provla.backbone import DType, Source, Tower
from provla.build import build, check_node
from provla.checks import Channels, Edge, Extent, Name, Positive, Width
from provla.hub import from_pretrained
from provla.types import Tokens

Pool = Literal["spatial_softmax", "cells"]


class Processor(TypedDict, total=False):
    """What an image processor would say: the edge of the images, and what their pixels in [0, 1] are normalised with."""

    size: Edge
    image_mean: tuple[float, float, float]
    image_std: tuple[Positive, Positive, Positive]


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

    def __init__(
        self, num_images: int, image_size: tuple[int, int], width: Width, channels: Annotated[list[Channels], MinLen(1)], pool: Pool, num_keypoints: Width
    ) -> None:
        super().__init__()
        if min(image_size) < 2 ** len(channels):
            raise ValueError(f"vision.channels={channels} halves images of {image_size} too often")
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


class ImageTower(Tower):
    """A vision transformer of transformers; see `Source` for which.

    The whole image is resized to the backbone's input (robots need its margins: nothing is cropped), and normalised as
    its image processor says. pool: patches (a token each), mean (of the patches), pooler (the model's own: the class
    token of CLIP and DINOv2, SigLIP's attention pooling). input_size: [h, w] or null, the image processor's.
    processor: size, image_mean and image_std where no files hold them.
    """

    def __init__(
        self,
        num_images: int,
        image_size: tuple[int, int],
        architecture: Name,
        config: Mapping[str, Any],
        processor: Processor,
        name: Name | None = None,
        revision: Name | None = None,
        pretrained: bool = True,
        pool: Literal["patches", "mean", "pooler"] = "patches",
        layer: int | None = None,
        input_size: Extent | None = None,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        files: Name | None = None,
        key: str = "vision",
    ) -> None:
        source = Source(architecture, name, revision, config, pretrained, layer, dtype, gradient_checkpointing, files, key)
        options = {"vision_use_head": pool == "pooler"} if architecture.startswith("Siglip") else {}
        super().__init__(source, source.load(**options), _image_processor(source, processor))
        self.width: int = self.model.config.hidden_size
        self._pool = pool
        self._pixels = Pixels(self._processor, input_size)
        self._extra = _prefix_tokens(self.model)
        native = self.model.config.image_size
        resized = self._pixels.size != (native, native) and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        self.view = nn.Parameter(torch.zeros(num_images, 1, self.width))

    def forward(self, images: Tensor) -> Tokens:
        pixels = self._pixels(_flatten(images)).to(self.model.dtype)
        found = self.model(pixel_values=pixels, **self._options)
        if self._pool == "pooler":
            features = found.pooler_output.unsqueeze(1)
        else:
            features = found.last_hidden_state[:, self._extra :]  # (B·T·C, N, D)
            features = features.mean(1, keepdim=True) if self._pool == "mean" else features
        views = features.to(self.view.dtype).unflatten(0, (len(images), -1)) + self.view
        return Tokens.full(views.flatten(1, 2))


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

        modes = {0: InterpolationMode.NEAREST, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}  # PIL's numbers
        self._resize = functools.partial(functional.resize, size=list(self.size), interpolation=modes[int(processor.resample)], antialias=True)
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != self.size:
            images = self._resize(images)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def _image_processor(source: Source, given: Processor) -> Any:
    from transformers import AutoImageProcessor, SiglipImageProcessor

    if source.files is not None:
        return from_pretrained(AutoImageProcessor, source.files, None, f"{source.key}.files")
    if source.loads:
        return from_pretrained(AutoImageProcessor, str(source.name), source.revision, f"{source.key}.name")
    if "size" not in given:
        raise ValueError(f"{source.key}.processor.size is missing: the edge of the images that the model sees")
    return SiglipImageProcessor(**{**given, "size": {"height": given["size"], "width": given["size"]}})


def _prefix_tokens(model: Any) -> int:
    """How many tokens stand before the patches: a class token, registers."""
    embeddings = getattr(model, "embeddings", None) or model.vision_model.embeddings
    registers = getattr(model.config, "num_register_tokens", 0)
    return int(any(name in ("cls_token", "class_embedding") for name, _ in embeddings.named_parameters(recurse=False))) + int(registers)


class SideBySide(nn.Module):
    """Several towers that cut an image into the same number of patches; their features side by side, token by token.

    As in Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865) and OpenVLA. towers: name → node of an `ImageTower`.
    """

    def __init__(
        self, num_images: int, image_size: tuple[int, int], towers: Mapping[str, Mapping[str, Any]], pretrained: bool = True, key: str = "vision"
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict()
        for name, node in towers.items():
            where = f"{key}.towers.{name}"
            self.towers[name] = build(_tower(node), where, nn.Module, key=where)(num_images=num_images, image_size=image_size)
        self.pretrained = all(bool(tower.pretrained) for tower in self.towers.values())
        self.width = sum(int(tower.width) for tower in self.towers.values())  # type: ignore[arg-type, misc]

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for what is wrong with a tower's node."""
        for name, node in given["towers"].items():
            check_node(_tower(node), f"{where}.towers.{name}", nn.Module, ("key",))

    @property
    def adaptable(self) -> nn.Module:
        """What adapters and quantisation act on."""
        return nn.ModuleDict({name: tower.adaptable for name, tower in self.towers.items()})  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tokens:
        found = {name: tower(images) for name, tower in self.towers.items()}
        counts = {name: tokens.features.shape[1] for name, tokens in found.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"vision.towers give different numbers of tokens, {counts}; change an input_size so that they agree")
        return Tokens.full(torch.cat([tokens.features for tokens in found.values()], -1))


def _tower(node: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's node without a way to adapt or quantise it: there is one for all, the part's."""
    return {key: value for key, value in node.items() if key not in ("adapter", "quant")}


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
        source = Source("ResNetModel", name if pretrained else None, revision, config, pretrained, None, dtype, False, files, "vision")
        super().__init__(source, source.load(), _image_processor(source, {**processor, "size": image_size[0]}))
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
        maps = self.model(pixel_values=self._pixels(_flatten(images)).to(self.model.dtype)).last_hidden_state
        features = self.tokens(maps.to(self.view.dtype))
        views = features.unflatten(0, (len(images), -1)) + self.view
        return Tokens.full(views.flatten(1, 2))
