"""A data set's pictures on a GPU, so that a training sends it rows and no pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from provla.core.cameras import Images, together
from provla.core.types import Batch
from provla.dataset.sampler import Sampler

SHARE = 0.3  # of a GPU's free memory that they may take
BLOCK = 2**26  # bytes that are read at a time


class Resident:
    """All frames of a sampler's cameras, and what is known of them (`Sampler.features`), on one device."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self._frames = [_whole(frames, torch.uint8, device) for frames in _arrays(sampler)]
        known = sampler.features or []
        self._features = [_whole(one.rows, one.kind, device) for one in known]

    def look(self, batch: Batch) -> Batch:
        """A batch that was gathered without pictures, and lies on the device, with them: as with them from the start,
        to the bit.
        """
        rows: Any = batch.observation.images  # (B, T)
        features = _at(rows, self._features) if self._features else None
        return replace(batch, observation=replace(batch.observation, images=_at(rows, self._frames), features=features))


def _at(rows: Tensor, kept: list[Tensor]) -> Images:
    """rows (B,T) → (B,T,C,…), or of each camera (B,T,…)."""
    found = [one.index_select(0, rows.flatten()) for one in kept]
    return together([one.view(*rows.shape, *one.shape[1:]) for one in found], lambda alike: torch.stack(alike, 2))


def size_of(sampler: Sampler) -> int:
    """Bytes that a `Resident` of it takes."""
    known = [one.rows for one in sampler.features or []]
    return sum(int(one.nbytes) for one in (*_arrays(sampler), *known))


def fits(sampler: Sampler, device: torch.device) -> bool:
    """Whether its frames lie in arrays, and a `Resident` takes no more than `SHARE` of what a GPU has free."""
    whole = len(_arrays(sampler)) == len(sampler.frames)
    return whole and device.type == "cuda" and size_of(sampler) <= SHARE * torch.cuda.mem_get_info(device)[0]


def _arrays(sampler: Sampler) -> list[NDArray[Any]]:
    """Of its cameras' frames, those that do not lie in videos."""
    return [frames for frames in sampler.frames if isinstance(frames, np.ndarray)]


def _whole(rows: NDArray[Any], kind: torch.dtype, device: torch.device) -> Tensor:
    """(N,…) of the given kind, from a memory-mapped array, a block at a time. numpy knows no bfloat16, so what it holds
    may be another kind of the same size.
    """
    kept = torch.empty(rows.shape, dtype=kind, device=device)
    step = max(1, BLOCK // max(1, int(rows[:1].nbytes)))
    for first in range(0, len(rows), step):
        kept[first : first + step].copy_(torch.from_numpy(np.array(rows[first : first + step])).view(kind))
    return kept
