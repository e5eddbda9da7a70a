"""OGBench's scene (Park et al. 2025, arXiv:2410.20092): a UR5e before a cube, two buttons, a drawer and a window.

Every goal starts from the same states and the same pictures, so the sentence alone says which it is. Left and right are
those of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provla.core.world import Embodiment, Vector
from provla.env.mujoco import Eyes, unstable
from provla.env.perturb import outside
from provla.env.shipped import ShippedSuite, named_tasks, object_of

Array = NDArray[Any]

OGBENCH_FPS = 20  # control steps per simulated second
HAND = ("hand_x", "hand_y", "hand_z", "hand_yaw_cos", "hand_yaw_sin", "gripper", "touch")
MOVES = ("hand_x", "hand_y", "hand_z", "hand_yaw", "gripper")

DRAWER, WINDOW = 0.16, 0.2  # metres by which they are open at most
NEAR = 0.02  # metres from there, or from shut, at which they count as open or shut; OGBench allows twice as much
ASIDE = 0.07  # metres by which the cube has to be moved; the expert is told to move it by SHIFT
SHIFT = 0.09
RIM = 0.15  # height of the drawer's walls, in metres: the expert lets go of the cube there
# Where an episode begins, in metres and radians. The drawer: open enough for the gripper to let go of the cube in it,
# and shut enough for opening it to be a task. The cube: where no handle stops the hand that holds it, wherever it goes.
# Yaws: so that which way to turn is the same in every episode.
START = {
    "hand_x": (0.375, 0.475),
    "hand_y": (-0.05, 0.05),
    "hand_z": (0.235, 0.315),
    "hand_yaw": (np.pi / 4 - 0.3, np.pi / 4 + 0.3),
    "drawer": (0.09, 0.11),
    "window": (0.08, 0.12),
    "cube_x": (0.40, 0.44),
    "cube_y": (-0.02, 0.06),
    "cube_yaw": (np.pi / 4 - 0.45, np.pi / 4 + 0.45),
}
RAISED = 0.25  # height of the hand, in metres, from which the expert takes up what is second


class Scene(NamedTuple):
    """Where everything is. drawer, window: metres by which they are open. pressed: of the left and the right button,
    whether it was pressed an odd number of times. cube (3,) and handle (3,) of the drawer, in metres; moved: metres by
    which the cube was moved to the right.
    """

    drawer: float
    window: float
    pressed: tuple[bool, bool]
    cube: Array
    handle: Array
    moved: float

    @property
    def in_drawer(self) -> bool:
        """OGBench's own box behind the handle, but below the rim."""
        x, y, z = self.cube - [0.33, self.handle[1] - 0.17, 0.05]
        return bool(abs(x) <= 0.12 and abs(y) <= 0.1 and abs(z) <= 0.05)


@dataclass(frozen=True)
class Goal:
    """One step: what is said, whether it is done, and the goal that is its opposite."""

    sentence: str
    done: Callable[[Scene], bool]
    opposite: str = ""


GOALS = {
    "drawer-open": Goal("open the drawer", lambda now: now.drawer > DRAWER - NEAR, "drawer-close"),
    "drawer-close": Goal("close the drawer", lambda now: now.drawer < NEAR, "drawer-open"),
    "window-open": Goal("open the window", lambda now: now.window > WINDOW - NEAR, "window-close"),
    "window-close": Goal("close the window", lambda now: now.window < NEAR, "window-open"),
    "button-left": Goal("press the left button", lambda now: now.pressed[0], "button-right"),
    "button-right": Goal("press the right button", lambda now: now.pressed[1], "button-left"),
    "cube-left": Goal("move the cube to the left", lambda now: now.moved < -ASIDE and now.cube[2] < 0.03, "cube-right"),
    "cube-right": Goal("move the cube to the right", lambda now: now.moved > ASIDE and now.cube[2] < 0.03, "cube-left"),
    "cube-into-drawer": Goal("put the cube into the drawer", lambda now: now.in_drawer),
}
# A button locks what stands on its side, so that nothing there can be moved after it was pressed.
TWO_STEPS = {
    f"{first}-then-{second}": (first, second)
    for first, second in (
        ("drawer-open", "button-left"),
        ("window-close", "button-right"),
        ("button-left", "window-open"),
        ("button-left", "button-right"),
        ("button-right", "button-left"),
        ("drawer-open", "window-close"),
        ("window-close", "drawer-open"),
        ("cube-into-drawer", "drawer-close"),
    )
}


GROUPS = {"one_step": tuple(GOALS), "two_steps": tuple(TWO_STEPS)}


def ogbench_tasks(asked: str | Sequence[str], key: str = "env.tasks") -> tuple[str, ...]:
    """See `named_tasks`."""
    return named_tasks(asked, key, "OGBench's scene has no goal {!r}".format, [*GOALS, *TWO_STEPS], GROUPS)


def ogbench_steps(task: str) -> tuple[str, ...]:
    """The goals of one step that `task` consists of, in their order."""
    return TWO_STEPS.get(task, (task,))


def ogbench_instruction(task: str) -> str:
    """The sentence that asks for `task`."""
    return ", then ".join(GOALS[step].sentence for step in ogbench_steps(task))


def ogbench_embodiment(cameras: Sequence[str], image_size: int) -> Embodiment:
    """What the robot feels of its hand; and how it moves it."""
    free = (np.inf,) * 3
    return Embodiment(
        dict.fromkeys(cameras, (image_size, image_size)),
        Vector(HAND, (-np.inf, -np.inf, -np.inf, -1, -1, 0, 0), (*free, 1, 1, 1, 1)),
        Vector(MOVES, -1, 1),
        OGBENCH_FPS,
    )


def require_ogbench() -> None:
    """`ValueError` that says how to install what is missing."""
    if missing := [name for name in ("ogbench", "dm_control") if find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{' and '.join(missing)} {verb} not installed; pip install 'provla[ogbench]'")


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Inside, numpy's global generator, which OGBench's experts draw from, begins at `seed`; others find it as it
    was.
    """
    kept = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(kept)


class OgbenchScene:
    """One goal in OGBench's scene, or two, one after the other, as a world.

    State: position of the hand in metres, cosine and sine of its yaw, how far the gripper is closed and how hard it
    touches in [0, 1], (7,) float32. Action: hand displacement (1 is 5 cm), turn (1 is 0.3 rad) and how far to close the
    gripper, in [-1, 1], (5,) float32. The initial state depends on the seed given to `reset` alone: drawer and window
    are half open and not locked, and no goal is reached.

    Of two steps the second counts from when the first is done. `over`: "opposite" once the opposite of the step at hand
    is done, or the second step before the first; "unsafe" where the physics became unstable or the cube left the
    table.
    """

    beyond = 0.0  # see `interfaces.World`: of one of `START`

    def __init__(self, task: str, cameras: Sequence[str], image_size: int, video_size: int = 240) -> None:
        self.task, self.cameras = task, tuple(cameras)
        self.steps = ogbench_steps(task)
        self.instruction = ogbench_instruction(task)
        self.embodiment = ogbench_embodiment(cameras, image_size)
        require_ogbench()
        from ogbench.manipspace.envs.scene_env import SceneEnv

        # Its other mode begins with steps of a generator that nobody seeds. visualize_info draws what is to be done.
        self._sim: Any = SceneEnv("scene", mode="data_collection", visualize_info=False, terminate_at_goal=False)
        self._sim.reset(seed=0)  # compiles the model
        # As in OGBench's own pictures, but the arm is opaque: at 64 pixels nothing is left of a transparent hand.
        for part in ("black", "pad_gray"):
            self._sim.model.material(f"ur5e/robotiq/{part}").rgba = self._sim._colors["purple"]
        self._image_size, self._video_size = image_size, video_size
        self.eyes = Eyes(self._sim.model, self._sim.data)

    def reset(self, seed: int) -> None:
        import mujoco
        from ogbench.manipspace import lie

        sim, model, data = self._sim, self._sim.model, self._sim.data
        rng = np.random.default_rng(seed)
        low, high = np.array(list(START.values())).T
        drawn = outside(rng, low, high, self.beyond) if self.beyond else rng.uniform(low, high)
        at = dict(zip(START, drawn, strict=True))
        mujoco.mj_resetData(model, data)
        hand = lie.SE3.from_rotation_and_translation(
            lie.SO3.from_z_radians(at["hand_yaw"]) @ sim._effector_down_rotation,
            np.array([at["hand_x"], at["hand_y"], at["hand_z"]]),
        )
        arm = hand @ sim._T_pa
        data.qpos[sim._arm_joint_ids] = sim._ik.solve(arm.translation(), arm.rotation().wxyz, sim._home_qpos)
        data.joint("drawer_slide").qpos[0], data.joint("window_slide").qpos[0] = -at["drawer"], at["window"]
        turned = lie.SO3.from_z_radians(at["cube_yaw"]).wxyz
        data.joint("object_joint_0").qpos[:] = [at["cube_x"], at["cube_y"], 0.02, *turned]
        data.mocap_pos[:] = [0, 0, -0.3]  # the target's ghost, which is not drawn, out of the way
        sim._cur_button_states = np.ones(2, dtype=int)  # 1: nothing is locked
        sim._apply_button_states()
        mujoco.mj_forward(model, data)
        sim.pre_step()
        self._at, self._success, self._over = 0, False, ""
        self._cube = data.joint("object_joint_0").qpos[:3].copy()
        self._oracle_seed = int(rng.integers(2**32))
        self._oracle: tuple[str, Any] | None = None

    def step(self, action: Array) -> None:
        self._sim.step(np.clip(action, -1, 1))
        self._judge(self._scene())

    def _judge(self, now: Scene) -> None:
        if self._success or self._over:
            return
        step, done = self.steps[self._at], self.steps[: self._at]
        wrong = {GOALS[step].opposite, *self.steps[self._at + 1 :]} - {"", *done}
        if unstable(self._sim.data) or self._lost(now):  # first: MuJoCo begins anew, where the drawer is shut
            self._over = "unsafe"
        elif GOALS[step].done(now):
            self._at += 1
            self._success = self._at == len(self.steps)
        elif any(GOALS[other].done(now) for other in wrong):
            self._over = "opposite"

    def _scene(self) -> Scene:
        sim, data = self._sim, self._sim.data
        cube = data.joint("object_joint_0").qpos[:3].copy()
        left, right = (bool(state == 0) for state in sim._cur_button_states)
        return Scene(
            -data.joint("drawer_slide").qpos[0],
            data.joint("window_slide").qpos[0],
            (left, right),
            cube,
            data.site_xpos[sim._drawer_site_id].copy(),
            cube[1] - self._cube[1],
        )

    def _lost(self, now: Scene) -> bool:
        """Whether the cube is where OGBench says that it cannot be."""
        low, high = self._sim._workspace_bounds
        return bool((now.cube <= low - 0.2).any() or (now.cube >= high + 0.2).any())

    def success(self) -> bool:
        return self._success

    def over(self) -> str:
        return self._over

    def state(self) -> Array:
        felt = self._sim.compute_ob_info()
        yaw = felt["proprio/effector_yaw"]
        parts = (felt["proprio/effector_pos"], np.cos(yaw), np.sin(yaw))
        gripper = (felt["proprio/gripper_opening"], felt["proprio/gripper_contact"])
        found: Array = np.concatenate([*parts, *gripper]).astype(np.float32)
        return found

    def images(self) -> dict[str, Array]:
        return {camera: self.eyes.see(camera, (self._image_size,) * 2) for camera in self.cameras}

    def frame(self) -> Array:
        return self.eyes.see(self.cameras[0], (self._video_size,) * 2)

    def expert(self) -> Array:
        """OGBench's Markovian oracle for the step at hand, (5,) float32 in [-1, 1]. It reads the simulator's full
        state, which no policy sees. Between two steps the hand is raised.
        """
        step = self.steps[min(self._at, len(self.steps) - 1)]
        told = self._told(step)
        if self._oracle is None or self._oracle[0] != step:
            if self._at and told["proprio/effector_pos"][2] < RAISED:
                return np.array([0, 0, 1, 0, -1], np.float32)
            self._oracle = step, self._new_oracle(step, told)
        action: Array = self._oracle[1].select_action(None, told)
        return action.astype(np.float32)

    def _new_oracle(self, step: str, told: dict[str, Any]) -> Any:
        kind = step.partition("-")[0]
        module = import_module(f"ogbench.manipspace.oracles.markov.{kind}_markov")
        # OGBench's own arrive at full speed (0.4); slower they are smoother to learn from. Too slow, the cube slips.
        slowest = 0.2 if kind == "cube" else 0.1
        oracle = getattr(module, f"{kind.title()}MarkovOracle")(env=self._sim, min_norm=slowest)
        with numpy_seeded(self._oracle_seed):  # draws where the hand goes in the end
            oracle.reset(None, told)
        return oracle

    def _told(self, step: str) -> dict[str, Any]:
        """What an oracle reads, and where it is to bring things: told to it alone, so that nothing in the simulation
        depends on the goal.
        """
        told: dict[str, Any] = self._sim.compute_ob_info()
        kind, _, where = step.partition("-")
        now = self._scene()
        if kind == "drawer":
            way = [0, (DRAWER if where == "open" else 0) - now.drawer, 0]
            told["privileged/target_drawer_handle_pos"] = now.handle + way
        elif kind == "window":
            way = [(WINDOW if where == "open" else 0) - now.window, 0, 0]
            told["privileged/target_window_handle_pos"] = told["privileged/window_handle_pos"] + way
        elif kind == "button":
            number = int(where == "right")
            told |= {"privileged/target_button": number, "privileged/target_button_state": 0}
            told["privileged/target_button_top_pos"] = self._sim.data.site_xpos[self._sim._button_site_ids[number]]
        else:
            # Into the drawer: over the middle of the gap between its front and its case.
            gap = np.array([0.33, -0.328 + now.drawer / 2, RIM])
            aside = self._cube + np.array([0, SHIFT if where == "right" else -SHIFT, 0])
            told["privileged/target_block_pos"] = gap if where == "into-drawer" else aside
            # There the fingers are to open along the gap, not across it, where they would push the drawer.
            turn = np.clip(np.pi / 2 - told["proprio/effector_yaw"], -0.5, 0.5) * (where == "into-drawer")
            told |= {"privileged/target_block": 0, "privileged/target_block_yaw": told["privileged/block_0_yaw"] + turn}
        return told

    def close(self) -> None:
        self.eyes.close()


@dataclass(kw_only=True, eq=False)
class OgbenchSuite(ShippedSuite):
    """`env=ogbench_scene`. tasks: goals (`GOALS`), two, one after the other (`TWO_STEPS`), or groups of them
    (`GROUPS`). Other keys: see `ShippedSuite`.
    """

    @property
    def sentences(self) -> dict[str, str]:
        return {task: ogbench_instruction(task) for task in ogbench_tasks(self.tasks)}

    @property
    def opposites(self) -> dict[str, str]:
        found = {task: GOALS[task].opposite for task in self.sentences if task in GOALS}
        return {task: GOALS[other].sentence for task, other in found.items() if other}

    @property
    def objects(self) -> dict[str, str]:
        return {task: object_of(task) for task in self.sentences}

    @property
    def embodiment(self) -> Embodiment:
        return ogbench_embodiment(self.cameras, self.image_size)

    def make(self, task: str) -> OgbenchScene:
        return OgbenchScene(task, self.cameras, self.image_size, self.video_size)
