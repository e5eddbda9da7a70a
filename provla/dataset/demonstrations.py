"""Demonstrations as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.dataset.cache import Frames

Array = NDArray[Any]


@dataclass(frozen=True)
class Demonstrations:
    """Whole data set as arrays; row i is one control step.

    frames: camera → (N,3,h,w) uint8; state (N,S), actions (N,A) float32; starts (E+1,): episode e is rows
    starts[e] … starts[e+1]-1; task (E,): index into `instructions` of each episode's first row; row_task (N,): of each
    row, None where no episode changes its task. skipped: what is wrong with the episodes that were left out.
    """

    frames: Mapping[str, Frames]
    state: Array
    actions: Array
    starts: Array
    task: Array
    instructions: list[str]
    joint_names: list[str]
    joint_groups: dict[str, list[int]]
    fps: float
    source: str
    row_task: Array | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def image_size(self) -> tuple[int, int]:
        h, w = next(iter(self.frames.values())).shape[-2:]
        return int(h), int(w)

    def rows(self, episodes: Array) -> Array:
        """All rows of the given episodes, in order."""
        return np.concatenate([np.arange(0), *(np.arange(self.starts[e], self.starts[e + 1]) for e in episodes)])

    def split(self, val_fraction: float, seed: int) -> tuple[Array, Array]:
        """Training and validation episodes, sorted. Whole episodes, stratified by task: at least one of every task that
        has two.
        """
        val: list[int] = []
        for task in range(len(self.instructions)):
            episodes = np.flatnonzero(self.task == task)
            count = min(max(1, round(val_fraction * len(episodes))), len(episodes) - 1) if val_fraction else 0
            val.extend(np.random.default_rng([seed, task]).permutation(episodes)[: max(count, 0)])
        chosen = np.array(sorted(val), dtype=np.int64)
        return np.setdiff1d(np.arange(len(self.task)), chosen), chosen
