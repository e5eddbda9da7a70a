"""Frames decoded once: a memory-mapped uint8 array per data set, camera and size, shared by all runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from provla.files import atomic, check_space, writing
from provla.progress import progress_bars

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames lie: frames `first` … `first + length - 1` of a video file, rows `row` … of the array."""

    file: Path
    first: int
    length: int
    row: int


def frame_cache(folder: Path, name: str, spans: list[VideoSpan], size: tuple[int, int]) -> Frames:
    """(N,3,h,w) uint8, memory-mapped read-only from `folder/name.npy`; decoded now if the file is not there.

    The file appears whole or not at all; of several processes one decodes and the others wait. Errors: `ValueError` for
    a video that is missing, damaged or too short, and for a full disk.
    """
    path = folder / f"{name}_{size[0]}x{size[1]}.npy"
    if not path.is_file():
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.is_file():
                    _decode_into(path, spans, size)
    frames: Frames = np.load(path, mmap_mode="r")
    return frames


def _decode_into(path: Path, spans: list[VideoSpan], size: tuple[int, int]) -> None:
    total = sum(span.length for span in spans)
    shape = (total, 3, *size)
    check_space(path.parent, int(np.prod(shape)) + 2**20, "the frame cache")
    for stale in path.parent.glob(f".{path.name}-*.partial"):
        stale.unlink(missing_ok=True)
    with atomic(path, int(np.prod(shape))) as partial, progress_bars() as bars:
        bar = bars.add_task("decoding", total=total, note=path.stem.rsplit("_", 1)[0])
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            offset = file.tell()
            # Written rather than mapped: on a full disk `write` raises, a mapping kills the process.
            for span, frames in _by_span(spans, size):
                file.seek(offset + span.row * 3 * size[0] * size[1])
                file.write(frames.tobytes())
                bars.advance(bar, span.length)


def _by_span(spans: list[VideoSpan], size: tuple[int, int]) -> Iterator[tuple[VideoSpan, Frames]]:
    """Each span with its frames (length,3,h,w); every file is read once, front to back."""
    by_file: dict[Path, list[VideoSpan]] = {}
    for span in spans:
        by_file.setdefault(span.file, []).append(span)
    for file, wanted in by_file.items():
        wanted.sort(key=lambda span: span.first)
        stream = enumerate(_decode(file, size))
        for span in wanted:
            kept: list[Frames] = []
            for number, frame in stream:
                if number >= span.first:
                    kept.append(frame)
                if len(kept) == span.length:
                    break
            if len(kept) < span.length:
                raise ValueError(
                    f"{file} is truncated: it ends {span.length - len(kept)} frames before the end of the episode at row {span.row}; "
                    "fetch or record the data set again"
                )
            yield span, np.stack(kept)


def _decode(file: Path, size: tuple[int, int]) -> Iterator[Frames]:
    """All frames of a video, (3,h,w) each, area-averaged to `size`."""
    import av

    if not file.is_file():
        raise ValueError(f"{file} is missing: the data set is incomplete; fetch or record it again")
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                image = frame.to_ndarray(format="rgb24")
                if image.shape[:2] != size:
                    import cv2

                    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
                yield np.ascontiguousarray(image.transpose(2, 0, 1))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{file} cannot be decoded ({error}): it is truncated or damaged; fetch or record the data set again") from error
