"""The batches of a training, on its device before they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from provla.core.progress import console
from provla.core.ranks import Ranks
from provla.core.types import Batch
from provla.dataset.resident import Resident, fits, size_of
from provla.dataset.sampler import Sampler

AHEAD = 2  # steps


@dataclass(frozen=True)
class Part:
    """What a forward pass sees of a step's batch, and its share of the step's unpadded chunk steps."""

    batch: Batch
    share: float


class Feed:
    """The parts of each step, equal to the bit to those of `Sampler.step`, wherever they were gathered.

    For a GPU a thread gathers them, `AHEAD` steps ahead and into pinned memory, from where they are copied without
    anybody waiting; and where the frames fit there (`resident.fits`), they lie there and only rows travel. A CPU's are
    gathered when they are asked for, which takes 0.3 ms of a step's hundred or more (benchmarks/ahead.py): a thread
    could gain no more, and the cores are all at work. What is gathered ahead is a function of the step alone, so that a
    training that ends anywhere has drawn nothing.
    """

    def __init__(self, train: Sampler, seed: int, size: int, parts: int, ranks: Ranks, device: torch.device) -> None:
        """size: samples of a step, of which there are `parts`."""
        self.train, self.seed, self.size, self.parts = train, seed, size, parts
        self.ranks, self.device = ranks, device
        self.ahead, self.resident = device.type == "cuda", fits(train, device)
        self._sentences: Sequence[str] | None = None
        self._frames: Resident | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[list[Part]]] = {}

    def __enter__(self) -> Self:
        if self.resident:
            self._frames = Resident(self.train, self.device)
            console.print(f"the frames lie on {self.device}: {size_of(self.train) / 1e9:.2f} GB")
        if self.ahead:
            self._thread = ThreadPoolExecutor(1, "feed", self._begin)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread, self._frames, self._coming = None, None, {}

    def always(self, sentences: Sequence[str] | None) -> None:
        """From now on each part is told all of these sentences, so that the shapes of a step never change; None: only
        its own.
        """
        self._sentences = sentences
        self._coming = {}

    def at(self, step: int) -> list[Part]:
        """The parts of a step's batch, on the device. Any step may be asked for again."""
        if self._thread is None:
            found = self._gather(step)
        else:
            wanted = range(step, step + 1 + AHEAD)
            known = self._coming
            self._coming = {n: known.get(n) or self._thread.submit(self._gather, n) for n in wanted}
            found = self._coming.pop(step).result()
        return [replace(part, batch=self._arrived(part.batch.to(self.device))) for part in found]

    def _begin(self) -> None:
        if self.device.type == "cuda":  # a thread's present GPU is the first one, whatever its process's is
            torch.cuda.set_device(self.device)

    def _gather(self, step: int) -> list[Part]:
        rank, ranks = self.ranks.rank, self.ranks.size
        batch = self.train.step(self.seed, step, self.size, rank, ranks, pictures=self._frames is None)
        whole = self.train.unpadded(self.train.rows_at(self.seed, step, self.size))
        # Weighted by its unpadded steps, the sum over the parts is the large batch's mean.
        found = [Part(part, (~part.is_pad).sum().item() / whole) for part in batch.split(self.parts)]
        return [replace(part, batch=self._ready(part.batch)) for part in found]

    def _ready(self, batch: Batch) -> Batch:
        """As a GPU takes it without asking: sentences looked up, tensors pinned."""
        seen, cuda = batch.observation, self.device.type == "cuda"
        if self._sentences is not None or cuda:
            sentences = self._sentences or list(dict.fromkeys(seen.instruction))
            batch = replace(batch, observation=seen.look_up(sentences))
        return batch.pinned() if cuda else batch

    def _arrived(self, batch: Batch) -> Batch:
        return batch if self._frames is None else self._frames.look(batch)
