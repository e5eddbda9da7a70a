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

from provla.env.chunk import ChunkEnv
from provla.env.episode import Episode
from provla.env.metaworld import MetaworldEnv, MetaworldExpert, MetaworldSuite

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

    def __init__(self, task: str, n_obs_steps: int, suite: ToySuite) -> None:
        self.task, self.n_obs_steps, self.suite = task, n_obs_steps, suite
        self.film = 0

    def reset(self, *, seed: int) -> tuple[dict[str, Array], dict[str, Any]]:
        self.seed, self.steps, self.position = seed, 0, float(np.random.default_rng(seed).uniform(-1, 0))
        self._bad_day(0)
        return self._see(), self._info(False)

    def step(self, chunk: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        for action in chunk:
            self.steps += 1
            self._bad_day(self.steps)
            self.position += 0.1 * float(action.mean())
            if (success := self.position > 1) or self.steps >= self.suite.limit:
                break
        return self._see(), 0.0, success, self.steps >= self.suite.limit and not success, self._info(success)

    def close(self) -> None: ...

    def _bad_day(self, step: int) -> None:
        kind, when = self.suite.faults.get(self.seed, ("", -1))
        if when == step:
            misbehave(kind)
            if kind == "nan":
                self.position = float("nan")
        if kind == "noise":
            os.write(1, b"physics is hard\n" * 100_000)

    def _see(self) -> dict[str, Array]:
        state = np.array([self.position, self.seed, self.steps], np.float32)
        level = 0 if np.isnan(self.position) else int(np.clip(100 + 100 * self.position, 0, 255))
        size = 8 if self.suite.faults.get(self.seed, ("", -1)) == ("shape", self.steps) else 16
        return {
            "state": np.stack([state] * self.n_obs_steps),
            "images": np.full((self.n_obs_steps, 1, size, size, 3), level, np.uint8),
        }

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "success": success,
            "steps": self.steps,
            "frames": [np.full((16, 16, 3), self.steps, np.uint8)] if self.film else [],
        }


class ToySuite:
    """faults: episode seed → what goes wrong and at which control step; 0 is the reset."""

    cameras = ("eye",)
    image_size, state_size, action_size, video_stride = 16, 3, 2, 1

    def __init__(
        self,
        faults: dict[int, tuple[str, int]],
        tasks: tuple[str, ...] = ("left", "right"),
        each: int = 4,
        num_envs: int = 4,
        workers: int = 2,
        timeout: float = 5,
    ) -> None:
        self.faults, self.tasks, self.num_envs, self.workers, self.timeout, self.limit = (
            faults,
            list(tasks),
            num_envs,
            workers,
            timeout,
            24,
        )
        self.episodes = [
            Episode(task, f"go {task}", 100 * t + i, 1) for t, task in enumerate(tasks) for i in range(each)
        ]

    def check(self) -> None: ...

    def make(self, task: str, n_obs_steps: int, n_action_steps: int) -> Any:
        return ToyWorld(task, n_obs_steps, self)


class Blind(ToySuite):
    """Its worlds lack what a policy looks at."""

    def make(self, task: str, n_obs_steps: int, n_action_steps: int) -> Any:
        world = super().make(task, n_obs_steps, n_action_steps)
        world._see = lambda: world.images()
        return world


class SelfDriving(MetaworldEnv):
    """The scripted expert drives; the action that is asked for is a small disturbance."""

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return super().step(self.expert(self) + 0.02 * action)


class SelfDrivingSuite(MetaworldSuite):
    def make(self, task: str, n_obs_steps: int, n_action_steps: int) -> ChunkEnv:
        world = SelfDriving(task, self.cameras, self.image_size, self.video_size)
        world.expert = MetaworldExpert(task)
        return ChunkEnv(world, n_obs_steps, n_action_steps, self.max_episode_steps)
