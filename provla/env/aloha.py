"""gym-aloha's two-armed tasks (Zhao et al. 2023, arXiv:2304.13705), for closed-loop evaluation and for demonstrations.

MuJoCo alone plays them, with gym-aloha's files: its own environment renders three large pictures at every step, asked
or not. The physics is the same to the bit, which a test holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provla.core.world import Embodiment, Vector
from provla.env.aloha_expert import ARMS, PLANS, START, AlohaExpert
from provla.env.mujoco import Eyes, unstable
from provla.env.perturb import outside
from provla.env.shipped import ShippedSuite, named_tasks

Array = NDArray[Any]

FPS, SUBSTEPS = 50, 10  # control steps a second, and steps of physics in each
HELD = 10  # control steps in a row that a task has to be done: in 0.2 s what nobody holds falls by 20 cm
CRASH = 50.0  # newton between the arms: a hand that brushes the other one stays below 40
CLOSED, OPEN = 0.01844, 0.058  # of a finger, metres: 0 and 1 of a gripper's state and action
LIMITS = {  # of an arm's joints, radians
    "waist": (-3.14158, 3.14158),
    "shoulder": (-1.85005, 1.25664),
    "elbow": (-1.76278, 1.6057),
    "forearm_roll": (-3.14158, 3.14158),
    "wrist_angle": (-1.8675, 2.23402),
    "wrist_rotate": (-3.14158, 3.14158),
    "gripper": (0, 1),
}
JOINTS = tuple(f"{arm}_{joint}" for arm in ARMS for joint in LIMITS)  # as LeRobot's data sets of this robot name them

type Touch = Callable[[str, str], bool]  # whether two geometries touch now


@dataclass
class Course:
    """What has been seen of an episode. lenient: gym-aloha's rule has been met, at any step. lifted: the first hand has
    held the thing above the table. streak: control steps in a row, up to now, in which the task was done.
    """

    lenient: bool = False
    lifted: bool = False
    streak: int = 0


def fingers(arm: str) -> list[str]:
    return [f"vx300s_{arm}/10_{side}_gripper_finger" for side in ("left", "right")]


def transferred(touch: Touch, data: Any, course: Course) -> bool:
    """Whether the left hand alone holds the cube, with both fingers and above the table, after the right one did.

    gym-aloha's rule is content with one finger of the left hand at the lifted cube.
    """
    left, right = ([touch("red_box", finger) for finger in fingers(arm)] for arm in ("left", "right"))
    lifted = not touch("red_box", "table")
    course.lenient |= lifted and left[0]
    course.lifted |= lifted and all(right)
    return course.lifted and lifted and all(left) and not any(right)


def inserted(touch: Touch, data: Any, course: Course) -> bool:
    """Whether an end of the peg is 15 mm or more inside the socket, each held by both fingers of its hand and above the
    table, after the peg has met the pin, which is 20 mm inside.

    gym-aloha's rule is content with the peg at the pin, for one step.
    """
    walls = [f"socket-{side}" for side in (1, 2, 3, 4)]
    course.lenient |= touch("red_peg", "pin")
    lifted = not any(touch(thing, "table") for thing in ("red_peg", *walls))
    held = all(touch("red_peg", finger) for finger in fingers("right")) and all(
        any(touch(wall, finger) for wall in walls) for finger in fingers("left")
    )
    peg, socket = data.body("peg"), data.body("socket")
    ends = peg.xpos + np.outer((-0.06, 0.06), peg.xmat.reshape(3, 3)[:, 0])
    inside = np.abs((ends - socket.xpos) @ socket.xmat.reshape(3, 3)) < (0.045, 0.018, 0.018)
    return course.lenient and lifted and held and bool(inside.all(axis=1).any())


class Scene(NamedTuple):
    """A task. things: bodies that lie on the table, each with the corners (x, y) of the place that it is drawn from, in
    metres. done: whether the task is done now; it keeps the course.
    """

    file: str
    instruction: str
    things: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]
    done: Callable[[Touch, Any, Course], bool]


SCENES = {  # instructions as in LeRobot's data sets of these tasks, so that policies are exchangeable
    "transfer_cube": Scene(
        "bimanual_viperx_transfer_cube.xml",
        "Pick up the cube with the right arm and transfer it to the left arm.",
        {"box": ((0.0, 0.4), (0.2, 0.6))},
        transferred,
    ),
    "insertion": Scene(
        "bimanual_viperx_insertion.xml",
        "Insert the peg into the socket.",
        {"peg": ((0.1, 0.4), (0.2, 0.6)), "socket": ((-0.2, 0.4), (-0.1, 0.6))},
        inserted,
    ),
}


def aloha_tasks(asked: str | Sequence[str], key: str = "env.tasks") -> tuple[str, ...]:
    """See `named_tasks`."""
    return named_tasks(asked, key, "gym-aloha has no task {!r}".format, list(SCENES))


def aloha_assets() -> Path:
    """The folder of gym-aloha's models, without importing it, which takes seconds; `ValueError` that says what to
    install where it is missing.
    """
    found = find_spec("gym_aloha")
    if found is None or not found.submodule_search_locations:
        raise ValueError("gym_aloha is not installed; pip install 'provla[aloha]'")
    return Path(found.submodule_search_locations[0]) / "assets"


def aloha_embodiment(cameras: Sequence[str], image_size: int) -> Embodiment:
    """Angles of both arms' six joints in radians, each arm's followed by its gripper, from 0 (closed) to 1 (open)."""
    low, high = zip(*LIMITS.values(), strict=True)
    return Embodiment(
        dict.fromkeys(cameras, (image_size, image_size)), Vector(JOINTS), Vector(JOINTS, low * 2, high * 2), FPS
    )


def mount(model: Any, data: Any) -> None:
    """Screws the wrist cameras to the wrists. In gym-aloha's files, whose environment does not use them, they keep the
    horizon level, so that the picture spins while they look straight down, as they do at what the hand picks up.
    """
    import mujoco

    mujoco.mj_resetData(model, data)
    mujoco.mj_forward(model, data)  # stretched out, hands level: the picture that stays
    for arm in ARMS:
        camera, hand = model.camera(f"{arm}_wrist"), data.body(f"vx300s_{arm}/gripper_link")
        turn = hand.xmat.reshape(3, 3).T @ data.camera(f"{arm}_wrist").xmat.reshape(3, 3)
        mujoco.mju_mat2Quat(camera.quat, turn.ravel())
        camera.mode[:] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED


def halved(picture: Array) -> Array:
    """(2h, 2w, 3) uint8 → (h, w, 3), each pixel the mean of four. From above the cube is two pixels wide at 64; drawn
    so, it shows where it lies to 2 mm instead of 3, and costs nothing: in software the many corners of the arms do.
    """
    h, w = picture.shape[0] // 2, picture.shape[1] // 2
    sums: Array = picture.reshape(h, 2, w, 2, 3).sum(axis=(1, 3), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


class AlohaTask:
    """One of gym-aloha's tasks, as a world. State and action: see `aloha_embodiment`, (14,) float32; an action is where
    the joints are to go. The initial state depends on the seed given to `reset` alone, as gym-aloha's does.

    Success is strict: the task has been done for `HELD` control steps in a row (`transferred`, `inserted`).
    """

    beyond = 0.0  # see `interfaces.World`
    step_size = np.array([*(0.1,) * 6, 0.2] * 2)  # about the fastest that the expert moves

    def __init__(self, task: str, cameras: Sequence[str], image_size: int, video_size: int = 240) -> None:
        import mujoco

        self.task, self.cameras, self._scene = task, tuple(cameras), SCENES[task]
        self.instruction = self._scene.instruction
        self.embodiment = aloha_embodiment(cameras, image_size)
        self._model = mujoco.MjModel.from_xml_path(str(aloha_assets() / self._scene.file))
        self._data = mujoco.MjData(self._model)
        mount(self._model, self._data)
        self._names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._arm_of = [name.partition("/")[0] if "/" in name else "" for name in self._names]
        self._image_size, self._video_size = image_size, video_size
        self.eyes = Eyes(self._model, self._data, sites=False)

    def reset(self, seed: int) -> None:
        import mujoco

        low, high = (np.concatenate([(*box[end], 0.05) for box in self._scene.things.values()]) for end in (0, 1))
        drawn = np.random.RandomState(seed).uniform(low, high)  # as gym-aloha draws it
        if self.beyond:
            drawn = outside(np.random.default_rng(seed), low, high, self.beyond)
        self._poses = [np.array([*place, 1, 0, 0, 0]) for place in drawn.reshape(-1, 3)]
        # As gym-aloha begins, with every pass that it makes: the solver starts each step from what it last found.
        off = int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        self._model.opt.disableflags |= off
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_forward(self._model, self._data)
        self._data.qpos[:] = np.concatenate([START, START, *self._poses])
        self._data.ctrl[:] = START * 2
        for _ in range(2):
            mujoco.mj_forward(self._model, self._data)
        self._model.opt.disableflags &= ~off
        self._steps, self._crashed, self._course = 0, False, Course()
        self._expert: AlohaExpert | None = None

    def step(self, action: Array) -> None:
        import mujoco

        ctrl = np.asarray(action).reshape(2, 7)  # gym-aloha too computes in float32 where it is given that
        finger = ctrl[:, 6:] * (OPEN - CLOSED) + CLOSED
        self._data.ctrl[:] = np.hstack([ctrl[:, :6], finger, -finger]).ravel()
        # In this order places and contacts are those of the step's end. Forces are known just before it.
        mujoco.mj_step2(self._model, self._data)
        mujoco.mj_step(self._model, self._data, SUBSTEPS - 1)
        self._crashed |= self._pressed() > CRASH
        mujoco.mj_step1(self._model, self._data)
        self._steps += 1
        touching = {frozenset((self._names[a], self._names[b])) for a, b in self._data.contact.geom.tolist()}
        done = self._scene.done(lambda a, b: frozenset((a, b)) in touching, self._data, self._course)
        self._course.streak = self._course.streak + 1 if done else 0

    def _pressed(self) -> float:
        """The force between the two arms, newton."""
        import mujoco

        total, force = 0.0, np.zeros(6)
        for i, (a, b) in enumerate(self._data.contact.geom.tolist()):
            if self._arm_of[a] and self._arm_of[b] and self._arm_of[a] != self._arm_of[b]:
                mujoco.mj_contactForce(self._model, self._data, i, force)
                total += force[0]
        return total

    def success(self) -> bool:
        return self._course.streak >= HELD

    def rules(self) -> dict[str, bool]:
        """gym_aloha: its own, lenient rule (a reward of 4) has been met, at any step so far."""
        return {"gym_aloha": self._course.lenient}

    def over(self) -> str:
        """unsafe: something fell off the table, the arms crashed, or the physics is no more."""
        fallen = any(self._data.body(thing).xpos[2] < -0.05 for thing in self._scene.things)
        return "unsafe" if fallen or self._crashed or unstable(self._data) else ""

    def state(self) -> Array:
        joints = self._data.qpos[:16].reshape(2, 8)[:, :7].copy()
        joints[:, 6] = (joints[:, 6] - CLOSED) / (OPEN - CLOSED)
        found: Array = joints.ravel().astype(np.float32)
        return found

    def images(self) -> dict[str, Array]:
        return {camera: halved(self.eyes.see(camera, (2 * self._image_size,) * 2)) for camera in self.cameras}

    def frame(self) -> Array:
        return self.eyes.see(self.cameras[0], (self._video_size,) * 2)

    def expert(self) -> Array:
        """A scripted expert, (14,) float32. It knows where things were laid, and feels how they slip, which no policy
        does.
        """
        if self._expert is None:
            self._expert = AlohaExpert(self._model, PLANS[self.task](*self._poses))
        return self._expert.act(self._data, self._steps)

    def close(self) -> None:
        self.eyes.close()


@dataclass(kw_only=True, eq=False)
class AlohaSuite(ShippedSuite):
    """`env=aloha_sim`. tasks: transfer_cube, insertion. cameras: top, left_wrist, right_wrist, angle, left_pillar,
    right_pillar, front_close. Other keys: see `ShippedSuite`.
    """

    @property
    def sentences(self) -> dict[str, str]:
        return {task: SCENES[task].instruction for task in aloha_tasks(self.tasks)}

    @property
    def embodiment(self) -> Embodiment:
        return aloha_embodiment(self.cameras, self.image_size)

    def make(self, task: str) -> AlohaTask:
        return AlohaTask(task, self.cameras, self.image_size, self.video_size)
