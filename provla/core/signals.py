"""Signals that ask a process to end: at once where nothing is lost, in a training at the end of the step, in a save
after it.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 become `Interrupted`, so that files are tidied up, children ended, and the exit
code is 128 + n. A second signal ends the process where it stands.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from provla.core.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
LATER = 0.05  # [s] after which a signal that came in the middle of an import is sent again
PATIENCE = 30.0  # [s] that it is put off for in all
SAME = 0.25  # [s] `timeout` and schedulers signal a process and then its whole group: one request
WORKERS = ("popen_loky", "submitit.core._submit")  # in the command lines of the processes that launchers start


@dataclass
class _State:
    """listening: whether the handlers are in place. signum, at: the signal that came, and when. deferred: how many
    blocks hold it back. worker: a launcher's process, whose sweep decides what a second signal does. forward: tells
    others of a signal. put_off: seconds that signals have been put off for an import's sake. requeue: submitit's answer
    to the signal that came, which puts the job into the queue again and exits.
    """

    listening: bool = False
    signum: int | None = None
    at: float = 0.0
    deferred: int = 0
    worker: bool = False
    forward: Callable[[], None] | None = None
    put_off: float = 0.0
    requeue: Callable[[], None] | None = None


_state = _State()
_told: list[Callable[[], None]] = []
_submitit: dict[int, Callable[..., Any]] = {}  # its handlers, in whose place this module's stand


def starting(name: str) -> bool:
    """Whether the module `name` of a command is imported to run it: `python -m provla.train`, or `provla-train`."""
    console = Path(sys.argv[0]).name.startswith("provla-") and multiprocessing.parent_process() is None
    return name == "__main__" or console


def early() -> None:
    """While a command imports what it needs, a signal ends it at once, with its exit code. Until `listening`."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)


@contextmanager
def listening() -> Iterator[None]:
    """In this block signals raise `Interrupted`. The handlers of before come back after it.

    Python tells the main thread alone of signals; in another one this does nothing, as within another such block.
    """
    if _state.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _reset()


@contextmanager
def working() -> Iterator[None]:
    """A job in a launcher's process. Between jobs a signal is remembered, and the next job does not start."""
    if not _state.listening and threading.current_thread() is threading.main_thread():
        _install()  # for as long as the process lives
        _state.worker, _state.deferred = True, 1
    if not _state.worker:
        yield
        return
    check()
    _state.deferred -= 1
    try:
        yield
    finally:
        _state.deferred += 1


@contextmanager
def deferred(forward: Callable[[], None] | None = None) -> Iterator[None]:
    """In this block a signal waits for `check`, or for the block's end. forward: called when one comes."""
    check()
    state = _state  # that of this block: another one may begin and end inside
    state.deferred += 1
    outer, state.forward = state.forward, forward or state.forward
    try:
        yield
    finally:
        state.forward = outer
        state.deferred -= 1
    check()


@contextmanager
def telling(call: Callable[[], None]) -> Iterator[None]:
    """In this block `call` is told of the first signal when it comes: whoever is killed after it was asked to end had
    no say in it.
    """
    _told.append(call)
    try:
        yield
    finally:
        _told.remove(call)


def tell() -> None:
    """Tells whoever listens (see `telling`) that this process is asked to end, or will be ended."""
    for call in _told:
        with suppress(Exception):
            call()


def is_worker() -> bool:
    """Whether this process was started by a sweep's launcher."""
    return _state.worker


def check() -> None:
    """Raises `Interrupted` where a signal has come."""
    if _state.signum is not None:
        raise Interrupted(_state.signum)


def pending() -> int:
    """The signal that has come and waits; 0: none."""
    return _state.signum or 0


def ending() -> None:
    """From here on this process ends by itself: a launcher that asks for it says nothing new, and must not keep it from
    writing why. One that has come already is forgotten.
    """
    _state.signum = None
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def forward_to_workers() -> None:
    """Asks the processes of joblib and submitit_local for the end of their jobs."""

    def ask(child: Any) -> None:
        if any(name in " ".join(child.cmdline()) for name in WORKERS):
            child.send_signal(signal.SIGTERM)

    _for_children(ask)


def _install() -> dict[signal.Signals, Any]:
    before = {}
    for signum in SIGNALS:
        handler = signal.getsignal(signum)
        if handler is None or handler is signal.SIG_IGN:
            continue  # as nohup wants it
        if callable(handler) and _of_submitit(handler) and signum != signal.SIGTERM:  # which it passes over
            _submitit[signum] = handler
        before[signum] = handler
        signal.signal(signum, _on_signal)
    _state.listening = True
    return before


def _reset() -> None:
    global _state
    _state = _State()


def _of_submitit(handler: Any) -> bool:
    return type(getattr(handler, "__self__", None)).__module__.startswith("submitit")


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is half imported: raised there, an exception can be swallowed, and the half stays."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def requeue() -> None:
    """Puts this process's job into its cluster's queue again, and exits, where the signal that came asks for that."""
    if _state.requeue is not None:
        _state.requeue()


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if signum in _submitit:  # it may come after SIGTERM: first the checkpoint, then the queue
        _state.requeue = lambda: _submitit[signum](signum, None)
    if not _state.deferred and _state.put_off < PATIENCE and _importing(frame):
        _state.put_off += LATER
        again = threading.Timer(LATER, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()
        return
    if _state.signum is not None:
        if not _state.worker and time.monotonic() - _state.at > SAME:
            end_at_once(f"{signal.Signals(signum).name} again: ended at once", 128 + signum)
        return
    _state.signum, _state.at = signum, time.monotonic()
    tell()
    if not _state.deferred:
        raise Interrupted(signum)
    if _state.forward is not None:
        _say(
            f"{signal.Signals(signum).name}: jobs end after their present step, with a checkpoint; a second signal "
            "ends all"
        )
        _state.forward()
    elif not _state.worker:
        _say(f"{signal.Signals(signum).name}: ending after this step, with a checkpoint; a second signal ends at once")


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def end_at_once(message: str, code: int = 1) -> None:
    """Ends this process and its children where they stand."""
    _for_children(lambda child: child.kill())
    _say(message)
    os._exit(code)


def _for_children(call: Callable[[Any], None]) -> None:
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended meanwhile
            call(child)


def _say(text: str) -> None:
    """Past Python's buffers, which a handler may have interrupted; a progress bar's hidden cursor is shown again."""
    os.write(2, f"{chr(27) + '[?25h' if os.isatty(2) else ''}\n{text}\n".encode())
