"""What a training has come to; its seeds and its accelerator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

PRUNED = "pruned"  # how `Fit.stopped` begins where a pruner ended the training


@dataclass
class Fit:
    """What a training left behind. history: one row per logged step. stopped: why it ended.

    skipped: the steps whose update was left out. due: the validation of this step is still to come. sums, window: of
    the `Gauge`, and the seconds, since the last logged step.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    due: bool = False
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    window: float = 0.0


def make_accelerator(precision: str, device: torch.device) -> Any:
    """accelerate's Accelerator for one run; a process may make several, one after the other, with other settings."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision == "auto":
        precision = "none" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "trainer.precision=fp16 needs a GPU (its loss scaling has no CPU kernels); on the CPU use bf16 or none"
        )
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="no" if precision == "none" else precision, cpu=device.type == "cpu")


def seed_everything(seed: int, *path: int) -> None:
    """python's, numpy's and torch's generators, from the run's seed and where in the run we are."""
    import random

    state = np.random.SeedSequence([seed, *path]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))
