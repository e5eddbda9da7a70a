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

from numpy.typing import NDArray

from provla.env.chunk import Chunked, Seen, Sizes
from provla.env.perturb import perturbed
from provla.env.suite import option

Array = NDArray[Any]

IDLE = 60.0  # seconds after which a worker that nobody uses ends
NOISE = 1 << 20  # bytes that are kept of what worlds print


class Call(NamedTuple):
    """What a world is to do: begin an episode where there is a seed, then execute the chunks. slot: which world."""

    slot: int
    task: str
    seed: int | None
    film: int
    chunks: tuple[Array, ...]


class Fault(str):
    """Why a world has no answer, in a line."""


class Refusal(str):
    """What a suite says against itself."""


def open_world(suite: Any, task: str, sizes: Sizes) -> Chunked:
    """A world of a suite, as its episodes are played."""
    return Chunked(
        perturbed(suite.make(task), option(suite, "perturb")),
        sizes,
        suite.max_episode_steps,
        option(suite, "success_score"),
    )


class Worker:
    """The worlds of one process, made when they are first called."""

    def __init__(self) -> None:
        self.suite: Any = None
        self.worlds: dict[int, Chunked] = {}

    def take(self, suite: Any, sizes: Sizes, check: bool) -> str:
        """Another suite to make worlds from; what it says against itself, where it is asked."""
        self.rest()
        self.suite, self.sizes = suite, sizes
        try:
            if check and hasattr(suite, "check"):
                suite.check()
        except ValueError as error:
            return Refusal(error)
        return ""

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
                world = self.worlds[call.slot] = open_world(self.suite, call.task, self.sizes)
            if call.seed is not None:
                where = "reset"
                seen = world.begin(call.seed, call.film)
            for chunk in call.chunks:
                where = "step"
                seen = world.execute(chunk)
            return seen
        except BaseException as error:  # SystemExit is a fault too
            _close(self.worlds.pop(call.slot, None))
            return Fault(f"{_line(error)} ({where})")


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
        if "path" in message:
            sys.path[:] = message["path"]
        elif "suite" in message:
            connection.send(worker.take(**message))
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
