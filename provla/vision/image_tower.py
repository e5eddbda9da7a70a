"""Any image model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.backbone.tower import DType, Source, Tower
from provla.core.cameras import Images, ImageSize, Size, count, distinct, each
from provla.core.checks import Extent, Name
from provla.core.types import Tokens
from provla.vision.parts import Pixels, Processor, encoded, image_processor, seen_by


class ImageTower(Tower):
    """A vision transformer of transformers; see `Source` for which.

    The whole image is resized to the backbone's input (robots need its margins: nothing is cropped), and normalised as
    its image processor says. pool: patches (a token each), patches_2x2 (a token for four neighbours, their mean), mean
    (of the patches), pooler (the model's own: the class token of CLIP and DINOv2, SigLIP's attention pooling).
    input_size: [h, w], or null, the image processor's, for all cameras; or own: each camera's own size, with as many
    patches as it has. processor: size, image_mean and image_std where no files hold them.
    """

    many_sizes = True

    def __init__(
        self,
        num_images: int,
        image_size: ImageSize,
        architecture: Name,
        config: Mapping[str, Any],
        processor: Processor,
        name: Name | None = None,
        revision: Name | None = None,
        pretrained: bool = True,
        pool: Literal["patches", "patches_2x2", "mean", "pooler"] = "patches",
        layer: int | None = None,
        input_size: Extent | Literal["own"] | None = None,
        dtype: DType = "float32",
        gradient_checkpointing: bool = False,
        files: Name | None = None,
        key: str = "vision",
    ) -> None:
        source = Source(
            architecture, name, revision, config, pretrained, layer, dtype, gradient_checkpointing, files, key
        )
        options = {"vision_use_head": pool == "pooler"} if architecture.startswith("Siglip") else {}
        super().__init__(source, source.model(**options), image_processor(source, processor))
        self.width: int = self.model.config.hidden_size
        self._pool = pool
        own = distinct(image_size) if input_size == "own" else []
        self._pixels = Pixels(self._processor, None if isinstance(input_size, str) else input_size, own)
        self._edge = int(self.model.config.patch_size)
        inputs = own or [self._pixels.size]
        self._check(inputs, bool(own), pool, key)
        self._extra = _prefix_tokens(self.model)
        native = self.model.config.image_size
        resized = (
            any(size != (native, native) for size in inputs)
            and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        )
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        self.view = nn.Parameter(torch.zeros(num_images, 1, self.width))

    def _check(self, inputs: Sequence[Size], own: bool, pool: str, key: str) -> None:
        for height, width in inputs:
            if own and (height % self._edge or width % self._edge):
                raise ValueError(
                    f"{key}.input_size=own: a camera has {height}×{width} pixels, which are no whole patches of "
                    f"{self._edge}; choose others (dataset.image_size), or {key}.input_size=null"
                )
            grid = self._grid(height, width)
            if pool == "patches_2x2" and any(side % 2 for side in grid):
                raise ValueError(
                    f"{key}.pool=patches_2x2: the image has {grid[0]}×{grid[1]} patches, expected even "
                    f"numbers; choose another {key}.input_size, or pool=patches"
                )

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """How many patches a picture has."""
        return height // self._edge, width // self._edge

    def forward(self, images: Images) -> Tokens:
        return self.assemble(encoded(images, self.encode), count(images))

    def encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,N,D): all that the model makes of them."""
        model, pixels = self.ready(), self._pixels(pictures)
        found = model(pixel_values=pixels.to(model.dtype), **self._options)
        if self._pool == "pooler":
            one: Tensor = found.pooler_output.unsqueeze(1)
            return one
        features: Tensor = found.last_hidden_state[:, self._extra :]  # (M, N, D)
        if self._pool == "patches_2x2":
            cells = features.transpose(1, 2).reshape(len(features), -1, *self._grid(*pixels.shape[-2:]))
            return nn.functional.avg_pool2d(cells, 2).flatten(2).transpose(1, 2)
        return features.mean(1, keepdim=True) if self._pool == "mean" else features

    def assemble(self, encoded: Images, samples: int) -> Tokens:
        """What `encode` gave for the samples' pictures, or for each camera's, as their tokens."""
        return seen_by(self.view, each(encoded, lambda one: one.to(self.view.dtype)), samples)


def _prefix_tokens(model: Any) -> int:
    """How many tokens stand before the patches: a class token, registers."""
    embeddings = getattr(model, "embeddings", None) or model.vision_model.embeddings
    registers = getattr(model.config, "num_register_tokens", 0)
    return int(
        any(name in ("cls_token", "class_embedding") for name, _ in embeddings.named_parameters(recurse=False))
    ) + int(registers)
