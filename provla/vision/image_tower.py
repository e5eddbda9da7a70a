"""Any image model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.backbone.tower import DType, Source, Tower
from provla.core.cameras import Images, ImageSize, count, each
from provla.core.checks import Extent, Name
from provla.core.types import Tokens
from provla.vision.parts import Pixels, Processor, encoded, image_processor, seen_by


class ImageTower(Tower):
    """A vision transformer of transformers; see `Source` for which.

    The whole image is resized to the backbone's input, whatever its camera's size (robots need its margins: nothing is
    cropped), and normalised as its image processor says. pool: patches (a token each), patches_2x2 (a token for four
    neighbours, their mean), mean (of the patches), pooler (the model's own: the class token of CLIP and DINOv2,
    SigLIP's attention pooling). input_size: [h, w] or null, the image processor's. processor: size, image_mean and
    image_std where no files hold them.
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
        input_size: Extent | None = None,
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
        self._pixels = Pixels(self._processor, input_size)
        edge = self.model.config.patch_size
        self._grid = (self._pixels.size[0] // edge, self._pixels.size[1] // edge)
        if pool == "patches_2x2" and any(side % 2 for side in self._grid):
            raise ValueError(
                f"{key}.pool=patches_2x2: the image has {self._grid[0]}×{self._grid[1]} patches, expected even "
                f"numbers; choose another {key}.input_size, or pool=patches"
            )
        self._extra = _prefix_tokens(self.model)
        native = self.model.config.image_size
        resized = (
            self._pixels.size != (native, native)
            and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        )
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        self.view = nn.Parameter(torch.zeros(num_images, 1, self.width))

    def forward(self, images: Images) -> Tokens:
        return self.assemble(encoded(images, self.encode), count(images))

    def encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,N,D): all that the model makes of them."""
        model = self.ready()
        found = model(pixel_values=self._pixels(pictures).to(model.dtype), **self._options)
        if self._pool == "pooler":
            one: Tensor = found.pooler_output.unsqueeze(1)
            return one
        features: Tensor = found.last_hidden_state[:, self._extra :]  # (M, N, D)
        if self._pool == "patches_2x2":
            cells = features.transpose(1, 2).reshape(len(features), -1, *self._grid)
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
