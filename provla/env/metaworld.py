"""Meta-World, for closed-loop evaluation and for recording demonstrations.

Pictures are rendered only when somebody asks (`images()`), because in software a frame costs twenty times a physics
step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from provla.core.world import Embodiment, Vector
from provla.env.mujoco import Eyes, unstable
from provla.env.perturb import outside
from provla.env.shipped import ShippedSuite, named_tasks, object_of

Array = NDArray[Any]


METAWORLD_FPS = 80  # control steps per simulated second, as in LeRobot's Meta-World data sets


METAWORLD_JOINTS = ("hand_x", "hand_y", "hand_z", "gripper")


MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)


def _lerobot() -> dict[str, Any]:
    # The file alone: importing lerobot.envs takes seconds.
    found: dict[str, Any] = json.loads((files("lerobot") / "envs" / "metaworld_config.json").read_text())
    return found


@cache
def metaworld_menu() -> dict[str, dict[str, str]]:
    """Task name → instruction and scripted expert, as LeRobot words them (so that policies are exchangeable)."""
    found = _lerobot()
    experts = found["TASK_POLICY_MAPPING"]
    return {
        name.removesuffix("-v3"): {"instruction": text, "expert": experts[name]}
        for name, text in found["TASK_DESCRIPTIONS"].items()
    }


@cache
def metaworld_groups() -> dict[str, tuple[str, ...]]:
    """Groups of tasks as the field has them: by difficulty (Seo et al. 2022, arXiv:2206.14244), the ten of MT10, all
    fifty.
    """
    found = _lerobot()["DIFFICULTY_TO_TASKS"].items()
    levels = {name: tuple(task.removesuffix("-v3") for task in tasks) for name, tasks in found}
    return levels | {"mt10": MT10, "mt50": tuple(sorted(metaworld_menu()))}


def metaworld_tasks(asked: str | Sequence[str], key: str = "env.tasks") -> tuple[str, ...]:
    """See `named_tasks`."""
    return named_tasks(asked, key, "unknown Meta-World task {!r}".format, sorted(metaworld_menu()), metaworld_groups())


def metaworld_instruction(task: str) -> str:
    """The sentence that asks for `task`."""
    return metaworld_menu()[task]["instruction"]


def metaworld_embodiment(cameras: Sequence[str], image_size: int) -> Embodiment:
    """Hand position in metres and gripper opening; hand displacement and gripper effort."""
    return Embodiment(
        dict.fromkeys(cameras, (image_size, image_size)),
        Vector(METAWORLD_JOINTS, (-np.inf, -np.inf, -np.inf, 0), (np.inf, np.inf, np.inf, 1)),
        Vector(METAWORLD_JOINTS, -1, 1),
        METAWORLD_FPS,
    )


@lru_cache(maxsize=8)
def _compiled(path: str) -> Any:
    import mujoco

    return mujoco.MjModel.from_xml_path(path)


def _simulation(sim: Any) -> tuple[Any, Any]:
    """What gymnasium makes a simulation of; a scene is compiled once for its worlds."""
    import mujoco

    model = copy(_compiled(sim.fullpath))
    return model, mujoco.MjData(model)


class MetaworldTask:
    """One Meta-World v3 task (Yu et al. 2019, arXiv:1910.10897), as a world.

    State: hand position in metres and gripper opening in [0, 1], (4,) float32. Action: hand displacement and gripper
    effort in [-1, 1], (4,) float32. The initial state depends on the seed given to `reset` alone. Success is the
    simulator's own verdict on the step.
    """

    marks = True  # a sphere where the goal is
    beyond = 0.0  # how far outside the range of initial states an episode begins, in widths of the range

    def __init__(self, task: str, cameras: Sequence[str], image_size: int, video_size: int = 240) -> None:
        import metaworld.env_dict

        self.task, self.cameras = task, tuple(cameras)
        self.instruction = metaworld_instruction(task)
        self.embodiment = metaworld_embodiment(cameras, image_size)
        with patch("gymnasium.envs.mujoco.MujocoEnv._initialize_simulation", _simulation):
            self._sim = metaworld.env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Instead of `set_task`, which needs 50 pickled goals: the same switches, with the seed as the only source of
        # randomness.
        self._sim._set_task_called = True
        self._sim._freeze_rand_vec = False
        self._sim.seeded_rand_vec = True
        self._sim._partially_observable = False  # the goal: experts of half the tasks need it, and no policy sees it
        self._sim.__dict__.pop("sawyer_observation_space", None)  # its bounds, to which what is seen is clipped
        if "corner2" in self.cameras:  # closer, as LeRobot has it; before the first reset, which places the cameras
            self._sim.model.camera("corner2").pos[:] = [0.75, 0.075, 0.7]
        self._image_size, self._video_size = image_size, video_size
        self.eyes = Eyes(self._sim.model, self._sim.data, turned=("corner2",), sites=self.marks)
        self._expert: Any = None
        self._success = False
        self.full_state: Array = np.zeros(39)

    def reset(self, seed: int) -> None:
        import mujoco

        self._sim.seed(seed)
        self._sim.__dict__.pop("_get_state_rand_vec", None)
        if self.beyond:
            space, draw = self._sim._random_reset_space, self._sim.np_random
            self._sim._get_state_rand_vec = lambda: outside(draw, space.low, space.high, self.beyond)
        self._sim.reset()
        self._place()
        # Some tasks move their objects after the simulator last looked: without this, the first picture and the first
        # state of an episode still show the objects of the episode before.
        mujoco.mj_forward(self._sim.model, self._sim.data)
        now = self._sim._get_curr_obs_combined_no_goal()
        self._sim._prev_obs = now
        self.full_state = np.hstack([now, now, self._sim._get_pos_goal()])
        self._success, self._expert = False, None

    def _place(self) -> None:
        """What a reset does beyond the simulator's own."""

    def step(self, action: Array) -> None:
        self.full_state, _, _, _, info = self._sim.step(np.clip(action, -1, 1))
        self._success = bool(info["success"])

    def success(self) -> bool:
        return self._success

    def state(self) -> Array:
        return self.full_state[:4].astype(np.float32)

    def over(self) -> str:
        return "unsafe" if unstable(self._sim.data) else ""

    def images(self) -> dict[str, Array]:
        return {camera: self.eyes.see(camera, (self._image_size,) * 2) for camera in self.cameras}

    def frame(self) -> Array:
        return self.eyes.see(self.cameras[0], (self._video_size,) * 2)

    def expert(self) -> Array:
        """Meta-World's scripted expert for the task, (4,) float32 in [-1, 1]. It reads the simulator's full state,
        which no policy sees.
        """
        if self._expert is None:
            from metaworld import policies

            self._expert = getattr(policies, metaworld_menu()[self.task]["expert"])()
        with warnings.catch_warnings():  # the experts ask for more than 1 on purpose; the simulator clips
            warnings.simplefilter("ignore")
            action = self._expert.get_action(self.full_state)
        clipped: Array = np.clip(action, -1, 1).astype(np.float32)
        return clipped

    def close(self) -> None:
        self.eyes.close()


@dataclass(kw_only=True, eq=False)
class MetaworldSuite(ShippedSuite):
    """`env=metaworld`. tasks: Meta-World's names without version, or groups (`metaworld_groups`). Other keys: see
    `ShippedSuite`.
    """

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_instruction(task) for task in metaworld_tasks(self.tasks)}

    @property
    def objects(self) -> dict[str, str]:
        return {task: object_of(task) for task in self.sentences}

    @property
    def embodiment(self) -> Embodiment:
        return metaworld_embodiment(self.cameras, self.image_size)

    def make(self, task: str) -> MetaworldTask:
        return MetaworldTask(task, self.cameras, self.image_size, self.video_size)
