"""Gymnasium's environments as worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.checks import Count, Depth, Name, Natural, Steps
from provla.core.world import Embodiment, Vector
from provla.env.suite import TaskSuite

Array = NDArray[Any]


class GymWorld:
    """One gymnasium environment; see `GymSuite` for the keys. Its pictures come with every step, looked at or not."""

    def __init__(
        self,
        id: str,
        kwargs: Mapping[str, Any],
        pixels: str,
        state: str,
        camera: str,
        success: str | None,
        success_reward: float | None,
    ) -> None:
        import gymnasium

        try:
            self._env = gymnasium.make(id, **kwargs)
        except gymnasium.error.Error as error:
            raise ValueError(f"env.id={id!r}: {error}") from error
        except (TypeError, ModuleNotFoundError) as error:
            raise ValueError(f"env.id={id!r} with env.kwargs={dict(kwargs)}: {error}") from error
        self._id, self._pixels, self._state, self._camera = id, pixels, state, camera
        self._success_key, self._enough = success, success_reward
        self.embodiment = self._embodiment()
        self._success = self._ended = False

    def _embodiment(self) -> Embodiment:
        space, action = self._env.observation_space, self._env.action_space
        parts = dict(getattr(space, "spaces", None) or {})
        for key, name in (("pixels", self._pixels), ("state", self._state)):
            if name not in parts:
                has = f"it has: {', '.join(sorted(parts))}" if parts else f"they are {space}, no dictionary"
                raise ValueError(
                    f"env.{key}={name!r} is not in the observations of {self._id}; {has}. env.kwargs may ask for more "
                    "(obs_type=pixels_agent_pos, say)"
                )
        pictures = getattr(parts[self._pixels], "spaces", None) or {self._camera: parts[self._pixels]}
        shapes = {camera: tuple(box.shape) for camera, box in pictures.items()}
        odd = [f"{camera} {shape}" for camera, shape in shapes.items() if len(shape) != 3 or shape[2] != 3]
        if odd:
            raise ValueError(f"env.pixels={self._pixels!r} of {self._id}: expected (h, w, 3), found {', '.join(odd)}")
        if getattr(action, "shape", None) is None or len(action.shape) != 1 or not hasattr(action, "low"):
            raise ValueError(f"the actions of {self._id} are {action}; expected a vector of numbers (a Box)")
        fps = self._env.metadata.get("render_fps")
        if not fps:
            raise ValueError(f"{self._id} does not say how fast it runs: its metadata has no render_fps")
        state = parts[self._state]
        return Embodiment(
            {camera: (int(shape[0]), int(shape[1])) for camera, shape in shapes.items()},
            _vector("state", state),
            _vector("action", action),
            float(fps),
        )

    def reset(self, seed: int) -> None:
        self._seen, _ = self._env.reset(seed=seed)
        self._success = self._ended = False

    def step(self, action: Array) -> None:
        self._seen, reward, terminated, truncated, info = self._env.step(np.asarray(action, np.float32))
        self._ended = bool(terminated or truncated)
        if self._enough is not None:
            self._success = float(reward) >= self._enough
        elif self._success_key in info:
            self._success = bool(info[self._success_key])
        else:
            raise ValueError(
                f"env.success={self._success_key!r} is not in the info of {self._id}; it has: "
                f"{', '.join(info) or 'nothing'}. Name another, or give env.success_reward"
            )

    def success(self) -> bool:
        return self._success

    def over(self) -> bool:
        return self._ended

    def state(self) -> Array:
        return np.asarray(self._seen[self._state], np.float32).ravel()

    def images(self) -> dict[str, Array]:
        found = self._seen[self._pixels]
        return dict(found) if isinstance(found, Mapping) else {self._camera: found}

    def close(self) -> None:
        self._env.close()


def _vector(name: str, box: Any) -> Vector:
    """The numbers of a Box; gymnasium gives them no names."""
    low, high = (tuple(map(float, np.ravel(end))) for end in (box.low, box.high))
    return Vector(tuple(f"{name}{i}" for i in range(len(low))), low, high)


@dataclass(kw_only=True, eq=False)
class GymSuite(TaskSuite):
    """`env=gym env.id=<id>`: any gymnasium environment whose observation is a dictionary with pictures and a state.

    id: as registered, or `<module>:<id>` where the module registers it. kwargs: of `gymnasium.make`. pixels, state:
    their keys in the observation; pixels may be a picture, then called `camera`, or a dictionary of them. success: the
    key of `info` that says whether the task is done; success_reward: the reward that says so instead. instruction: the
    sentence that a policy is told. Other keys: see `TaskSuite`.
    """

    id: Name
    instruction: Name
    kwargs: Mapping[str, Any] | None = None
    pixels: Name = "pixels"
    state: Name = "agent_pos"
    camera: Name = "camera"
    success: Name | None = "is_success"
    success_reward: float | None = None
    first_seed: Natural = 100_000
    num_envs: Depth = 10
    max_episode_steps: Steps = 300
    videos_per_task: Natural = 3
    video_stride: Count = 4

    def __post_init__(self) -> None:
        if self.success is None and self.success_reward is None:
            raise ValueError("env.success=null: give env.success (a key of info) or env.success_reward (a number)")
        super().__post_init__()

    @property
    def sentences(self) -> dict[str, str]:
        return {self.id.rpartition("/")[2].rpartition(":")[2]: self.instruction}

    @cached_property
    def embodiment(self) -> Embodiment:
        world = self.make("")
        world.close()
        return world.embodiment

    def make(self, task: str) -> GymWorld:
        keys = self.pixels, self.state, self.camera, self.success, self.success_reward
        return GymWorld(self.id, self.kwargs or {}, *keys)
