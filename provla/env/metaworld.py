"""Meta-World, for closed-loop evaluation and for recording demonstrations.

Pictures are rendered only when somebody asks (`images()`), because in software a frame costs twenty times a physics
step.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.checks import Edge, Names

if sys.platform == "linux":  # mujoco reads both when first imported; its own default wants a display
    os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
from provla.core.world import Embodiment, Vector
from provla.env.suite import TaskSuite

Array = NDArray[Any]


METAWORLD_FPS = 80  # control steps per simulated second, as in LeRobot's Meta-World data sets


METAWORLD_JOINTS = ("hand_x", "hand_y", "hand_z", "gripper")


@cache
def metaworld_menu() -> dict[str, dict[str, str]]:
    """Task name → instruction and scripted expert, as LeRobot words them (so that policies are exchangeable)."""
    # The file alone: importing lerobot.envs takes seconds.
    found = json.loads((files("lerobot") / "envs" / "metaworld_config.json").read_text())
    experts = found["TASK_POLICY_MAPPING"]
    return {
        name.removesuffix("-v3"): {"instruction": text, "expert": experts[name]}
        for name, text in found["TASK_DESCRIPTIONS"].items()
    }


def metaworld_instruction(task: str) -> str:
    """The sentence that names `task`; `ValueError` with the valid names for an unknown one."""
    menu = metaworld_menu()
    if task not in menu:
        raise ValueError(f"unknown Meta-World task {task!r}; valid: {', '.join(sorted(menu))}")
    return menu[task]["instruction"]


def require_opengl() -> None:
    """`ValueError` that says what to install when nothing can be rendered off screen."""
    try:
        import mujoco

        camera = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
        camera.render()
        camera.close()
    except Exception as error:
        raise ValueError(
            f"no OpenGL for off-screen rendering (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {error}\n"
            "Install it (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with MUJOCO_GL=osmesa), "
            "or train without simulation: env=none with a data set on disk."
        ) from error


class Camera:
    """An off-screen renderer with everything off that is slow in software: shadows, reflections, multisampling.

    The buffer has the image's own size. The picture of `corner2` hangs upside down and is turned.
    """

    def __init__(self, model: Any, name: str, size: int) -> None:
        import mujoco

        names = [model.camera(i).name for i in range(model.ncam)]
        if name not in names:
            raise ValueError(f"no camera {name!r} in this simulation; valid: {', '.join(names)}")
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._name = name
        self._renderer = mujoco.Renderer(model, size, size, max_geom=1000)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def __call__(self, data: Any) -> Array:
        """(size, size, 3) uint8."""
        self._renderer.update_scene(data, camera=self._name)
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if self._name == "corner2" else image

    def close(self) -> None:
        self._renderer.close()


def metaworld_embodiment(cameras: Sequence[str], image_size: int) -> Embodiment:
    """Hand position in metres and gripper opening; hand displacement and gripper effort."""
    return Embodiment(
        dict.fromkeys(cameras, (image_size, image_size)),
        Vector(METAWORLD_JOINTS, (-np.inf, -np.inf, -np.inf, 0), (np.inf, np.inf, np.inf, 1)),
        Vector(METAWORLD_JOINTS, -1, 1),
        METAWORLD_FPS,
    )


class MetaworldTask:
    """One Meta-World v3 task (Yu et al. 2019, arXiv:1910.10897), as a world.

    State: hand position in metres and gripper opening in [0, 1], (4,) float32. Action: hand displacement and gripper
    effort in [-1, 1], (4,) float32. The initial state depends on the seed given to `reset` alone. Success is the
    simulator's own verdict on the step.
    """

    def __init__(self, task: str, cameras: Sequence[str], image_size: int, video_size: int = 240) -> None:
        import metaworld.env_dict

        self.task, self.cameras = task, tuple(cameras)
        self.instruction = metaworld_instruction(task)
        self.embodiment = metaworld_embodiment(cameras, image_size)
        self._sim = metaworld.env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # Instead of `set_task`, which needs 50 pickled goals: the same switches, with the seed as the only source of
        # randomness.
        self._sim._set_task_called = True
        self._sim._freeze_rand_vec = False
        self._sim.seeded_rand_vec = True
        if "corner2" in self.cameras:  # closer, as LeRobot has it; before the first reset, which places the cameras
            self._sim.model.camera("corner2").pos[:] = [0.75, 0.075, 0.7]
        self._image_size, self._video_size = image_size, video_size
        self._eyes: dict[tuple[str, int], Camera] = {}
        self._expert: Any = None
        self._success = False
        self.full_state: Array = np.zeros(39)

    def reset(self, seed: int) -> None:
        import mujoco

        self._sim.seed(seed)
        self._sim.reset()
        # Some tasks move their objects after the simulator last looked: without this, the first picture and the first
        # state of an episode still show the objects of the episode before.
        mujoco.mj_forward(self._sim.model, self._sim.data)
        now = self._sim._get_curr_obs_combined_no_goal()
        self._sim._prev_obs = now
        self.full_state = np.hstack([now, now, np.zeros(3)])
        self._success, self._expert = False, None

    def step(self, action: Array) -> None:
        self.full_state, _, _, _, info = self._sim.step(np.clip(action, -1, 1))
        self._success = bool(info["success"])

    def success(self) -> bool:
        return self._success

    def state(self) -> Array:
        return self.full_state[:4].astype(np.float32)

    def _see(self, camera: str, size: int) -> Array:
        if (camera, size) not in self._eyes:
            require_opengl()
            self._eyes[camera, size] = Camera(self._sim.model, camera, size)
        return self._eyes[camera, size](self._sim.data)

    def images(self) -> dict[str, Array]:
        return {camera: self._see(camera, self._image_size) for camera in self.cameras}

    def frame(self) -> Array:
        return self._see(self.cameras[0], self._video_size)

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
        for eye in self._eyes.values():
            eye.close()
        self._eyes.clear()


@dataclass(kw_only=True, eq=False)
class MetaworldSuite(TaskSuite):
    """`env=metaworld`. tasks: Meta-World names without version. Other keys: see `TaskSuite`."""

    tasks: Names
    cameras: Names
    image_size: Edge
    video_size: Edge

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_instruction(task) for task in self.tasks}

    @property
    def embodiment(self) -> Embodiment:
        return metaworld_embodiment(self.cameras, self.image_size)

    def check(self) -> None:
        """`ValueError` now rather than after the training: is there OpenGL, is there such a camera?"""
        require_opengl()
        world = MetaworldTask(self.episodes[0].task, self.cameras, 16)
        world.images()
        world.close()

    def make(self, task: str) -> MetaworldTask:
        return MetaworldTask(task, self.cameras, self.image_size, self.video_size)
