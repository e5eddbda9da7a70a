"""Batches of demonstrations whose pictures fit neither in memory nor, decoded, on the disk."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psutil

from provla.core.cameras import Looks
from provla.core.cameras import in_words as sizes_in_words
from provla.core.files import size as in_words
from provla.core.progress import console
from provla.core.ranks import cores, joined
from provla.dataset.demonstrations import Array
from provla.dataset.ring import Loan, Ring
from provla.dataset.sampler import Sampler
from provla.dataset.stored import Stored

TRIED, MUCH = 20, 0.02  # steps, and the share of their time spent waiting, from which on it is said


class Asked(NamedTuple):
    """The arguments of `Sampler.step` that do not change in a training."""

    seed: int
    size: int
    rank: int
    ranks: int


@dataclass
class Need:
    """A block that steps will draw from. key: epoch · blocks + number. rows, uses: of its frames; samples: drawn of
    it.
    """

    key: int
    rows: Array
    uses: Array
    samples: int


class WindowSampler(Sampler):
    """A `Sampler` whose order lets pictures be decoded ahead, block by block, into a ring that is bounded.

    Each episode is cut evenly into blocks of at most `window.frames` frames. An epoch goes through all blocks in a
    drawn order, and has `window.blocks` of them open at a time: a block's samples are scattered, evenly and at random,
    over the time in which that many blocks go by. Where that time reaches beyond the beginning or the end of the epoch,
    it is folded back into it, so that every sample comes once an epoch; there half as many blocks are open, each twice
    as much. With twice as many open blocks as there are it is a full shuffle. The order is computed from (seed, epoch)
    with nothing decoded: batches are those a frame cache gives for the same rows, and any step can be the first.
    """

    name = ""  # of a mix's source, whose window it is
    stream: tuple[int, ...] = ()  # of random numbers

    def _arrange(self) -> None:
        data = self.data
        self.episodes = np.sort(self.episodes)
        self.rows = data.rows(self.episodes)
        self._stored = [frames for frames in self.frames if isinstance(frames, Stored)]
        if data.window is None or len(self._stored) < len(self.frames):
            raise ValueError(f"{data.source}: its frames lie in arrays, which no window goes through")
        self.window, self._seen = data.window, len(self._behind)
        lengths = np.diff(data.starts)[self.episodes]
        parts = -(-lengths // self.window.frames)
        owner = np.repeat(np.arange(len(lengths)), parts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
        first = data.starts[self.episodes][owner]
        self.begins = first + lengths[owner] * number // parts[owner]  # of blocks: rows begins … ends - 1
        self.ends = first + lengths[owner] * (number + 1) // parts[owner]
        self._walk: _Walk | None = None
        self._waited = 0.0
        self._check_memory()

    def pictures(self, seed: int, step: int, size: int, rank: int, ranks: int) -> Looks:
        asked = Asked(seed, size, rank, ranks)
        if self._walk is None or self._walk.asked != asked or not self._walk.comes_to(step):
            self.close()
            self._walk = _Walk(self, asked, step)
        found, waited = self._walk.pictures(step)
        self._waited += waited
        return found

    def waited(self) -> float:
        found, self._waited = self._waited, 0.0
        return found

    def close(self) -> None:
        if self._walk is not None:
            self._walk.ring.close()
            self._walk = None

    def drawn(self, asked: Asked, step: int) -> tuple[Array, Array]:
        """(n,), (n,): the rows that a rank's step draws, and the epoch of each."""
        rows = self.rows_at(asked.seed, step, asked.size)[asked.rank :: asked.ranks]
        return rows, np.full(len(rows), step // max(1, len(self.rows) // asked.size))

    def coming(self, asked: Asked, step: int) -> Iterator[tuple[int, Array]]:
        """Of each epoch, the rows that a rank's steps from this one on draw of it, in their order; endless."""
        per_epoch = max(1, len(self.rows) // asked.size)
        for epoch in itertools.count(step // per_epoch):
            order = self.shuffled(asked.seed, epoch)[: per_epoch * asked.size]
            order = order[(step % per_epoch) * asked.size :]
            step = 0
            yield epoch, order[np.arange(len(order)) % asked.size % asked.ranks == asked.rank]

    def ahead(self, asked: Asked, step: int) -> Iterator[Need]:
        """The blocks that a rank's steps from this one on draw from, in the order in which they need them; endless."""
        for epoch, rows in self.coming(asked, step):
            wanted = np.zeros(len(self._first), dtype=bool)
            wanted[rows] = True
            blocks = self.block_of(rows)
            first = np.full(len(self.begins), len(rows))
            first[blocks[::-1]] = np.arange(len(rows))[::-1]  # of several uses the first stays
            for block in np.argsort(first, kind="stable")[: np.count_nonzero(first < len(rows))].tolist():
                begin, end = int(self.begins[block]), int(self.ends[block])
                drawn = begin + np.flatnonzero(wanted[begin:end])
                known, uses = np.unique(self.seen(drawn), return_counts=True)
                yield Need(epoch * len(self.begins) + block, known, uses, len(drawn))

    def block_of(self, rows: Array) -> Array:
        found: Array = np.searchsorted(self.begins, rows, side="right") - 1
        return found

    def shuffled(self, seed: int, epoch: int) -> Array:
        rng, count = np.random.default_rng([seed, epoch, 0, *self.stream]), len(self.begins)
        middle = np.empty(count)  # of the time in which a block is open; a block's turn takes 1
        middle[rng.permutation(count)] = np.arange(count) + 0.5
        wide = min(self.window.blocks, 2 * count)
        when = np.repeat(middle, self.ends - self.begins) + wide * (rng.random(len(self.rows)) - 0.5)
        when = np.abs((when + count) % (2 * count) - count)  # folded at 0 and count
        found: Array = self.rows[np.argsort(when, kind="stable")]
        return found

    def capacity(self, asked: Asked) -> int:
        """Frames that the ring holds; not more than two epochs take. `ValueError` where that is too little for a step's
        samples beside what is open.
        """
        needed, whole = self.needed(asked), 2 * int((self.ends - self.begins + self._seen - 1).sum())
        if self._given(asked) < needed:
            raise self.too_small(needed)
        return min(self._given(asked), max(whole, needed))

    def needed(self, asked: Asked) -> int:
        """Frames of open blocks that are still to be drawn, at most. Of a block whose time is half over half the
        samples are gone; with T observation steps a frame goes with the last of T, and a step's when it is gathered.
        The draws make it more or less by half the root: three roots are five standard deviations.
        """
        steps, count = self._seen, len(self.begins)
        at_once = min(min(self.window.blocks, 2 * count) * steps / (steps + 1), count) + 2
        longest = int((self.ends - self.begins).max(initial=0)) + steps - 1
        mine = at_once * longest * (1 - (1 - 1 / asked.ranks) ** steps)
        return math.ceil(mine + 3 * math.sqrt(mine)) + asked.size // asked.ranks * steps

    def too_small(self, needed: int, where: str = "") -> ValueError:
        """What to do about a ring that does not hold so many frames."""
        where += f", of the source {self.name}" if self.name else ""
        w, cameras = self.window, len(self._stored)
        return ValueError(
            f"dataset.window_gb={'null' if w.gb is None else f'{w.gb:g}'}{where}: dataset.window_blocks={w.blocks} "
            f"open blocks of dataset.window_frames={w.frames} take {math.ceil(needed * self._bytes / 1e5) / 1e4:g} GB "
            f"in pictures of {sizes_in_words(self.data.sizes)} of {cameras} camera{'s' * (cameras > 1)}; expected at "
            "least that, which changes no result, or fewer blocks, shorter ones, or a smaller dataset.image_size"
        )

    @property
    def _bytes(self) -> int:
        return int(sum(math.prod(frames.shape[1:]) for frames in self._stored))

    def _given(self, asked: Asked) -> int:
        """Frames that `window_gb` asks for."""
        gb = self.window.gb
        return self.needed(asked) * 3 // 2 if gb is None else int(gb * 1e9 / self._bytes)

    def _check_memory(self) -> None:
        """`ValueError` where the ring, as it was asked for, holds less than what is open, or the memory less than the
        ring.
        """
        w, takes, free = self.window, self.takes(), psutil.virtual_memory().available
        if takes > free:
            raise ValueError(
                f"dataset.window_gb={'null' if w.gb is None else f'{w.gb:g}'}: the ring of dataset.window_blocks="
                f"{w.blocks} open blocks of dataset.window_frames={w.frames} takes {in_words(takes)}, and "
                f"{in_words(free)} of memory are free; fewer blocks, shorter ones, or a smaller dataset.image_size "
                "take less"
            )

    def takes(self) -> int:
        """Bytes of the ring, as it was asked for; `ValueError` where it holds less than what is open."""
        least = Asked(0, 0, 0, joined().size)
        if self._given(least) < self.needed(least):
            raise self.too_small(self.needed(least))
        return self._given(least) * self._bytes


class _Walk:
    """A training's way through its steps, one after the other, and what is decoded ahead of it."""

    def __init__(self, sampler: WindowSampler, asked: Asked, step: int) -> None:
        workers = sampler.window.workers or max(1, cores() // joined().beside)
        self.sampler, self.asked, self.step = sampler, asked, step
        self.ring = Ring(sampler._stored, sampler.capacity(asked), workers)
        self._open: dict[int, Loan] = {}
        self._ahead = sampler.ahead(asked, step)
        self._next = next(self._ahead)
        self._last: Looks | None = None
        self._begun, self._since, self._waited, self._said = step, 0.0, 0.0, False
        of = f" of the source {sampler.name}" if sampler.name else ""
        console.print(
            f"pictures{of} are decoded ahead by {workers} thread{'s' * (workers > 1)}, into a ring of "
            f"{in_words(self.ring.nbytes)} (dataset.cache=window)"
        )

    def comes_to(self, step: int) -> bool:
        """Whether that is the next step, or the last one, whose pictures are still there."""
        return step == self.step or (step == self.step - 1 and self._last is not None)

    def pictures(self, step: int) -> tuple[Looks, float]:
        """Those of the next step, or of the last one again, and the seconds that it has waited for them."""
        if step < self.step and self._last is not None:
            return self._last, 0.0
        sampler = self.sampler
        rows, epochs = sampler.drawn(self.asked, step)
        self._fill()
        keys, seen = epochs * len(sampler.begins) + sampler.block_of(rows), sampler.seen(rows)
        needed = set(keys.tolist())
        if not self._open.keys() >= needed:
            raise sampler.too_small(self.ring.held + len(self._next.rows), f", step {step + 1}")
        loans = {key: self._open[key] for key in sorted(needed)}
        waited = self.ring.wait(list(loans.values()), heed=self.asked.ranks == 1)
        self._tell(waited)
        slots = np.empty_like(seen)
        for key, loan in loans.items():
            mine = keys == key
            slots[mine] = loan.slots[np.searchsorted(loan.rows, seen[mine])]
            loan.left -= int(np.count_nonzero(mine))
            if not loan.left:
                del self._open[key]
        self._last, self.step = self.ring.take(slots), step + 1
        self._fill()
        return self._last, waited

    def _fill(self) -> None:
        """Lets as much be decoded ahead as there is room for."""
        need = self._next
        while (loan := self.ring.admit(need.rows, need.uses, need.samples)) is not None:
            self._open[need.key] = loan
            need = self._next = next(self._ahead)

    def _tell(self, waited: float) -> None:
        """Says once that steps wait, and for how much of their time; the first has to."""
        now = time.monotonic()
        if self.step == self._begun:
            self._since = now
            return
        self._waited += waited
        share, steps = self._waited / (now - self._since), self.step - self._begun
        if not self._said and steps >= TRIED and share > MUCH:
            self._said = True
            console.print(
                f"steps wait for decoded pictures in {share:.0%} of their time (step {self.step + 1}; train/waiting is "
                "the share since the row before): more cores, smaller videos or a larger dataset.window_frames decode "
                "faster"
            )
