"""Demonstrations as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.cameras import ImageSize, Size, shared
from provla.core.checks import shown
from provla.dataset.joined import Pictures

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """How a training goes through pictures that are decoded as it goes; see `provla.dataset.window`.

    blocks: that are open at a time. frames: of an episode that make one, at most. gb: of the ring; None: half as much
    again as the blocks take. workers: threads that decode; None: one for each core.
    """

    blocks: int
    frames: int
    gb: float | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Part:
    """One source's episodes in a mix: those to train on and those held out. weight: its share of the samples, in the
    unit of the others; None: by size. window: see `Demonstrations`.
    """

    weight: float | None
    train: Array
    val: Array
    window: Window | None = None


@dataclass(frozen=True)
class Demonstrations:
    """Whole data set as arrays; row i is one control step.

    frames: camera → (N,3,h,w) uint8, an array or what is indexed like one; state (N,S), actions (N,A) float32; starts
    (E+1,): episode e is rows starts[e] … starts[e+1]-1; task (E,): index into `instructions` of each episode's first
    row; row_task (N,): of each row, None where no episode changes its task. skipped: what is wrong with the episodes
    that were left out. window: where pictures are decoded ahead of a training's steps, which then go in its order.
    state_names: of the state's numbers, empty where nobody knows. recorded: camera → (h, w) of its pictures as stored.
    parts: source → its part, of a mix. per_source: each of them is normalised by statistics of its own. revision: the
    commit on the Hub, where that is known.
    """

    frames: Mapping[str, Pictures]
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
    window: Window | None = None
    state_names: list[str] = field(default_factory=list)
    recorded: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    per_source: bool = False
    revision: str | None = None

    def check(self) -> None:
        """`ValueError` where the arrays are not what is said above; those that a source of one's own returns, say."""
        total = len(self.actions)
        for what, found, expected in (
            ("state", self.state, f"({total}, S) float32"),
            ("actions", self.actions, f"({total}, A) float32"),
        ):
            if found.ndim != 2 or len(found) != total or found.dtype != np.float32:
                raise ValueError(f"{self.source}: {what} is {found.shape} {found.dtype}, expected {expected}")
            if not np.isfinite(found).all():
                row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
                raise ValueError(f"{self.source}: {what} of row {row} is not finite: {found[row]}")
        if not self.frames:
            raise ValueError(f"{self.source}: frames is empty; a policy needs at least one camera")
        for camera, frames in self.frames.items():
            if len(frames.shape) != 4 or tuple(frames.shape[:2]) != (total, 3) or frames.dtype != np.uint8:
                raise ValueError(
                    f"{self.source}: frames of {camera!r} are {tuple(frames.shape)} {frames.dtype}, expected "
                    f"({total}, 3, h, w) uint8"
                )
        starts, task = np.asarray(self.starts), np.asarray(self.task)
        if len(starts) < 2 or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 1).any():
            raise ValueError(
                f"{self.source}: starts is {shown(starts.tolist())}, expected the first row of each episode and at the "
                f"end {total}, ascending from 0"
            )
        tasks = [task, np.asarray(self.row_task)] if self.row_task is not None else [task]
        if len(task) != len(starts) - 1 or any(
            len(one) and not 0 <= one.min() <= one.max() < len(self.instructions) for one in tasks
        ):
            raise ValueError(
                f"{self.source}: task is {shown(task.tolist())}, expected for each of {len(starts) - 1} episodes a "
                f"position among its {len(self.instructions)} instructions"
            )
        if len(self.joint_names) != self.actions.shape[1] or not self.fps > 0:
            raise ValueError(
                f"{self.source}: expected {self.actions.shape[1]} joint_names and fps above 0, found "
                f"{len(self.joint_names)} and {self.fps}"
            )
        if self.state_names and len(self.state_names) != self.state.shape[1]:
            raise ValueError(
                f"{self.source}: expected {self.state.shape[1]} state_names, or none, found {len(self.state_names)}"
            )

    @property
    def sizes(self) -> dict[str, Size]:
        """Camera → (h, w) of its frames."""
        return {camera: (int(frames.shape[2]), int(frames.shape[3])) for camera, frames in self.frames.items()}

    @property
    def image_size(self) -> ImageSize:
        """(h, w) of all cameras; camera → (h, w) where they differ."""
        return shared(self.sizes)

    def rows(self, episodes: Array) -> Array:
        """All rows of the given episodes, in order."""
        return np.concatenate([np.arange(0), *(np.arange(self.starts[e], self.starts[e + 1]) for e in episodes)])

    def split(self, val_fraction: float, seed: int) -> tuple[Array, Array]:
        """Training and validation episodes, sorted. Whole episodes, stratified by task: at least one of every task that
        has two. Of a mix each source has its own.
        """
        if self.parts:
            parts = self.parts.values()
            return np.concatenate([p.train for p in parts]), np.concatenate([p.val for p in parts])
        val: list[int] = []
        for task in range(len(self.instructions)):
            episodes = np.flatnonzero(self.task == task)
            count = min(max(1, round(val_fraction * len(episodes))), len(episodes) - 1) if val_fraction else 0
            val.extend(np.random.default_rng([seed, task]).permutation(episodes)[: max(count, 0)])
        chosen = np.array(sorted(val), dtype=np.int64)
        return np.setdiff1d(np.arange(len(self.task)), chosen), chosen
