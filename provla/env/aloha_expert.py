"""A scripted expert for gym-aloha's tasks, in joint space: waypoints for both hands, and damped least squares from one
control step to the next. ACT's own (Zhao et al. 2023, arXiv:2304.13705) moves hands that gym-aloha does not ship.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ARMS = {"left": 0, "right": 8}  # the first of an arm's eight joints: six, and two fingers
YAW = {"left": 0.0, "right": np.pi}  # the arms face each other
START = (0, -0.96, 1.16, 0, -0.3, 0, 0.02239, -0.02239)  # of either arm, as gym-aloha has it: radians, metres
START_PITCH, START_OPENING = -0.1, 0.1
GRASP = np.array([0.145, 0, 0])  # between the fingers, 9 mm from their tips; in the frame of a hand, metres

DAMPING, ITERATIONS, MAX_STEP = 1e-4, 4, 0.3  # of the least squares: λ, steps, radians a step
GAIN, REACH = 0.15, 0.02  # of a correction: how much of it a control step makes, and metres at most

DOWN = np.pi / 3  # the pitch of a hand that picks up: steeper, it stands in the way of the other one
SIDEWAYS = np.pi / 2  # the roll of a hand whose fingers are above and below


class Way(NamedTuple):
    """Where a hand is to be by a control step: the point between its fingers in metres; its roll about the direction
    in which it points, and how far that points down, radians; opening from 0 to 1.
    """

    step: int
    x: float
    y: float
    z: float
    roll: float
    pitch: float
    opening: float


class Plan(NamedTuple):
    """Ways of each arm. Things slip when they are grasped; so between two control steps, since and until, the arm that
    `meets` corrects its ways by how far the other's thing has slipped, and its own. things: body in an arm's hand.
    """

    ways: Mapping[str, Sequence[Way]]
    things: Mapping[str, str]
    meets: str
    since: int
    until: int


def pick(arm: str, at: Array, z: float) -> list[Way]:
    """The ways to a thing at (x, y, …), which is grasped at height z, metres.

    First the hand turns down, straight before its arm. Turning on the way, its wrist would pass the stretched pose, in
    which there are two solutions, and demonstrations would show now one and now the other.
    """
    x, y = at[:2]
    ready = -0.2 if arm == "left" else 0.2
    return [
        Way(36, ready, 0.5, 0.25, 0, DOWN, 1),
        Way(60, x, y, 0.09, 0, DOWN, 1),
        Way(80, x, y, z, 0, DOWN, 1),
        Way(92, x, y, z, 0, DOWN, 0),
        Way(96, x, y, z, 0, DOWN, 0),
    ]


def transfer(cube: Array) -> Plan:
    """The right hand lifts the cube and stays; the left one takes it from above and below. cube: its pose (7,).

    They meet halfway between where it lay and the middle: joints of the left arm that always did the same would have
    tiny ranges, and normalised, their trembling would count as much as the way of others.
    """
    x, y, z = 0.05, 0.5 + (cube[1] - 0.5) / 2, 0.25
    right = [
        *pick("right", cube, 0.022),
        Way(136, x, y, z, 0, DOWN, 0),
        Way(176, x, y, z, 0, DOWN, 0),
        Way(186, x, y, z, 0, DOWN, 1),
        Way(210, x + 0.08, y, z + 0.08, 0, DOWN, 1),
    ]
    left = [
        Way(130, x - 0.1, y, z, SIDEWAYS, 0, 1),
        Way(160, x, y, z, SIDEWAYS, 0, 1),
        Way(172, x, y, z, SIDEWAYS, 0, 0),
    ]
    return Plan({"left": left, "right": right}, {"right": "box"}, "left", 104, 160)


def insertion(peg: Array, socket: Array) -> Plan:
    """Both hands lift what is theirs, and push it together. peg, socket: their poses (7,)."""
    y, z, pressed = 0.5, 0.2, 0.046  # 8 mm closer than the peg goes
    ways = {
        arm: [
            *pick(arm, at, low),
            Way(138, side * 0.1, y, z, 0, DOWN, 0),
            Way(142, side * 0.1, y, z, 0, DOWN, 0),
            Way(180, side * pressed, y, z, 0, DOWN, 0),
        ]
        for arm, at, low, side in (("left", socket, 0.022, -1), ("right", peg, 0.0135, 1))
    }
    return Plan(ways, {"left": "socket", "right": "peg"}, "right", 104, 170)


PLANS: Mapping[str, Callable[..., Plan]] = {"transfer_cube": transfer, "insertion": insertion}


def along(ways: Sequence[Way], step: int) -> Array:
    """(6,): what the ways say of a step; from one to the next with the least jerk (Flash and Hogan 1985)."""
    for here, there in pairwise(ways):
        if step < there.step:
            t = (step - here.step) / (there.step - here.step)
            part = t**3 * (10 - 15 * t + 6 * t**2)
            return (1 - part) * np.array(here[1:]) + part * np.array(there[1:])
    return np.array(ways[-1][1:])


def turned(roll: float, pitch: float, yaw: float) -> Array:
    """(3, 3): turned about x, then about y, then about z, radians."""
    (a, b, c), (i, j, k) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    x, y, z = [[1, 0, 0], [0, a, -i], [0, i, a]], [[b, 0, j], [0, 1, 0], [-j, 0, b]], [[c, -k, 0], [k, c, 0], [0, 0, 1]]
    found: Array = np.array(z) @ y @ x
    return found


def between(data: Any, arm: str) -> Array:
    """(3,): the point between the fingers of an arm, metres."""
    hand = data.body(f"vx300s_{arm}/gripper_link")
    found: Array = hand.xpos + hand.xmat.reshape(3, 3) @ GRASP
    return found


class AlohaExpert:
    """Follows a plan, whatever has become of the arms: the actions are joint angles, which lead back to it."""

    def __init__(self, model: Any, plan: Plan) -> None:
        import mujoco

        self._model, self._scratch, self._plan = model, mujoco.MjData(model), plan
        self._scratch.qpos[:16] = START * 2
        mujoco.mj_kinematics(model, self._scratch)
        self._ways = {arm: [self._start(arm), *ways] for arm, ways in plan.ways.items()}
        self._slip = np.zeros(3)

    def _start(self, arm: str) -> Way:
        x, y, z = between(self._scratch, arm)
        return Way(0, x, y, z, 0, START_PITCH, START_OPENING)

    def act(self, data: Any, step: int) -> Array:
        """(14,) float32: both arms' joint angles in radians and opening, for the control step of that number."""
        self._look(data, step)
        goals = {arm: along(ways, step) for arm, ways in self._ways.items()}
        goals[self._plan.meets][:3] += self._slip
        self._scratch.qpos[:16] = data.ctrl  # from where the arms were sent last
        for _ in range(ITERATIONS):
            self._approach(goals)
        arms = [np.append(self._scratch.qpos[first : first + 6], goals[arm][5]) for arm, first in ARMS.items()]
        action: Array = np.concatenate(arms).astype(np.float32)
        return action

    def _look(self, data: Any, step: int) -> None:
        """Where what is held is, as seen from where the fingers are: unlike its place, that does not tremble."""
        if not self._plan.since <= step < self._plan.until:
            return
        slips = {arm: data.body(thing).xpos - between(data, arm) for arm, thing in self._plan.things.items()}
        slip = sum(part * (-1 if arm == self._plan.meets else 1) for arm, part in slips.items())
        self._slip = np.clip(self._slip + GAIN * (slip - self._slip), -REACH, REACH)

    def _approach(self, goals: Mapping[str, Array]) -> None:
        """One step of damped least squares (Wampler 1986), of both arms, within the limits of their joints."""
        import mujoco

        model, data = self._model, self._scratch
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        jacobian = np.zeros((6, model.nv))
        for arm, first in ARMS.items():
            hand, point = data.body(f"vx300s_{arm}/gripper_link"), between(data, arm)
            axes, aims = hand.xmat.reshape(3, 3), turned(goals[arm][3], goals[arm][4], YAW[arm])
            error = np.concatenate([goals[arm][:3] - point, np.cross(axes, aims, axis=0).sum(axis=1) / 2])
            mujoco.mj_jac(model, data, jacobian[:3], jacobian[3:], point, hand.id)
            joints = slice(first, first + 6)
            near = jacobian[:, joints]
            change = near.T @ np.linalg.solve(near @ near.T + DAMPING * np.eye(6), error)
            moved = data.qpos[joints] + np.clip(change, -MAX_STEP, MAX_STEP)
            data.qpos[joints] = np.clip(moved, *model.jnt_range[joints].T)
