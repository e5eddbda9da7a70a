"""Batches of a mix whose pictures are decoded ahead of them: each source has a window of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import psutil

from provla.core.cameras import Looks, stacked
from provla.core.files import size as in_words
from provla.dataset.cache import Frames
from provla.dataset.demonstrations import Array, Demonstrations
from provla.dataset.joined import Joined
from provla.dataset.sampler import MixSampler, Sampler, sampler_of
from provla.dataset.window import Asked, WindowSampler

FINE = 2**20  # to how much of the largest weight the others are rounded, where they are no whole numbers


class Shares:
    """Which source each sample of a training is of, counted from its first, and which of that source's.

    Of however many samples each source has had its share to within one for each source before it, and how many those
    are is computed, not counted: any step can be the first.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        given = np.array(weights, dtype=np.float64)
        if (given != given.round()).any() or given.max() > 2**30:
            given = np.maximum(1, (given / given.max() * FINE).round())
        self.weights: list[int] = given.astype(np.int64).tolist()

    def before(self, samples: Array) -> Array:
        """(S,…): how many of each source come before these samples (…)."""
        left, rest, found = np.asarray(samples, dtype=np.int64), sum(self.weights), []
        for weight in self.weights:
            found.append(left * weight // rest)
            left, rest = left - found[-1], rest - weight
        return np.stack(found)

    def of(self, first: int, count: int) -> tuple[Array, Array]:
        """(n,), (n,): the sources of `count` samples, and which of their source's each is."""
        before = self.before(np.arange(first, first + count + 1))
        numbers = np.diff(before).argmax(0)
        return numbers, before[numbers, np.arange(count)]

    def samples(self, number: int, places: Array) -> Array:
        """The other way: which samples these of a source are."""
        rest = sum(self.weights[number:])
        found: Array = -(-(places + 1) * rest // self.weights[number]) - 1
        for weight in reversed(self.weights[:number]):  # the sources that had their turn before it
            found, rest = found * (rest + weight) // rest, rest + weight
        return found


class MixWindowSampler(MixSampler):
    """A `MixSampler` that lets pictures be decoded ahead. Each source is gone through in the order of a `WindowSampler`
    of its own, epoch after epoch, and has its share of every step's samples, to within one; a step's samples are turned
    round by an amount that depends on the step, so that ranks see all sources.
    """

    def _arrange(self) -> None:
        super()._arrange()
        parts = list(self.data.parts.items())
        self._windows = [_Share(self, number, name) for number, (name, _) in enumerate(parts)]
        asked = [part.weight for _, part in parts]
        self.shares = Shares([len(one) if w is None else w for one, w in zip(self._windows, asked, strict=True)])
        takes, free = sum(one.takes() for one in self._windows), psutil.virtual_memory().available
        if takes > free:
            raise ValueError(
                f"dataset.cache=window: the rings of {len(parts)} sources take {in_words(takes)}, and {in_words(free)} "
                "of memory are free; a smaller dataset.window_gb (of each), dataset.window_blocks, "
                "dataset.window_frames or image_size takes less"
            )

    def rows_at(self, seed: int, step: int, size: int) -> Array:
        numbers, places = self.places(step, size)
        rows = np.empty(size, dtype=np.int64)
        for one in self._windows:
            mine = numbers == one.number
            rows[mine] = one.begin + one.rows_of(seed, places[mine])
        return rows

    def shuffled(self, seed: int, epoch: int) -> Array:
        """As many samples as there are, in the order in which they come."""
        return self.rows_at(seed, epoch, len(self.rows))

    def places(self, step: int, size: int) -> tuple[Array, Array]:
        """(B,), (B,): of a step's samples the sources, and which of their source's each is."""
        numbers, places = self.shares.of(step * size, size)
        by = int(_turned(np.array(step), size))
        return np.roll(numbers, by), np.roll(places, by)

    def ranks_of(self, number: int, places: Array, asked: Asked) -> Array:
        """The ranks that draw these samples of a source."""
        step, at = np.divmod(self.shares.samples(number, places), asked.size)
        found: Array = (at + _turned(step, asked.size)) % asked.size % asked.ranks
        return found

    def pictures(self, seed: int, step: int, size: int, rank: int, ranks: int) -> Looks:
        numbers = self.places(step, size)[0][rank::ranks]

        def placed(seen: list[Frames]) -> Frames:
            found = np.empty((len(numbers), *seen[0].shape[1:]), dtype=np.uint8)
            for one, pictures in zip(self._windows, seen, strict=True):
                found[numbers == one.number] = pictures
            return found

        return stacked([one.pictures(seed, step, size, rank, ranks) for one in self._windows], placed)

    def waited(self) -> float:
        return sum(one.waited() for one in self._windows)

    def close(self) -> None:
        for one in self._windows:
            one.close()


class _Share(WindowSampler):
    """One source's window. Its rows are those of the source alone; `begin` is where they lie in the mix."""

    def __init__(self, mix: MixWindowSampler, number: int, name: str) -> None:
        self.mix, self.number, self.name, self.stream = mix, number, name, (number,)
        whole, part = mix.data, mix.data.parts[name]
        own = np.sort([*part.train, *part.val])
        first, last = int(own[0]), int(own[-1]) + 1
        self.begin, end = int(whole.starts[first]), int(whole.starts[last])
        data = replace(
            whole,
            frames={camera: _part(whole, camera, number) for camera in whole.frames},
            state=whole.state[self.begin : end],
            actions=whole.actions[self.begin : end],
            starts=whole.starts[first : last + 1] - self.begin,
            task=whole.task[first:last],
            row_task=None if whole.row_task is None else whole.row_task[self.begin : end],
            window=part.window,
            parts={},
            per_source=False,
        )
        super().__init__(data, np.intersect1d(mix.episodes, own) - first, *mix._sizes)

    def rows_of(self, seed: int, places: Array) -> Array:
        """The rows of these samples of the source, epoch after epoch."""
        epochs, at = np.divmod(places, len(self.rows))
        found = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            found[mine] = self._order(seed, epoch)[at[mine]]
        return found

    def drawn(self, asked: Asked, step: int) -> tuple[Array, Array]:
        numbers, places = (one[asked.rank :: asked.ranks] for one in self.mix.places(step, asked.size))
        mine = places[numbers == self.number]
        return self.rows_of(asked.seed, mine), mine // len(self.rows)

    def coming(self, asked: Asked, step: int) -> Iterator[tuple[int, Array]]:
        size = len(self.rows)
        first = int(self.mix.shares.before(np.array(step * asked.size))[self.number])
        for epoch in itertools.count(first // size):
            places = np.arange(max(first, epoch * size), (epoch + 1) * size)
            rows = self.shuffled(asked.seed, epoch)[places - epoch * size]
            yield epoch, rows[self.mix.ranks_of(self.number, places, asked) == asked.rank]

    def _check_memory(self) -> None:
        """The mix looks at all of them."""


def _part(data: Demonstrations, camera: str, number: int) -> Frames:
    """A source's pictures."""
    frames = data.frames[camera]
    assert isinstance(frames, Joined)
    return frames.parts[number]  # type: ignore[return-value]


def _turned(step: Array, size: int) -> Array:
    """By how many places a step's samples are turned round: spread evenly over the steps, as multiples of the golden
    ratio are.
    """
    found: Array = (step * 2654435769 % 2**32) * size >> 32
    return found


def learner_of(data: Demonstrations) -> type[Sampler]:
    """The order in which a training goes through its data."""
    if any(part.window is not None for part in data.parts.values()):
        return MixWindowSampler
    return sampler_of(data) if data.window is None else WindowSampler
