"""A job that hangs ends at its time limit: raised where Python runs, and by a thread beside it where it does not."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

RING = getattr(signal, "SIGVTALRM", None)  # SIGALRM has other users
GRACE = 10.0  # seconds at least: what is interrupted may write a checkpoint on a busy machine
restart: list[
    str
] = []  # what a sweep's process becomes after a job that hung: its own command; empty: a process without a sweep
_rang: list[bool] = []  # the jobs that were interrupted here, and whether in the middle of an import


class TimedOut(BaseException):
    """A job took longer than it may. No `Exception`: nothing may swallow it."""


@contextmanager
def limited(minutes: float | None, give_up: Callable[[str], None]) -> Iterator[None]:
    """The block ends with `TimedOut` after so many minutes; None: never. After it, call `leave`.

    Where it does not answer within a grace (a hang in native code), a thread calls `give_up` with the reason, and the
    process ends or, where it runs a whole sweep (`restart`), begins it again, which goes on with the other jobs. Native
    code that holds Python's lock stops that thread too; then the process ends with every thread's traceback. Only in
    the main thread, which alone can be interrupted.
    """
    main = threading.current_thread()
    if minutes is None or RING is None or main is not threading.main_thread():
        yield
        return
    seconds, over = 60 * minutes, threading.Event()
    grace = max(GRACE, min(60.0, 0.2 * seconds))
    reason = f"timeout: the job took longer than hydra.sweeper.timeout={minutes:g} minutes"

    def ring(signum: int, frame: FrameType | None) -> None:
        if not over.is_set():
            _rang.append(_importing(frame))
            raise TimedOut(reason)

    def watch() -> None:
        if over.wait(seconds):
            return
        signal.pthread_kill(main.ident or 0, RING)
        if over.wait(grace):
            return
        with suppress(Exception):
            give_up(f"{reason}, and hung outside of Python")
        _begin_again()

    before = signal.signal(RING, ring)
    with suppress(OSError, ValueError, AttributeError):
        faulthandler.dump_traceback_later(seconds + 3 * grace, exit=True, file=2)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        faulthandler.cancel_dump_traceback_later()
        # A signal that is late must not end the process, as its default would.
        signal.signal(RING, signal.SIG_IGN if before == signal.SIG_DFL else before)


def leave(worker: bool) -> None:
    """Ends a process that a job which hung has left in an unknown state: a sweep's own begins its command again.

    worker: of a launcher, which goes on with its next job unless that one was interrupted in an import, whose rest
    would be missing.
    """
    if _rang and (restart or (worker and any(_rang))):
        _begin_again()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _begin_again() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if restart:
        os.execv(restart[0], restart)
    os._exit(1)
