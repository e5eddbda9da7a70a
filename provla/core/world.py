"""What a simulated world is to the robot in it: its cameras, its state, its actions; and what an evaluation plays.

Nothing heavy is imported here: every world's process imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# How an episode ended. opposite: what was done is the opposite of what was said; unsafe: the robot, or the physics,
# left what it may do; over: the world says that it cannot go on, and not why; fault: no failing at the task, but an
# error of the world's or numbers of the policy's that are none.
Ending = Literal["success", "opposite", "unsafe", "over", "timeout", "fault"]
OVER = ("opposite", "unsafe", "over")  # what a world may say


@dataclass(frozen=True)
class Vector:
    """Numbers with names, and with bounds: one for all, or one each. An infinite one is none."""

    names: Sequence[str]
    low: float | Sequence[float] = -np.inf
    high: float | Sequence[float] = np.inf

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"names={self.names!r}: expected a list of names, one for each number")
        for end in ("low", "high"):
            bound = np.asarray(getattr(self, end), dtype=np.float64)
            if bound.shape not in ((), (len(self),)):
                raise ValueError(f"{end}={getattr(self, end)!r}: expected one bound, or one for each of {len(self)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bounds(self) -> tuple[tuple[float | None, float | None], ...]:
        """Each number's, None for an infinite one; empty where none has any."""
        if not np.isfinite([*np.ravel(self.low), *np.ravel(self.high)]).any():
            return ()
        ends = [np.broadcast_to(np.asarray(end, np.float64), len(self)).tolist() for end in (self.low, self.high)]
        return tuple(
            (low if isfinite(low) else None, high if isfinite(high) else None) for low, high in zip(*ends, strict=True)
        )

    def clip(self, values: Array) -> Array:
        """values, (…, n) of them, brought between the bounds."""
        clipped: Array = np.clip(values, self.low, self.high)
        return clipped

    def outside(self, values: Array) -> bool:
        """Whether any of values is beyond a bound, by more than float32 rounds."""
        slack = 1e-5 * (1 + np.abs(values))
        return bool(((values < np.asarray(self.low) - slack) | (values > np.asarray(self.high) + slack)).any())


@dataclass(frozen=True)
class Embodiment:
    """What a policy has to fit. cameras: name → (height, width) of its pictures. fps: control steps per second."""

    cameras: Mapping[str, tuple[int, int]]
    state: Vector
    action: Vector
    fps: float


@dataclass(frozen=True)
class Episode:
    """One closed-loop episode: what every policy meets in the same way. `film` > 0 keeps a frame every so many
    steps.
    """

    task: str
    instruction: str
    seed: int
    film: int = 0
