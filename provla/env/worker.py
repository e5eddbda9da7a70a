"""A process in which simulated worlds live. What a world does to it, the evaluation survives.

It imports no torch, answers one call after the other (see `worlds.py`), and ends with its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

IDLE = 60.0  # seconds after which a worker that nobody uses ends
NOISE = 1 << 20  # bytes that are kept of what worlds print


class Sizes(NamedTuple):
    """What an observation must be: images (T, C, h, w, 3) uint8 and state (T, S) float32, and how many actions a chunk
    has.
    """

    images: tuple[int, ...]
    state: tuple[int, ...]
    n_action_steps: int


class Call(NamedTuple):
    """What a world is to do: begin an episode where there is a seed, then execute the chunks. slot: which world."""

    slot: int
    task: str
    seed: int | None
    film: int
    chunks: tuple[Array, ...]


class Seen(NamedTuple):
    """What a world showed at the end of a call. frames: filmed during its last chunk, or its beginning."""

    images: Array
    state: Array
    success: bool
    over: bool
    steps: int
    frames: list[Array]


class Fault(str):
    """Why a world has no answer, in a line."""


class Worker:
    """The worlds of one process, made when they are first called."""

    def __init__(self) -> None:
        self.suite: Any = None
        self.worlds: dict[int, Any] = {}

    def take(self, suite: Any, sizes: Sizes) -> None:
        """Another suite to make worlds from."""
        self.rest()
        self.suite, self.sizes = suite, sizes

    def rest(self) -> None:
        for world in self.worlds.values():
            _close(world)
        self.worlds.clear()
        self.suite = None

    def play(self, call: Call) -> Seen | Fault:
        """What the world showed; or why it could not, in which case it is made anew for its next episode."""
        where = "make"
        try:
            world = self.worlds.get(call.slot)
            if world is None:
                world = self.worlds[call.slot] = self.suite.make(
                    call.task, self.sizes.images[0], self.sizes.n_action_steps
                )
            success, truncated = False, False
            if call.seed is not None:
                where, world.film = "reset", call.film
                observation, info = world.reset(seed=call.seed)
            for chunk in call.chunks:
                where = "step"
                observation, _, success, truncated, info = world.step(chunk)
            seen = Seen(
                observation["images"],
                observation["state"],
                bool(success),
                bool(success or truncated),
                int(info["steps"]),
                list(info["frames"]),
            )
            where = f"after {where}"
            self._check(seen)
            return seen
        except BaseException as error:  # SystemExit is a fault too
            _close(self.worlds.pop(call.slot, None))
            return Fault(f"{_line(error)} ({where})")

    def _check(self, seen: Seen) -> None:
        for name, found, shape, kind in (
            ("images", seen.images, self.sizes.images, np.uint8),
            ("state", seen.state, self.sizes.state, np.float32),
        ):
            found = np.asarray(found)
            if found.shape != shape or found.dtype != kind:
                raise ValueError(f"{name} is {found.shape} {found.dtype}, expected {shape} {np.dtype(kind)}")
        if not np.isfinite(seen.state).all():
            raise ValueError("state is not finite")
        for frame in seen.frames:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.shape != seen.frames[0].shape:
                raise ValueError(
                    f"a video frame is {frame.shape} {frame.dtype}, expected (h, w, 3) uint8, all of one size"
                )


def serve(connection: Connection) -> None:
    """Answers until the parent closes its end, or needs nothing for a while."""
    worker = Worker()
    while connection.poll(IDLE if worker.suite is None else None):
        try:
            message: Mapping[str, Any] = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # the suite's module cannot be imported here
            connection.send(_line(error))
            continue
        if "suite" in message:
            worker.take(message["suite"], message["sizes"])
            connection.send("")
        elif "calls" in message:
            for call in message["calls"]:
                connection.send(worker.play(call))
        else:
            worker.rest()
        with contextlib.suppress(OSError):
            if os.fstat(2).st_size > NOISE:
                os.ftruncate(2, 0)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _close(world: Any) -> None:
    with contextlib.suppress(Exception):
        world.close()


def _end_with(parent: int) -> None:
    """A world that hangs would outlive a parent that was killed: the pipe's end is not seen by who does not read."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone can; it ends even who hangs in C
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """argv: the file descriptor of the pipe to the parent, and the parent's process id."""
    _end_with(int(sys.argv[2]))
    with contextlib.suppress(EOFError, OSError):
        serve(Connection(int(sys.argv[1])))
    os._exit(0)  # whatever threads a world has left
