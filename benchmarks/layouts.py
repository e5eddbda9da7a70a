"""Convolutions of pictures, as provla lays them out, against channels last: python benchmarks/layouts.py

Forward and backward of a vision encoder alone, on two threads as in a run: the default's, and ResNet-18. Features are
equal to 1e-3, or nothing is measured. Prints lines of JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from arms import BATCH, SPEC, policy_of
from hydra import initialize_config_dir
from torch import Tensor, nn
from turns import in_turns

from provla.command.entry import ROOT
from provla.core.machine import reproducible
from provla.core.types import Images, fake_batch

LAST = torch.channels_last


def step_of(vision: nn.Module, images: Images) -> Callable[[], Tensor]:
    def step() -> Tensor:
        vision.zero_grad()
        features: Tensor = vision(images).features
        features.square().mean().backward()
        return features.detach()

    return step


def last_of(vision: nn.Module) -> nn.Module:
    """The same encoder, whose convolutions are given channels last, and pass them on."""
    other = deepcopy(vision).to(memory_format=LAST)  # type: ignore[call-overload]
    first = next(module for module in other.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: (given[0].contiguous(memory_format=LAST),))
    return other


if __name__ == "__main__":
    images = fake_batch(SPEC, BATCH).observation.images
    with initialize_config_dir(str(ROOT / "conf"), version_base=None), reproducible(2, torch.device("cpu"), False):
        for name in ("conv_small", "resnet18"):
            torch.manual_seed(0)
            vision = policy_of(f"vision={name}").vision.train()
            ours, theirs = step_of(vision, images), step_of(last_of(vision), images)
            torch.testing.assert_close(ours(), theirs(), atol=1e-3, rtol=1e-3)
            in_turns(f"vision={name}, step of {BATCH}", "channels last", ours, theirs, rounds=8)
