"""Worlds for tests and for benchmarks/faults. Nothing heavy is imported here: every world's process imports
this file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.world import Embodiment, Episode, Vector
from provla.env.metaworld import MetaworldSuite, MetaworldTask

Array = NDArray[Any]


def misbehave(kind: str) -> None:
    """Does what worlds do on bad days."""
    if kind == "raise":
        raise RuntimeError("the gripper\nfell off")
    if kind == "sys.exit":
        sys.exit(3)
    if kind == "os._exit":
        print("license expired", file=sys.stderr, flush=True)
        os._exit(3)
    if kind == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        time.sleep(1000)
    if kind == "hang in C":  # with the interpreter's lock held: no other thread of the process runs
        ctypes.PyDLL(None).sleep(1000)


class ToyWorld:
    """A point on a line that is to reach 1. State: position, seed and steps; the picture is as bright as the
    position.
    """

    embodiment = Embodiment({"eye": (16, 16)}, Vector(["x", "seed", "steps"]), Vector(["left", "right"]), 10)

    def __init__(self, faults: dict[int, tuple[str, int]]) -> None:
        self.faults = faults

    def reset(self, seed: int) -> None:
        self.seed, self.steps, self.position = seed, 0, float(np.random.default_rng(seed).uniform(-1, 0))
        self._bad_day(0)

    def step(self, action: Array) -> None:
        self.steps += 1
        self._bad_day(self.steps)
        self.position += 0.1 * float(action.mean())

    def success(self) -> bool:
        return self.position > 1

    def state(self) -> Array:
        return np.array([self.position, self.seed, self.steps], np.float32)

    def images(self) -> dict[str, Array]:
        level = 0 if np.isnan(self.position) else int(np.clip(100 + 100 * self.position, 0, 255))
        size = 8 if self.faults.get(self.seed, ("", -1)) == ("shape", self.steps) else 16
        return {"eye": np.full((size, size, 3), level, np.uint8)}

    def frame(self) -> Array:
        return np.full((16, 16, 3), self.steps, np.uint8)

    def _bad_day(self, step: int) -> None:
        kind, when = self.faults.get(self.seed, ("", -1))
        if when == step:
            misbehave(kind)
            if kind == "nan":
                self.position = float("nan")
        if kind == "noise":
            os.write(1, b"physics is hard\n" * 100_000)


class ToySuite:
    """faults: episode seed → what goes wrong and at which control step; 0 is the reset."""

    embodiment = ToyWorld.embodiment
    max_episode_steps, video_stride = 24, 1

    def __init__(
        self,
        faults: dict[int, tuple[str, int]],
        tasks: tuple[str, ...] = ("left", "right"),
        each: int = 4,
        num_envs: int = 4,
        workers: int = 2,
        timeout: float = 5,
    ) -> None:
        self.faults, self.num_envs, self.workers, self.timeout = faults, num_envs, workers, timeout
        self.episodes = [
            Episode(task, f"go {task}", 100 * t + i, 1) for t, task in enumerate(tasks) for i in range(each)
        ]

    def make(self, task: str) -> Any:
        return ToyWorld(self.faults)


class Blind(ToySuite):
    """Its worlds lack what a policy looks at."""

    def make(self, task: str) -> Any:
        world = super().make(task)
        world.images = lambda: world.pictures()
        return world


class SelfDriving(MetaworldTask):
    """The scripted expert drives; the action that is asked for is a small disturbance."""

    def step(self, action: Array) -> None:
        super().step(self.expert() + 0.02 * action)


class SelfDrivingSuite(MetaworldSuite):
    def make(self, task: str) -> SelfDriving:
        return SelfDriving(task, self.cameras, self.image_size, self.video_size)


class Frames(list[dict[str, Any]]):
    """What LeRobot's data set is to a recording."""

    stored = 0

    add_frame, clear_episode_buffer = list.append, list.clear

    def save_episode(self) -> None:
        self.stored += 1
