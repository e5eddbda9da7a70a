"""Any image model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.backbone.tower import DType, Source, Tower
from provla.core.checks import Extent, Name
from provla.core.types import Tokens
from provla.vision.parts import Pixels, Processor, flatten, image_processor


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
        source = Source(
            architecture, name, revision, config, pretrained, layer, dtype, gradient_checkpointing, files, key
        )
        options = {"vision_use_head": pool == "pooler"} if architecture.startswith("Siglip") else {}
        super().__init__(source, source.load(**options), image_processor(source, processor))
        self.width: int = self.model.config.hidden_size
        self._pool = pool
        self._pixels = Pixels(self._processor, input_size)
        self._extra = _prefix_tokens(self.model)
        native = self.model.config.image_size
        resized = (
            self._pixels.size != (native, native)
            and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        )
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        self.view = nn.Parameter(torch.zeros(num_images, 1, self.width))

    def forward(self, images: Tensor) -> Tokens:
        pixels = self._pixels(flatten(images)).to(self.model.dtype)
        found = self.model(pixel_values=pixels, **self._options)
        if self._pool == "pooler":
            features = found.pooler_output.unsqueeze(1)
        else:
            features = found.last_hidden_state[:, self._extra :]  # (B·T·C, N, D)
            features = features.mean(1, keepdim=True) if self._pool == "mean" else features
        views = features.to(self.view.dtype).unflatten(0, (len(images), -1)) + self.view
        return Tokens.full(views.flatten(1, 2))


def _prefix_tokens(model: Any) -> int:
    """How many tokens stand before the patches: a class token, registers."""
    embeddings = getattr(model, "embeddings", None) or model.vision_model.embeddings
    registers = getattr(model.config, "num_register_tokens", 0)
    return int(
        any(name in ("cls_token", "class_embedding") for name, _ in embeddings.named_parameters(recurse=False))
    ) + int(registers)
