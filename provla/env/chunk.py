"""A whole chunk of actions as one step of a world."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provla.core.cameras import Looks, stacked, together
from provla.core.world import OVER, Embodiment, Ending

Array = NDArray[Any]

NEEDS = ("embodiment", "reset", "step", "state", "images")  # and success, or score


class Sizes(NamedTuple):
    """What a policy looks at: cameras, observations side by side, and actions before."""

    cameras: tuple[str, ...]
    n_obs_steps: int
    n_past_actions: int = 0


class Seen(NamedTuple):
    """What a world showed at the end of a chunk, or at an episode's beginning.

    images (T, C, h, w, 3) uint8, or where cameras differ in size of each (T, h, w, 3), and state (T, S) float32 of the
    last `n_obs_steps` control steps (the first is repeated at the start). ending: None while the episode goes on.
    frames: filmed meanwhile. score: the best of the episode; None where the world has none. rules: what other rules of
    success say (see `interfaces.World`). past (n,A): the last n ≤ `n_past_actions` that were executed, clipped as they
    were.
    """

    images: Looks
    state: Array
    ending: Ending | None
    steps: int
    frames: list[Array]
    score: float | None = None
    rules: Mapping[str, bool] = MappingProxyType({})
    past: Sequence[Array] = ()


def check_world(world: Any) -> None:
    """`ValueError` that names what a world lacks."""
    missing = [name for name in NEEDS if not hasattr(world, name)]
    if not hasattr(world, "success") and not hasattr(world, "score"):
        missing.append("success (or score)")
    if not missing:
        check_embodiment(world)
        return
    raise ValueError(
        f"{type(world).__name__} has no {', '.join(missing)}; a world needs {', '.join(NEEDS)}, and success or "
        f"score{gymnasium_hint(world)}"
    )


def check_embodiment(owner: Any, where: str = "") -> None:
    """`ValueError` where a world or a suite calls something else its embodiment. where: before the message."""
    body = owner.embodiment
    if not isinstance(body, Embodiment):
        kind = type(body).__name__
        raise ValueError(f"{where}{type(owner).__name__}.embodiment is a {kind}; expected a provla.env.Embodiment")


def gymnasium_hint(found: Any) -> str:
    """The way for somebody who gives an environment of gymnasium's where something else is wanted; else empty."""
    plain = all(hasattr(found, name) for name in ("observation_space", "action_space"))
    return "; it is a gymnasium environment: env=gym env.id=<its id> plays it as it is" if plain else ""


def score_of(world: Any) -> float | None:
    """A world's score; None where it knows success alone. `ValueError` for one that is not finite."""
    if hasattr(world, "success"):
        return None
    score = float(world.score())
    if not np.isfinite(score):
        raise ValueError(f"score is {score}")
    return score


def solved(world: Any, enough: float) -> bool:
    """Whether a world's task is done now: it says so, or its score is enough."""
    score = score_of(world)
    return bool(world.success()) if score is None else score >= enough


def over(world: Any) -> Ending | None:
    """Why a world's episode cannot go on; None while it can. `ValueError` for a reason that nobody knows."""
    found = world.over() if hasattr(world, "over") else None
    if not found:
        return None
    if found is True or isinstance(found, np.bool_):
        return "over"
    if found not in OVER:
        raise ValueError(f"over() is {found!r}; expected nothing, or one of {', '.join(OVER)}")
    return found  # type: ignore[no-any-return]


def close(world: Any) -> None:
    """Closes a world that can be closed."""
    if hasattr(world, "close"):
        world.close()


class Chunked:
    """Executes a whole chunk of actions at a time, and looks only where the policy will: in software a picture costs
    as much as twenty steps of physics.

    limit: control steps after which an episode has failed. success_score: see `interfaces.Suite`.
    """

    def __init__(self, world: Any, sizes: Sizes, limit: int, success_score: float = 1.0) -> None:
        check_world(world)
        self.world, self._sizes, self._limit, self._enough = world, sizes, limit, success_score
        self._body: Embodiment = world.embodiment
        self._images: list[Looks] = []
        self._states: list[Array] = []
        self._past: deque[Array] = deque(maxlen=sizes.n_past_actions)
        self._frame_size: tuple[int, ...] = ()

    def begin(self, seed: int, film: int = 0) -> Seen:
        """film: keep a frame for people every so many control steps; 0: none."""
        self.world.reset(seed)
        self._film, self._steps = film, 0
        self._ending: Ending | None = None
        self._score: float | None = None
        self._images, self._states = [], []
        self._past.clear()
        self._look()
        return self._seen([self._frame()] if film else [])

    def execute(self, chunk: Array) -> Seen:
        """chunk (n,A), clipped to the embodiment's bounds. What comes after the episode's end is left
        out.
        """
        frames: list[Array] = []
        for position, action in enumerate(chunk):
            if self._ending:
                break
            clipped = self._body.action.clip(action)
            self.world.step(clipped)
            self._past.append(np.asarray(clipped, np.float32))
            self._steps += 1
            self._judge()
            if self._film and (self._steps % self._film == 0 or self._ending):
                frames.append(self._frame())
            if position >= len(chunk) - self._sizes.n_obs_steps and not self._ending:
                self._look()
        return self._seen(frames)

    def close(self) -> None:
        close(self.world)

    def _judge(self) -> None:
        score = score_of(self.world)
        if score is None:
            success = bool(self.world.success())
        else:
            self._score = score if self._score is None else max(score, self._score)
            success = self._score >= self._enough
        limit: Ending | None = "timeout" if self._steps >= self._limit else None
        self._ending = "success" if success else over(self.world) or limit

    def _look(self) -> None:
        pictures = self.world.images()
        for camera in self._sizes.cameras:
            check_picture(pictures, camera, self._body)
        # Copied: a world may draw into the same memory again.
        self._images.append(together([np.array(pictures[camera]) for camera in self._sizes.cameras], np.stack))
        self._states.append(check_state(self.world.state(), self._body))

    def _frame(self) -> Array:
        if not hasattr(self.world, "frame"):
            return np.array(self.world.images()[self._sizes.cameras[0]])
        frame = check_frame(self.world.frame(), self._frame_size)
        self._frame_size = frame.shape[:2]
        return frame

    def _seen(self, frames: list[Array]) -> Seen:
        images, states = last(self._images, self._sizes.n_obs_steps), last(self._states, self._sizes.n_obs_steps)
        self._images, self._states = images, states
        rules = dict(self.world.rules()) if hasattr(self.world, "rules") else {}
        return Seen(
            stacked(images, np.stack),
            np.stack(states),
            self._ending,
            self._steps,
            frames,
            self._score,
            rules,
            [*self._past],
        )


def last[T](values: Sequence[T], count: int) -> list[T]:
    """The last `count`, the first of them repeated where there are fewer."""
    return ([values[0]] * (count - len(values)) + list(values))[-count:]


def check_state(state: Any, body: Embodiment) -> Array:
    """A world's state as (S,) float32; `ValueError` where it is not what its embodiment says."""
    found: Array = np.asarray(state)
    if found.shape != (len(body.state),) or found.dtype.kind not in "fiu":
        raise ValueError(f"state() is {found.shape} {found.dtype}, expected ({len(body.state)},) float32")
    if not np.isfinite(found).all():
        raise ValueError("state is not finite")
    return found.astype(np.float32)


def check_frame(frame: Any, size: tuple[int, ...] = ()) -> Array:
    """A frame for people; `ValueError` where it is none, or not of the size of those before (h, w)."""
    found: Array = np.asarray(frame)
    if (
        found.ndim != 3
        or found.shape[2] != 3
        or found.dtype != np.uint8
        or found.shape[:2] != (size or found.shape[:2])
    ):
        raise ValueError(f"frame() is {found.shape} {found.dtype}, expected (h, w, 3) uint8, all of one size")
    return found


def check_picture(pictures: Any, camera: str, body: Embodiment) -> None:
    """`ValueError` where a camera is missing, or its picture is not what the embodiment says."""
    if camera not in pictures:
        raise ValueError(f"images() has no camera {camera!r}; it has: {', '.join(map(str, pictures)) or 'none'}")
    found, expected = np.asarray(pictures[camera]), (*body.cameras[camera], 3)
    if found.shape != expected or found.dtype != np.uint8:
        raise ValueError(f"images()[{camera!r}] is {found.shape} {found.dtype}, expected {expected} uint8")
