"""Pictures of several data sets as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from provla.dataset.cache import Frames
from provla.dataset.format import Array
from provla.dataset.stored import Stored

type Pictures = Frames | Stored | Joined  # (N,3,h,w) uint8, an array or what is indexed like one


class Joined:
    """A camera's pictures of several data sets, one after the other, in place of one array (N,3,h,w) uint8."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Array | slice) -> Frames:
        """(…,3,h,w) at rows of any shape."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        owner = np.searchsorted(self._ends, wanted, side="right")
        found: Frames = np.empty((*wanted.shape, *self.shape[1:]), dtype=np.uint8)
        for number in np.unique(owner).tolist():
            mine = owner == number
            found[mine] = self.parts[number][wanted[mine] - (self._ends[number] - len(self.parts[number]))]
        return found


def in_videos(frames: Pictures) -> bool:
    """Whether any of a camera's pictures are decoded when they are asked for."""
    return any(map(in_videos, frames.parts)) if isinstance(frames, Joined) else isinstance(frames, Stored)
