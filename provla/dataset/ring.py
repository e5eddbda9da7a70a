"""A bounded store of pictures that threads decode ahead of their use."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from provla.core.cameras import Looks, apart, each, together
from provla.core.signals import check
from provla.dataset.cache import Frames
from provla.dataset.format import Array
from provla.dataset.stored import Stored

LOOK = 0.1  # [s] after which whoever waits asks whether the run is to end


@dataclass
class Loan:
    """Frames of one episode that have their place in a ring, and how many samples are still to be drawn from them.

    rows (F,) of the data set, ascending; slots (F,) where each lies. error: why they could not be decoded.
    """

    rows: Array
    slots: Array
    left: int
    decoded: bool = False
    error: Exception | None = None


class Ring:
    """At most `capacity` frames, of every camera, at any time. frames: of each camera (capacity,3,h,w) uint8, side by
    side as (capacity,C,3,h,w) where they have one size.

    Threads rather than processes: decoding, scaling and copying release Python's lock, and nothing has to be sent.
    """

    def __init__(self, cameras: Sequence[Stored], capacity: int, workers: int) -> None:
        self.cameras, self.capacity = cameras, capacity
        each_one: list[Frames] = [np.empty((0, *camera.shape[1:]), dtype=np.uint8) for camera in cameras]
        self.frames: Looks = each(
            together(each_one, lambda alike: np.stack(alike, 1)),
            lambda one: np.empty((capacity, *one.shape[1:]), dtype=np.uint8),
        )
        self._free = list(range(capacity))
        self._uses = np.zeros(capacity, dtype=np.int64)  # of each frame, still to come
        self._queue: deque[Loan] = deque()
        self._turn, self._closed = threading.Condition(), False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def admit(self, rows: Array, uses: Array, samples: int) -> Loan | None:
        """Gives frames their places, to be decoded in the order of admission; None where there is no room yet.

        rows (F,), uses (F,): how often each will be taken.
        """
        if len(rows) > len(self._free):
            return None
        slots = np.array(self._free[-len(rows) :])
        del self._free[-len(rows) :]
        self._uses[slots] = uses
        loan = Loan(rows, slots, samples)
        with self._turn:
            self._queue.append(loan)
            self._turn.notify_all()
        return loan

    def wait(self, loans: Sequence[Loan], heed: bool) -> float:
        """Until all of them are decoded; the seconds that took. heed: a signal raises `Interrupted`. What is wrong with
        a video is raised here, by whoever needs it.
        """
        begun = time.monotonic()
        with self._turn:
            while not all(loan.decoded for loan in loans):
                self._turn.wait(LOOK)
                if heed:
                    check()
        for loan in loans:
            if loan.error is not None:
                raise loan.error
        return time.monotonic() - begun

    def take(self, slots: Array) -> Looks:
        """(…,C,3,h,w), or of each camera (…,3,h,w), copied; frames that no one else will take give their places
        back.
        """
        found = each(self.frames, lambda one: one[slots])
        distinct, counts = np.unique(slots, return_counts=True)
        self._uses[distinct] -= counts
        self._free += distinct[self._uses[distinct] == 0].tolist()
        return found

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in apart(self.frames, 1))

    @property
    def held(self) -> int:
        """Frames that have a place now."""
        return self.capacity - len(self._free)

    def close(self) -> None:
        """Ends the threads, each after what it is decoding."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (loan := self._next()) is not None:
            try:
                for number in range(len(self.cameras)):
                    self._decode(loan, number)
            except Exception as error:
                loan.error = error
            with self._turn:
                loan.decoded = True
                self._turn.notify_all()

    def _decode(self, loan: Loan, camera: int) -> None:
        mine = apart(self.frames, 1)[camera]

        def put(at: int, picture: Frames) -> None:
            mine[loan.slots[at]] = picture

        self.cameras[camera].decode(loan.rows, put)

    def _next(self) -> Loan | None:
        with self._turn:
            while not self._queue and not self._closed:
                self._turn.wait()
            return None if self._closed else self._queue.popleft()
