"""Batches of demonstrations, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from provla.core.cameras import Looks, each, together
from provla.core.types import Batch, Observation
from provla.dataset.demonstrations import Array, Demonstrations
from provla.dataset.features import Features
from provla.dataset.rows import read_rows


class Sampler:
    """Gathers batches from `Demonstrations`: frames from the memory-mapped cache, chunks from one contiguous array.

    Which rows a step trains on is a pure function of (seed, step): an epoch is a permutation, the rest of an epoch that
    fills no batch is left out.
    """

    def __init__(
        self,
        data: Demonstrations,
        episodes: Array,
        cameras: Sequence[str],
        horizon: int,
        n_obs_steps: int,
        n_past_actions: int = 0,
    ) -> None:
        self.data, self.episodes, self.rows = data, episodes, data.rows(episodes)
        self.frames = [data.frames[camera] for camera in cameras]
        owner = np.repeat(np.arange(len(data.task)), np.diff(data.starts))
        self._first, self._last = data.starts[owner], data.starts[owner + 1] - 1
        self._instruction = np.array(data.instructions, dtype=object)[
            data.task[owner] if data.row_task is None else data.row_task
        ]
        self._source = np.repeat(_sources(data), np.diff(data.starts)) if data.per_source else None
        self._ahead, self._behind = np.arange(horizon), np.arange(1 - n_obs_steps, 1)
        self._before = np.arange(-n_past_actions, 0)
        self._sizes = cameras, horizon, n_obs_steps, n_past_actions
        self._epoch: tuple[tuple[int, int], Array] | None = None
        self.features: list[Features] | None = None  # of each camera's frames, where they are known
        self._arrange()

    def _arrange(self) -> None:
        """What another order of samples needs to know, once the rows are there."""

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, rows: Array, images: Looks | None = None) -> Batch:
        """The samples at these rows of the data set. The first frame of an episode is repeated before its start, the
        last action after its end (where `is_pad`). images: theirs (B,T,C,3,h,w), or of each camera (B,T,3,h,w) where
        they differ, where somebody has them already, or the rows (B,T) at which they lie, for whoever has them later
        (`Resident.look`); then there are no features.
        """
        ahead = rows[:, None] + self._ahead  # (B, H)
        last = self._last[rows][:, None]
        behind = self.seen(rows)
        known = self.features if images is None else None
        past, early = self._past(rows)
        return Batch(
            Observation(
                each(self._looked_up(behind) if images is None else images, torch.from_numpy),
                torch.from_numpy(self.data.state[behind]),
                list(self._instruction[rows]),
                past,
                early,
                None
                if known is None
                else together([one[behind] for one in known], lambda alike: torch.stack(alike, 2)),
                source=None if self._source is None else torch.from_numpy(self._source[rows]),
            ),
            torch.from_numpy(self.data.actions[np.minimum(ahead, last)]),
            torch.from_numpy(ahead > last),
        )

    def _past(self, rows: Array) -> tuple[Tensor | None, Tensor | None]:
        """The actions (B,P,A) before these rows, and where there were none (B,P)."""
        if not len(self._before):
            return None, None
        before, first = rows[:, None] + self._before, self._first[rows][:, None]
        early = before < first
        past = np.where(early[..., None], np.float32(0), self.data.actions[np.maximum(before, first)])
        return torch.from_numpy(past), torch.from_numpy(early)

    def _looked_up(self, rows: Array) -> Looks:
        """rows (B,T) → (B,T,C,3,h,w), or of each camera (B,T,3,h,w)."""
        look = np.ndarray.__getitem__ if self.features is None else read_rows
        found = [look(frames, rows) if isinstance(frames, np.ndarray) else frames[rows] for frames in self.frames]
        return together(found, lambda alike: alike[0][:, :, None] if len(alike) == 1 else np.stack(alike, 2))

    def seen(self, rows: Array) -> Array:
        """(B,T): the rows of the frames that are observed at these."""
        found: Array = np.maximum(rows[:, None] + self._behind, self._first[rows][:, None])
        return found

    def pictures(self, seed: int, step: int, size: int, rank: int, ranks: int) -> Looks | None:
        """Those of a training step, where they are made ready before it; None: `gather` looks them up."""
        return None

    def waited(self) -> float | None:
        """Seconds in which steps have waited for pictures since this was last asked; None where none ever does."""
        return None

    def close(self) -> None:
        """Ends what is done ahead of steps."""

    def rows_at(self, seed: int, step: int, size: int) -> Array:
        """The rows of the data set that a training step sees."""
        per_epoch = max(1, len(self.rows) // size)
        return self._order(seed, step // per_epoch)[(step % per_epoch) * size :][:size]

    def step(self, seed: int, step: int, size: int, rank: int = 0, ranks: int = 1, pictures: bool = True) -> Batch:
        """The batch of a training step, with its random draws (see `Batch`). pictures: else the rows at which they lie.

        Of several ranks each gathers its rows `rank::ranks`: the draws of all are made, and its own kept.
        """
        rows = self.rows_at(seed, step, size)
        own = slice(rank, None, ranks)
        images = self.pictures(seed, step, size, rank, ranks) if pictures else self.seen(rows[own])
        batch = self.gather(rows[own], images)
        rng = np.random.default_rng([seed, step, 1])
        noise = rng.standard_normal((len(rows), *batch.actions.shape[1:]), dtype=np.float32)
        return Batch(
            batch.observation,
            batch.actions,
            batch.is_pad,
            noise=torch.from_numpy(noise[own]),
            time=torch.from_numpy(rng.random(size, dtype=np.float32)[own]),
            crop=torch.from_numpy(rng.random((size, 2), dtype=np.float32)[own]),
            color=torch.from_numpy(rng.random((size, 2), dtype=np.float32)[own]),
            key=torch.from_numpy(rng.integers(2**63, size=size)[own]),
            steps_per_sample=self.unpadded(rows) / len(rows) if ranks > 1 else None,
        )

    def shuffled(self, seed: int, epoch: int) -> Array:
        """All rows, in an epoch's order."""
        return np.random.default_rng([seed, epoch, 0]).permutation(self.rows)

    def unpadded(self, rows: Array) -> int:
        """How many steps of these rows' chunks lie before their episodes' ends."""
        return int(np.minimum(self._last[rows] - rows + 1, len(self._ahead)).sum())

    def sources(self) -> dict[str, tuple[float, Sampler]]:
        """Of a mix, source → its share of a training's samples, and a sampler of its own."""
        return {}

    def chunk_steps(self) -> Iterator[tuple[Array, Array]]:
        """Of each step of all chunks, those of one place in them at a time, without what is padded: the row that its
        chunk begins at, and its own.
        """
        for ahead in self._ahead:
            begun = self.rows[self.rows + ahead <= self._last[self.rows]]
            yield begun, begun + ahead

    def _order(self, seed: int, epoch: int) -> Array:
        known = self._epoch  # of this call: another thread may be in another epoch
        if known is None or known[0] != (seed, epoch):
            known = self._epoch = (seed, epoch), self.shuffled(seed, epoch)
        return known[1]


class MixSampler(Sampler):
    """A `Sampler` of several sources, whose shares of each epoch are those of their weights, to a sample. Each is gone
    through in permutations of its own, one after the other, so that none of its samples comes again before the
    others have. An epoch has as many samples as there are, drawn without looking at what came before: any step can be
    the first.
    """

    def _arrange(self) -> None:
        parts = self.data.parts
        own = {name: np.intersect1d(self.episodes, [*part.train, *part.val]) for name, part in parts.items()}
        found = {name: Sampler(self.data, held, *self._sizes) for name, held in own.items() if len(held)}
        asked = [parts[name].weight for name in found]
        weights = np.array([len(one) if w is None else w for one, w in zip(found.values(), asked, strict=True)])
        shares = weights / max(weights.sum(), 1e-300)  # of nothing, where nothing is held out
        exact = shares * len(self.rows)
        self._counts = np.floor(exact).astype(int)  # of an epoch's samples; the largest remainders get one more
        self._counts[np.argsort(self._counts - exact, kind="stable")[: len(self.rows) - self._counts.sum()]] += 1
        self._sources = dict(zip(found, zip(shares.tolist(), found.values(), strict=True), strict=True))

    def sources(self) -> dict[str, tuple[float, Sampler]]:
        for _, one in self._sources.values():
            one.features = self.features
        return self._sources

    def shuffled(self, seed: int, epoch: int) -> Array:
        drawn = []
        for number, (count, (_, one)) in enumerate(zip(self._counts, self._sources.values(), strict=True)):
            first, size = epoch * int(count), len(one)
            turns = range(first // size, -(-(first + int(count)) // size))
            order = [np.random.default_rng([seed, turn, 0, number]).permutation(one.rows) for turn in turns]
            drawn.append(np.concatenate([one.rows[:0], *order])[first % size :][:count])
        return np.random.default_rng([seed, epoch, 0]).permutation(np.concatenate(drawn))


def _sources(data: Demonstrations) -> Array:
    """(E,): whose each episode of a mix is, a position among its parts."""
    found = np.zeros(len(data.task), dtype=np.int64)
    for number, part in enumerate(data.parts.values()):
        found[[*part.train, *part.val]] = number
    return found


def sampler_of(data: Demonstrations) -> type[Sampler]:
    """That of a mix, or of one data set."""
    return MixSampler if data.parts else Sampler
