"""Several vision encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from provla.core.build import build, check_node
from provla.core.cameras import Images, ImageSize, count, each
from provla.core.types import Tokens
from provla.vision.parts import encoded


class SideBySide(nn.Module):
    """Several towers that cut an image into the same number of patches; their features side by side, token by token.

    As in Prismatic VLMs (Karamcheti et al. 2024, arXiv:2402.07865) and OpenVLA. towers: name → node of an `ImageTower`.
    """

    many_sizes = True

    def __init__(
        self,
        num_images: int,
        image_size: ImageSize,
        towers: Mapping[str, Mapping[str, Any]],
        pretrained: bool = True,
        key: str = "vision",
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleDict()
        for name, node in towers.items():
            where = f"{key}.towers.{name}"
            self.towers[name] = build(_tower(node), where, nn.Module, key=where)(
                num_images=num_images, image_size=image_size
            )
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

    def forward(self, images: Images) -> Tokens:
        return self.assemble(encoded(images, self.encode), count(images))

    def encode(self, pictures: Tensor) -> Tensor:
        """(M,3,h,w) uint8 → (M,N,D)."""
        found = {name: tower.encode(pictures) for name, tower in self.towers.items()}  # type: ignore[operator]
        counts = {name: int(features.shape[1]) for name, features in found.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"vision.towers give different numbers of tokens, {counts}; change an input_size so that they agree"
            )
        return torch.cat(list(found.values()), -1)

    def assemble(self, encoded: Images, samples: int) -> Tokens:
        """What `encode` gave for the samples' pictures, or for each camera's, as their tokens."""
        found, first = [], 0
        for tower in self.towers.values():
            own = slice(first, first + int(tower.width))  # type: ignore[arg-type]
            first = own.stop
            mine = each(encoded, lambda one, own=own: one[..., own])  # type: ignore[misc]
            found.append(tower.assemble(mine, samples).features)  # type: ignore[operator]
        return Tokens.full(torch.cat(found, -1))


def _tower(node: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's node without a way to adapt or quantise it: there is one for all, the part's."""
    return {key: value for key, value in node.items() if key not in ("adapter", "quant")}
