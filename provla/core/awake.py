"""How long torch's threads wait awake for each other: long where the cores are theirs, shortly where others want them.

Between two operations a thread that has gone to sleep must be woken, which takes longer than many an operation; but two
trainings whose threads wait awake on the same cores stand still. libgomp, which torch's threads are, is told once how
many turns they wait (GOMP_SPINCOUNT), and waits a hundred while it has more threads than there are cores. So the
threads of a run wait long, and while others wait for the same cores, threads that do nothing are kept beside them.
Results do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from provla.core.ranks import cores

LONG, SHORT = "30000", "1000"  # turns: on one CPU with AVX-512 1.6 and 0.05 ms
MANY = 32  # cores, from which on as many idle threads would be too many
LOOK = 0.5  # seconds between two looks, each of which takes half a millisecond
CROWDED, QUIET = 0.25, 0.1  # seconds a second that threads want a core and have none; alone it is 0.03, in a crowd 0.5
PATIENCE, MOST_PATIENCE = 2, 120  # quiet looks before threads wait long; twice as many each time that it was too soon
SOON = 5.0  # seconds
_watching: list[threading.Thread] = []


def prepare_threads() -> None:
    """How many threads torch may have and how long they wait, for a process that has not imported it yet."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", turns())
    os.environ["OMP_DYNAMIC"] = "false"  # of a team with fewer than it counts on, oneDNN's threads wait for ever
    os.environ.pop("OMP_THREAD_LIMIT", None)


def turns() -> str:
    """What GOMP_SPINCOUNT is to be for a process that has not imported torch yet."""
    return LONG if cores() <= MANY and any(_waited().values()) else SHORT


def watch() -> None:
    """From now on this process's threads wait for each other as long as serves them and whoever else is at work.

    Where a user has said how long (OMP_WAIT_POLICY, GOMP_SPINCOUNT), nothing is done.
    """
    if any(one.is_alive() for one in _watching):  # none is in a process that was forked
        return
    libraries = _libraries() if os.environ.get("GOMP_SPINCOUNT") == LONG else []
    if libraries and "OMP_WAIT_POLICY" not in os.environ:
        _watching[:] = [threading.Thread(target=_watch, args=(libraries, threading.Event()), name="awake", daemon=True)]
        _watching[0].start()


class _Crowd:
    """As many idle threads as there are cores, in each libgomp, for as long as it is not left."""

    def __init__(self, libraries: list[Any]) -> None:
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._stay, args=(libraries,), name="crowd", daemon=True)
        self._thread.start()

    def _stay(self, libraries: list[Any]) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        for library in libraries:
            library.GOMP_parallel(nothing, None, ctypes.c_uint(cores()), ctypes.c_uint(0))
        self._left.wait()  # libgomp keeps the threads for the next time that this one asks, and ends them with it

    def leave(self) -> None:
        self._left.set()
        self._thread.join()


def _watch(libraries: list[Any], over: threading.Event) -> None:
    with suppress(RuntimeError):  # no thread can be started: there are too many, or the interpreter ends
        _come_and_go(libraries, over)


def _come_and_go(libraries: list[Any], over: threading.Event) -> None:
    """Crowded at first, so that nobody is disturbed by who has just come."""
    crowd: _Crowd | None = _Crowd(libraries)
    patience, quiet, left = PATIENCE, 0, 0.0
    before, looked = _waited(), time.monotonic()
    while not over.wait(LOOK):
        waited, now = _waited(), time.monotonic()
        share = sum(waited[task] - before.get(task, 0) for task in waited) / (now - looked) / 1e9
        before, looked = waited, now
        quiet = quiet + 1 if share < QUIET else 0
        if crowd is not None and quiet >= patience:
            crowd.leave()
            crowd, left = None, now
        elif crowd is None and share > CROWDED:
            crowd = _Crowd(libraries)
            patience = min(2 * patience, MOST_PATIENCE) if now - left < SOON else PATIENCE
    if crowd is not None:
        crowd.leave()


def _waited() -> dict[str, int]:
    """Thread → nanoseconds in which it wanted a core and had none; empty where the system does not say."""
    waited = {}
    with suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError, IndexError):  # it has just ended
                waited[task.name] = int((task / "schedstat").read_text().split()[1])
    return waited


def _libraries() -> list[Any]:
    """Each libgomp of this process: packages bring their own."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return [
        ctypes.CDLL(path) for path in sorted({line.split()[-1] for line in mapped.splitlines() if "/libgomp" in line})
    ]
