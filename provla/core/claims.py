"""Claims: who works on what, among processes of one host or of several that share a disk.

A file lock is not enough there: some network file systems grant it to everybody. A claim is a folder of numbered terms,
each made by `mkdir`, which every file system gives to one caller alone; the owner is that of the highest term. An owner
says who it is (host, process) and beats: a thread rewrites a counter every few seconds. A term that was given back, or
whose owner is gone, is followed by the next one. Gone is, on the same host, a process that does not run any more, which
is known at once; and on another host one whose beat has not changed for `STALE` seconds of the reader's own clock, so
that no two clocks are ever compared. An owner that was held up for that long (SIGSTOP, a host that stood still) finds a
higher term than its own when it goes on: then its process ends where it stands, for somebody else writes there now. It
looks with its next beat, and before a file takes another's place (`files.atomic`); a single write that was under way
when it was stopped is still made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from provla.core import signals

BEAT = 5.0  # [s] between two beats of an owner
STALE = 60.0  # [s] without a beat after which an owner on another host counts as gone
POLL = (0.05, 1.0)  # [s] between two looks of who waits: at first, and at most
OWNER, BEATS, FREE = "owner.json", "beat", "was.json"  # a term's files; OWNER becomes FREE when it is given back


class Taken(ValueError):
    """A claim that another process holds. who: it, in words."""

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(f"{path} is held by {who}; wait for its end, or stop it")
        self.who = who


@dataclass(frozen=True)
class Host:
    """name: for people. kernel: names its start and its numbering of processes (containers have their own)."""

    name: str
    kernel: str


@dataclass(frozen=True)
class Owner:
    """Who holds a claim. started: when its process began, as the kernel counts; a number is given again to another
    process. token: of this one claim.
    """

    host: str
    kernel: str
    pid: int
    started: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "a process that has not said who it is"

    @property
    def here(self) -> bool:
        return (self.host, self.kernel) == (HERE.name, HERE.kernel)

    @property
    def gone(self) -> bool:
        """Whether it is known at once that nobody holds the claim any more: only on its own host."""
        if not self.here:
            return False
        if self.pid == os.getpid():  # this one's own, or left by the command that this process ran before it (execv)
            return self.token not in _held
        return not _runs(self.pid, self.started)


def boot() -> str:
    """Names the time since the machine was started; empty where it cannot be told."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # Linux
    return ""


def _host() -> Host:
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return Host(socket.gethostname(), f"{boot()} {space}")


HERE = _host()
NOBODY = Owner("", "", 0, "", "")
_held: dict[str, Claim] = {}  # token → the claims of this process
_turn = threading.Condition(threading.RLock())
_beating: list[threading.Thread] = []


class Claim:
    """path: a folder that is made and kept, with a term in it: the present one, or the last."""

    def __init__(self, path: Path) -> None:
        self.path, self.token, self.term = path.absolute(), uuid.uuid4().hex, 0
        self.seen = 0.0  # when this process last saw that the claim is its own, by its own clock
        self._beats = 0

    def take(self, patience: float | None = None, waiting: Callable[[str], None] | None = None) -> None:
        """Waits until the claim is this process's. `Taken` after `patience` seconds (None: never) where its owner is
        known to be alive, which of another host takes a beat. waiting: told once who holds it.
        """
        watch, begun, pause = _Watch(), time.monotonic(), POLL[0]
        while True:
            term, owner, free = _look(self.path)
            if free or owner.gone or watch.stale(self.path, term, owner):
                if self._begin(term + 1):
                    return
                time.sleep(POLL[0])
                continue
            if patience is not None and watch.alive and time.monotonic() - begun >= patience:
                raise Taken(self.path, str(owner))
            if waiting is not None:
                waiting(str(owner) if owner.here else f"{owner}; if it is gone, that shows after {STALE:g} seconds")
                waiting = None
            time.sleep(pause)
            pause = min(2 * pause, POLL[1])

    def release(self) -> None:
        """Gives the claim back; whoever waits goes on."""
        with _turn:
            mine = _held.pop(self.token, None) is not None
        if mine:
            with contextlib.suppress(OSError):  # the folder was deleted
                (self._place / OWNER).rename(self._place / FREE)  # which a full disk takes too

    def check(self) -> None:
        """Ends this process where the claim is another's by now."""
        if time.monotonic() - self.seen > 2 * BEAT:  # nobody else counts it as gone sooner
            self._look_again()

    def beat(self) -> None:
        self._beats += 1
        with contextlib.suppress(OSError), (self._place / BEATS).open("r+b") as file:
            file.write(b"%012d" % self._beats)  # in place, and as long as before: a full disk takes it
        with contextlib.suppress(OSError):  # a server that does not answer: it is asked again
            self._look_again()

    def _look_again(self) -> None:
        now = time.monotonic()  # before looking: what is true by then may not be true after it
        if _highest(self.path) == self.term:
            self.seen = now
        else:
            _leave(self)

    @property
    def _place(self) -> Path:
        return self.path / f"{self.term:06d}"

    def _begin(self, term: int) -> bool:
        """Whether this process made the term, and it is the highest: one that waited long may make one anew that was
        cleared away.
        """
        now, self.term = time.monotonic(), term
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._place.mkdir()
        except FileExistsError:
            return False
        try:
            (self._place / BEATS).write_bytes(b"%012d" % 0)
            me = Owner(HERE.name, HERE.kernel, os.getpid(), _started(os.getpid()), self.token)
            with _turn:
                _held[self.token] = self
            (self._place / OWNER).write_text(json.dumps(asdict(me)))
            others = set(_terms(self.path)) - {term}
        except FileNotFoundError:  # held up here for so long that others have gone on
            self._forget()
            return False
        except BaseException:  # a full disk, a signal
            self._forget()
            raise
        if max(others, default=0) > term:
            self._forget()
            return False
        for old in others:
            shutil.rmtree(self.path / f"{old:06d}", ignore_errors=True)
        self.seen = now
        _start_beating()
        return True

    def _forget(self) -> None:
        with _turn:
            _held.pop(self.token, None)
        shutil.rmtree(self._place, ignore_errors=True)


@contextmanager
def claimed(path: Path, patience: float | None = None, waiting: Callable[[str], None] | None = None) -> Iterator[Claim]:
    """The block holds the claim `path`; see `Claim.take`."""
    claim = Claim(path)
    claim.take(patience, waiting)
    try:
        yield claim
    finally:
        claim.release()


def holder(path: Path) -> str:
    """Who holds the claim, in words; empty where nobody does. Of another host's, this waits for a beat, `STALE` seconds
    at most.
    """
    watch, pause, path = _Watch(), POLL[0], path.absolute()
    while True:
        term, owner, free = _look(path)
        if free or owner.gone or watch.stale(path, term, owner):
            return ""
        if watch.alive:
            return str(owner)
        time.sleep(pause)
        pause = min(2 * pause, POLL[1])


def check_all() -> None:
    """Ends this process where one of its claims is another's by now; called before anything is written in its place."""
    for claim in list(_held.values()):
        claim.check()


class _Watch:
    """What one who waits has seen of an owner, by its own clock. alive: it is known to be at work."""

    def __init__(self) -> None:
        self.alive = False
        self._last: tuple[int, str, str] | None = None
        self._since = 0.0

    def stale(self, path: Path, term: int, owner: Owner) -> bool:
        """Looks again; whether nothing has changed for so long that the owner, of another host, is gone."""
        if owner.here:
            self.alive = True
            return False
        # Opened anew: on network file systems that asks the server, where the time of change may be remembered.
        now = (term, owner.token, _text(path / f"{term:06d}" / BEATS))
        if now != self._last:
            self.alive, self._last, self._since = self._last is not None, now, time.monotonic()
        return time.monotonic() - self._since > STALE


def _look(path: Path) -> tuple[int, Owner, bool]:
    """The highest term, whose it is, and whether it was given back (or there is none)."""
    if not (term := _highest(path)):
        return 0, NOBODY, True
    place = path / f"{term:06d}"
    owner = NOBODY
    with contextlib.suppress(ValueError, TypeError):  # it is being written
        owner = Owner(**json.loads(_text(place / OWNER) or _text(place / FREE)))
    return term, owner, (place / FREE).exists()


def _terms(path: Path) -> list[int]:
    return [int(place.name) for place in path.iterdir() if place.name.isdecimal()]


def _highest(path: Path) -> int:
    try:
        return max(_terms(path), default=0)
    except FileNotFoundError:
        return 0


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""


def _started(pid: int) -> str:
    """When a process of this host began, as the kernel counts; empty where it has ended, or cannot be looked at."""
    if Path("/proc/self/stat").exists():
        with contextlib.suppress(OSError):
            state, *more = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else more[18]  # ended, and its parent has not asked yet
        return ""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return ""


def _runs(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, and maybe hidden from this one
        return _started(pid) in ("", started)
    return _started(pid) == started


def _start_beating() -> None:
    with _turn:
        if not any(thread.is_alive() for thread in _beating):
            _beating[:] = [threading.Thread(target=_beat, name="claims", daemon=True)]
            _beating[0].start()


def _beat() -> None:
    while True:
        with _turn:
            _turn.wait(BEAT)
            claims = list(_held.values())
            if not claims:
                _beating.clear()
                return
        for claim in claims:
            if claim.token in _held:  # not given back meanwhile
                claim.beat()


def _leave(claim: Claim) -> None:
    """Nothing is written any more, no result and no checkpoint: the folder is another's."""
    if claim.token not in _held:
        return
    _, owner, free = _look(claim.path)
    said = f"{owner} {'had' if free else 'has'} it since" if owner.pid else "it was deleted, or taken over"
    signals.end_at_once(
        f"error: this process was held up, and lost its claim {claim.path}: {said}. It ends here and writes nothing "
        "more; start the command again to see what became of it."
    )


def _after_fork() -> None:
    global _turn
    _turn = threading.Condition(threading.RLock())
    _held.clear()  # they are the parent's
    _beating.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
