"""Pictures that stay in their videos: decoded when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from provla.core.ranks import cores
from provla.dataset.cache import Frames, small
from provla.dataset.format import Array, Camera
from provla.dataset.frames import Image, Span, read_part

KEPT = 2**28  # bytes of what was asked for last: validations ask for the same pictures again
APART = 32  # frames between two that are wanted, from which on the second is reached by a key frame of its own
NOTHING: Image = np.empty((0, 0, 3), dtype=np.uint8)


class Stored:
    """A camera's pictures, in place of a frame cache's array: (N,3,h,w) uint8, equal to it bit for bit.

    spans: all episodes, in the order of their rows. size: (h, w). Reading one raises `ValueError` that names file,
    episode and frame where it cannot be decoded.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, root: Path, camera: Camera, spans: Sequence[Span], size: tuple[int, int], fps: float) -> None:
        self.shape = (spans[-1].row + spans[-1].length, 3, *size)
        self._root, self._camera, self._spans, self._size, self._fps = root, camera, spans, size, fps
        self._starts = np.array([span.row for span in spans])
        self._kept: OrderedDict[int, Frames] = OrderedDict()
        self._lock = Lock()  # a validation asks while the next steps' pictures are gathered ahead

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Array | slice) -> Frames:
        """(…,3,h,w) at rows of any shape."""
        wanted = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        distinct, where = np.unique(wanted, return_inverse=True)
        pictures: Frames = np.empty((len(distinct), *self.shape[1:]), dtype=np.uint8)
        with self._lock:
            self._look_up(pictures, distinct)
        found: Frames = pictures[where.reshape(wanted.shape)]
        return found

    def _look_up(self, pictures: Frames, rows: Array) -> None:
        missing = []
        for i, row in enumerate(rows.tolist()):
            if row in self._kept:
                pictures[i] = self._kept[row]
                self._kept.move_to_end(row)
            else:
                missing.append(i)
        self._read(pictures, rows, np.array(missing, dtype=np.int64))
        for i in missing:
            self._kept[int(rows[i])] = pictures[i].copy()
        while len(self._kept) * pictures[:1].nbytes > KEPT:
            self._kept.popitem(last=False)

    def decode(self, rows: Array, put: Callable[[int, Frames], None]) -> None:
        """Reads pictures of one episode front to back, and hands each over as (3,h,w) with its place among `rows`,
        which ascend.
        """
        span = self._spans[int(np.searchsorted(self._starts, rows[0], side="right")) - 1]
        place = {int(row - rows[0]): i for i, row in enumerate(rows)}

        def take(number: int, image: Image) -> Image:
            if number in place:
                put(place[number], small(image, self._size))
            return NOTHING

        first, length = int(rows[0]) - span.row, int(rows[-1] - rows[0]) + 1
        if problem := read_part(self._root, self._camera, span, first, length, self._fps, take):
            raise ValueError(
                f"{self._root}: {problem}. Without a frame cache pictures are looked at when they are needed; python "
                "-m provla.analyze check=true lists what is wrong with them. The checkpoints of a training stand: once "
                "the file is whole again, the same command goes on"
            )

    def _read(self, pictures: Frames, rows: Array, missing: Array) -> None:
        """Fills in `pictures[missing]`, of `rows[missing]`; distant ones at the same time."""
        if not len(missing):
            return
        asked = rows[missing]
        owner = np.searchsorted(self._starts, asked, side="right")
        cuts = np.flatnonzero((np.diff(owner) > 0) | (np.diff(asked) > APART)) + 1

        def read(part: Array) -> None:
            def put(at: int, picture: Frames) -> None:
                pictures[part[at]] = picture

            self.decode(rows[part], put)

        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(read, np.split(missing, cuts)))
