"""Worlds in processes of their own: a world that raises, exits or hangs costs its episode and nothing else.

A worker process owns several worlds. One that dies or does not answer in time is ended and started again; the world
that it was busy with has
lost its episode, and its neighbours are brought back by playing their episodes again up to where they were: the same
seed and the same actions.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from provla.core.types import Spec
from provla.core.world import Episode
from provla.env.chunk import Seen, Sizes
from provla.env.suite import option, tasks_of
from provla.env.worker import Array, Call, Fault, Refusal

START = 300.0  # seconds a worker may take to import what its worlds need
AWAKE = 20.0  # and one that was idle, to answer again
TICK = 1.0
PIPE = 32_768  # bytes of chunks that a pipe is sure to take while its worker speaks and nobody listens

_idle: list[_Process] = []  # workers that the next evaluation of this process takes over
_lock = threading.Lock()


class NoWorlds(ValueError):
    """No process for the worlds of a suite can be started, or started again: whoever plays in them has none."""


class _Process:
    """A worker process and the pipe to it. spent: seconds since its last answer. calls: those that it has not
    answered.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.noise = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (it lives as long as the process)
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        # Mesa's rasteriser and numpy take one thread: there is a worker per core already.
        environment = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from provla.env.worker import main; main()",
                str(theirs.fileno()),
                str(os.getpid()),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.noise,
            stderr=self.noise,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's affair
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.calls: deque[Call] = deque()
        self.spent, self.idle = 0.0, False

    def ask(self, message: Mapping[str, Any], calls: list[Call]) -> None:
        self.spent = 0.0
        self.calls.extend(calls)
        with contextlib.suppress(OSError):  # its end is noticed where the answer is read
            self.connection.send(message)

    def answer(self, timeout: float) -> Any:
        """`EOFError` where it has ended, `TimeoutError` where it says nothing."""
        if not self.connection.poll(timeout):
            raise TimeoutError
        try:
            return self.connection.recv()
        except OSError as error:
            raise EOFError from error

    def end(self, patience: float = 0.0) -> str:
        """Ends it and everything it has started; how it had ended already, in words. patience: seconds to wait for
        that.
        """
        code = None
        if self.noise.closed:
            return "the process was ended"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(patience)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        last = self._last_words()
        self.noise.close()
        if code is None:
            return "the process closed its pipe"
        return (f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process exited with code {code}") + (
            f": {last}" if last else ""
        )

    def _last_words(self) -> str:
        self.noise.seek(max(0, os.fstat(self.noise.fileno()).st_size - 2000))
        lines = [line.strip() for line in self.noise.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:150] if lines else ""


@atexit.register
def end_idle() -> None:
    """Ends the workers that wait for another suite; the next one starts its own."""
    with _lock:
        while _idle:
            _idle.pop().end()


@dataclass
class _Story:
    """An episode so far: what brings a world back to where it was."""

    episode: Episode
    chunks: list[Array] = field(default_factory=list)


class Worlds:
    """The worlds of a suite, numbered: `slots` of them, spread over the suite's tasks and over worker processes.

    suite: see `interfaces.Suite`; it is sent to the workers by pickle, which make the worlds. seats: for so many
    policies at the same time, each with as many worlds as one alone has; `seats` are the numbers of each one's.
    Workers start beside whatever comes before the first `ask`, which raises what went wrong.
    """

    def __init__(self, suite: Any, spec: Spec, slots: int | None = None, seats: int = 1, check: bool = False) -> None:
        tasks = tasks_of(suite)
        # As many of each task: else the last episodes of one are played by few worlds, while the others rest.
        each = -(-option(suite, "num_envs") // len(tasks)) or 1
        own = [tasks[i % len(tasks)] for i in range(slots or each * len(tasks))]
        self.tasks = own * seats
        self.seats = [range(seat * len(own), (seat + 1) * len(own)) for seat in range(seats)]
        self._timeout = float(option(suite, "timeout"))
        sizes = Sizes(spec.cameras, spec.n_obs_steps, spec.n_past_actions)
        self._task: dict[str, Any] = {"suite": suite, "sizes": sizes, "check": check}
        self._stories: dict[int, _Story] = {}
        self._lost: dict[int, Fault] = {}
        self._due: set[int] = set()
        self._heard: dict[int, Seen | Fault] = {}  # what came of those that are due
        self._workers: list[_Process] = []
        self._starting = True
        count = min(option(suite, "workers") or torch.get_num_threads(), len(self.tasks))
        try:
            with _lock:
                taken = [_idle.pop() for _ in range(min(count, len(_idle)))]
            self._workers = taken + [_Process() for _ in range(count - len(taken))]
            for number in range(count):
                self._tell(number)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Worlds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self._starting:  # an answer that nobody has heard is no start for the next suite
            self._end()
            return
        for worker in self._workers:
            worker.ask({}, [])
            worker.idle = True
        with _lock:
            _idle.extend(self._workers)

    def play(self, moves: Mapping[int, Episode | Array]) -> dict[int, Seen | Fault]:
        """slot → an episode to begin, or a chunk to execute, all at the same time; slot → what the world showed, or why
        it could not.
        """
        self.ask(moves)
        return self.hear(moves)

    def ask(self, moves: Mapping[int, Episode | Array]) -> None:
        """The first half of `play`: the worlds begin. Those of another seat may be at work."""
        if self._starting:
            for number in range(len(self._workers)):
                self._engage(number)
            self._starting = False
        if self._due and sum(move.nbytes for move in moves.values() if not isinstance(move, Episode)) > PIPE:
            self.wait()  # else both ends might wait to be listened to
        calls: list[Call] = []
        self._due |= moves.keys()
        for slot, move in moves.items():
            if isinstance(move, Episode):
                self._lost.pop(slot, None)
                self._stories[slot] = _Story(move)
                calls.append(self._again(slot))
            elif slot in self._lost:
                self._heard[slot] = self._lost.pop(slot)
            else:
                story = self._stories[slot]
                story.chunks.append(move)
                calls.append(Call(slot, story.episode.task, None, story.episode.film, (move,)))
        for number, worker in enumerate(self._workers):
            mine = [call for call in calls if call.slot % len(self._workers) == number]
            if mine:
                worker.ask({"calls": mine}, mine)

    def hear(self, slots: Collection[int]) -> dict[int, Seen | Fault]:
        """The second half: what those showed that were asked."""
        self._gather(slots)
        self._due.difference_update(slots)
        return {slot: self._heard.pop(slot) for slot in slots}

    def wait(self) -> None:
        """Until no world is at work; what they show is kept for who hears it."""
        self._gather(set(self._due))

    def leave(self, seat: Collection[int]) -> None:
        """Forgets the episodes of a seat whose policy plays no further."""
        self.hear(self._due.intersection(seat))
        for slot in seat:
            self._stories.pop(slot, None)

    def _gather(self, slots: Collection[int]) -> None:
        """All answers that are due from these. A fault of a world that is only brought back is kept until it is asked.
        Where a worker had to be started again, all of them: what brings a world back is no answer to its next move.
        """
        then, every = time.monotonic(), False
        while busy := [worker for worker in self._workers if any(every or call.slot in slots for call in worker.calls)]:
            ready = set(wait([worker.connection for worker in busy], TICK))
            now = time.monotonic()
            for worker in busy:
                # No longer than that: this process itself may have been stopped meanwhile.
                worker.spent += min(now - then, 2 * TICK)
                call = worker.calls[0]
                answer: Seen | Fault
                if worker.connection in ready:
                    try:
                        answer = worker.answer(0)
                        worker.calls.popleft()
                        worker.spent = 0.0
                    except EOFError:
                        answer = Fault(f"{worker.end(patience=1.0)} ({_doing(call)})")
                        self._restart(worker, call.slot)
                        every = True
                elif worker.spent > self._timeout * max(1, len(call.chunks)):
                    worker.end()
                    answer = Fault(f"no answer within {self._timeout:g} s ({_doing(call)})")
                    self._restart(worker, call.slot)
                    every = True
                else:
                    continue
                if isinstance(answer, Fault) or answer.ending:
                    self._stories.pop(call.slot, None)
                if call.slot in self._due:
                    known = self._heard.get(call.slot)
                    self._heard[call.slot] = answer if known is None or isinstance(answer, Fault) else known
                elif isinstance(answer, Fault):
                    self._lost[call.slot] = answer
            then = time.monotonic()

    def _restart(self, worker: _Process, culprit: int) -> None:
        """Another process for the same worlds; those that were in an episode are played again up to where they were."""
        number = self._workers.index(worker)
        self._stories.pop(culprit, None)
        self._workers[number] = _Process()
        self._tell(number)
        self._engage(number)
        calls = [
            self._again(slot)
            for slot in sorted(self._stories)
            if slot % len(self._workers) == number and slot not in self._lost
        ]
        if calls:
            self._workers[number].ask({"calls": calls}, calls)

    def _again(self, slot: int) -> Call:
        story = self._stories[slot]
        return Call(slot, story.episode.task, story.episode.seed, story.episode.film, tuple(story.chunks))

    def _tell(self, number: int) -> None:
        """Tells a worker the suite."""
        worker = self._workers[number]
        try:
            # An idle worker may be older than the import path, which the suite's module is looked for on.
            worker.ask({"path": [place or str(Path.cwd()) for place in sys.path]}, [])
            worker.ask(self._task, [])
        except Exception as error:  # pickle has many
            kind = type(self._task["suite"]).__name__
            raise NoWorlds(
                f"env: {kind} cannot be sent to the processes of its worlds ({error}); it must hold plain values only"
            ) from error

    def _engage(self, number: int) -> None:
        """Hears whether a worker has taken the suite. An idle one may have ended meanwhile, and anything can happen at
        a start: a second one has its chance.
        """
        for last in (False, True):
            worker = self._workers[number]
            limit = AWAKE if worker.idle and not self._task["check"] else START
            try:
                problem = worker.answer(limit)
                worker.idle = False
                if not problem:
                    return
                if isinstance(problem, Refusal):
                    raise ValueError(problem)
                break  # it cannot make anything of the suite
            except TimeoutError:
                problem = f"no answer within {limit:g} s"
                worker.end()
            except EOFError:
                problem = worker.end(patience=1.0)
            if not last:
                self._workers[number] = _Process()
                self._tell(number)
        raise NoWorlds(f"env: a process for the worlds could not start: {problem}")

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []


def _doing(call: Call) -> str:
    return "reset" if not call.chunks else "step"


def rehearse(suite: Any, spec: Spec, check: bool = False) -> None:
    """One chunk of zeros in the first world, with everything that an episode needs, before the training rather than
    after it. check: first, what the suite says against itself.

    `ValueError` with what the world lacks or does wrong.
    """
    with rehearsing(suite, spec, check):
        pass


@contextlib.contextmanager
def rehearsing(suite: Any, spec: Spec, check: bool = False) -> Iterator[None]:
    """`rehearse`, whose process starts beside what is done inside."""
    first = suite.episodes[0]
    filmed = Episode(first.task, first.instruction, first.seed, 1)
    with Worlds(suite, spec, 1, check=check) as worlds:
        yield
        for move in (filmed, np.zeros((spec.n_action_steps, spec.action_size), np.float32)):
            seen = worlds.play({0: move})[0]
            if isinstance(seen, Fault):
                raise ValueError(f"env: a rehearsal of {first.task} failed: {seen}")
