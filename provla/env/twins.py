"""Twins: the same scene of Meta-World under two sentences that ask for opposite things, so that words decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provla.env.metaworld import MetaworldSuite, MetaworldTask, metaworld_instruction, metaworld_menu
from provla.env.shipped import named_tasks

Array = NDArray[Any]


class Fixture(NamedTuple):
    """Something that can be moved both ways. Its joint starts at `middle`; `reach` further along lies the end for
    which the first task of the pair asks, and as far the other way that of the second. low, high: where the scene draws
    its place from, in metres: Meta-World's own ranges differ within a pair, and would tell the tasks apart.
    """

    tasks: tuple[str, str]
    joint: str
    middle: float
    reach: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]


FIXTURES = (
    Fixture(("drawer-open", "drawer-close"), "goal_slidey", -0.08, -0.08, (-0.1, 0.9, 0), (0.1, 0.9, 0)),
    Fixture(("window-open", "window-close"), "window_slide", 0.1, 0.1, (-0.1, 0.75, 0.16), (0.1, 0.9, 0.16)),
    Fixture(("faucet-open", "faucet-close"), "knob_Joint_1", 0.0, 1.57, (-0.05, 0.8, 0), (0.05, 0.85, 0)),
)
OF = {task: fixture for fixture in FIXTURES for task in fixture.tasks}
OPPOSITE = {task: other for fixture in FIXTURES for task, other in zip(fixture.tasks, fixture.tasks[::-1], strict=True)}
END = 0.75  # of the way from the middle to the stop


def twin_tasks(asked: str | Sequence[str], key: str = "env.tasks") -> tuple[str, ...]:
    """See `named_tasks`."""
    known = metaworld_menu()
    return named_tasks(
        asked, key, lambda name: f"{name!r} {'has no twin' if name in known else 'is unknown'}", list(OF)
    )


class MetaworldTwin(MetaworldTask):
    """One of a pair of tasks that cannot be told apart by what is seen or felt: the fixture starts halfway, both draw
    from one range of initial states, and no mark of a goal is drawn.

    Success: the fixture has moved past three quarters of the way from halfway to its stop, in the direction that was
    asked. Where it has gone as far the other way first, the episode is over (`opposite`).
    """

    marks = False

    def __init__(self, task: str, cameras: Sequence[str], image_size: int, video_size: int = 240) -> None:
        from gymnasium.spaces import Box

        super().__init__(task, cameras, image_size, video_size)
        self._fixture = OF[task]
        self._sign = 1 if task == self._fixture.tasks[0] else -1
        self._sim._random_reset_space = Box(np.array(self._fixture.low), np.array(self._fixture.high), dtype=np.float64)

    def _place(self) -> None:
        joint = self._sim.data.joint(self._fixture.joint)
        joint.qpos[:], joint.qvel[:] = self._fixture.middle, 0

    @property
    def way(self) -> float:
        """How far the fixture has gone: 1 is the stop in the direction that was asked, -1 the other."""
        at = float(self._sim.data.joint(self._fixture.joint).qpos[0])
        return self._sign * (at - self._fixture.middle) / self._fixture.reach

    def success(self) -> bool:
        return self.way >= END

    def over(self) -> str:
        return "opposite" if self.way <= -END else super().over()


@dataclass(kw_only=True, eq=False)
class TwinsSuite(MetaworldSuite):
    """`env=metaworld_twins`. tasks: of `FIXTURES`. Other keys: see `ShippedSuite`."""

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_instruction(task) for task in twin_tasks(self.tasks)}

    @property
    def opposites(self) -> dict[str, str]:
        """Task → the sentence that asks for its opposite."""
        return {task: metaworld_instruction(OPPOSITE[task]) for task in self.sentences}

    def make(self, task: str) -> MetaworldTwin:
        return MetaworldTwin(task, self.cameras, self.image_size, self.video_size)
