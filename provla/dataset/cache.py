"""The frame cache: one memory-mapped uint8 array per data set, camera and size, shared by all runs."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.claims import claimed
from provla.core.errors import NoSpace
from provla.core.files import atomic, check_space, write_json, writing
from provla.core.progress import console, progress_bars
from provla.dataset.checksums import signature
from provla.dataset.format import Camera
from provla.dataset.frames import Image, Span, read_spans, thinning
from provla.dataset.problem import Problem

Frames = NDArray[np.uint8]


@dataclass
class Cached:
    """What a camera's pictures came to.

    frames: (N,3,h,w) uint8, memory-mapped read-only; None where `problems` says why there are none. everywhere,
    sampled: per episode the mean and standard deviation of each channel as recorded, (E,2,3), over all pictures and
    over those that LeRobot samples for its statistics. compared: see `remember`. rebuilt: why a file that was there was
    made again.
    """

    frames: Frames | None
    problems: list[Problem] = field(default_factory=list)
    everywhere: list[Any] = field(default_factory=list)
    sampled: list[Any] = field(default_factory=list)
    notes: Path = Path()
    compared: Any = None
    rebuilt: str = ""

    def remember(self, compared: Any) -> None:
        """Notes beside the file what a comparison of the pictures came to, so that it is made once."""
        _note(self.notes, compared=compared)


def frame_cache(
    folder: Path, root: Path, camera: Camera, spans: list[Span], size: tuple[int, int], fps: float, fresh: bool = False
) -> Cached:
    """`folder/<camera>_<h>x<w>.npy`, decoded now if it is not there; its checksums, an episode each, stand beside it.

    The file appears whole or not at all; of several processes one decodes and the others wait. A file that was written
    to since is compared with its checksums, as with fresh=true, and decoded again, with a line that says so, where they
    differ.
    """
    path = folder / f"{camera.name}_{size[0]}x{size[1]}.npy"
    notes = path.with_suffix(".json")
    if not fresh and (found := _known(path, notes)):
        return found
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(path.with_suffix(".claim")):
            return (None if fresh else _known(path, notes)) or _make(path, notes, root, camera, spans, size, fps)


def _make(
    path: Path, notes: Path, root: Path, camera: Camera, spans: list[Span], size: tuple[int, int], fps: float
) -> Cached:
    """What is there already, if its checksums hold; else it is decoded."""
    wrong = ""
    if path.is_file():
        if not (wrong := _damage(path, notes, spans, size)):
            _note(notes, signature=signature(path))
            if found := _known(path, notes):
                return found
        console.print(f"the frame cache {path} is damaged ({wrong}); it is made again")
        path.unlink()
    write_json(notes, _decode_into(path, root, camera, spans, size, fps))
    made = _known(path, notes)
    assert made is not None
    made.rebuilt = wrong
    return made


def _note(notes: Path, **more: Any) -> None:
    """Adds to what stands beside a file; where that cannot be written, it will be found out again."""
    with suppress(NoSpace):
        write_json(notes, json.loads(notes.read_text()) | more)


def _known(path: Path, notes: Path) -> Cached | None:
    """What is there already, if it is what it was when it was last looked at."""
    try:
        said = json.loads(notes.read_text())
        if said["problems"]:
            return Cached(None, [Problem(**problem) for problem in said["problems"]])
        if said["signature"] != signature(path):
            return None
        return Cached(
            np.load(path, mmap_mode="r", allow_pickle=False),
            [],
            said["everywhere"],
            said["sampled"],
            notes,
            said.get("compared"),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _damage(path: Path, notes: Path, spans: list[Span], size: tuple[int, int]) -> str:
    """Why a file is not what was written; empty where it is."""
    try:
        digests = json.loads(notes.read_text())["sha256"]
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    if frames.shape != (sum(span.length for span in spans), 3, *size) or frames.dtype != np.uint8:
        return f"it holds {frames.shape} {frames.dtype}"
    bad = [
        span.episode
        for span, digest in zip(spans, digests, strict=False)
        if _digest(frames[span.row : span.row + span.length]) != digest
    ]
    return (
        f"another sha256 in episode {bad[0]}" + (f" and {len(bad) - 1} others" if len(bad) > 1 else "") if bad else ""
    )


def _digest(frames: Frames) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()[:32]


def _decode_into(
    path: Path, root: Path, camera: Camera, spans: list[Span], size: tuple[int, int], fps: float
) -> dict[str, Any]:
    """Writes the file, unless there are problems; what is to be noted beside it."""
    total = sum(span.length for span in spans)
    shape = (total, 3, *size)
    needed = int(np.prod(shape)) + 2**20
    check_space(path.parent, needed, "the frame cache")
    for stale in path.parent.glob(f".{path.name}-*.partial"):
        stale.unlink(missing_ok=True)
    at = {span.episode: i for i, span in enumerate(spans)}
    digests: list[Any] = [None] * len(spans)
    everywhere, sampled = digests.copy(), digests.copy()
    problems: list[Problem] = []
    try:
        with atomic(path, needed) as partial, progress_bars() as bars, partial.open("wb") as file:
            bar = bars.add_task("decoding", total=total, note=camera.name)
            np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            offset = file.tell()
            # Written rather than mapped: on a full disk `write` raises, a mapping kills the process.
            for span, images, found in read_spans(root, camera, spans, fps):
                bars.advance(bar, span.length)
                problems += found
                if problems:
                    continue
                frames = np.stack([small(image, size) for image in images])
                file.seek(offset + span.row * 3 * size[0] * size[1])
                file.write(frames.tobytes())
                digests[at[span.episode]] = _digest(frames)
                everywhere[at[span.episode]], sampled[at[span.episode]] = statistics(images)
            if problems:
                raise _Incomplete
    except _Incomplete:
        return {"problems": [vars(problem) for problem in problems]}
    return {
        "problems": [],
        "signature": signature(path),
        "sha256": digests,
        "everywhere": everywhere,
        "sampled": sampled,
    }


class _Incomplete(Exception):
    """Some pictures could not be read: no file is made."""


def small(image: Image, size: tuple[int, int]) -> Frames:
    """(3,h,w), area-averaged to `size`."""
    if image.shape[:2] != size:
        import cv2

        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def statistics(images: list[Image]) -> tuple[list[list[float]], list[list[float]]]:
    """Mean and standard deviation of each channel [0..1] over all pictures, and over those that LeRobot's
    `sample_images` takes.
    """
    import cv2

    step = thinning(*images[0].shape[:2])
    sums = np.empty((len(images), 2, 3))
    for i, image in enumerate(images):
        mean, std = cv2.meanStdDev(np.ascontiguousarray(image[::step, ::step]))
        sums[i] = mean[:, 0], std[:, 0] ** 2 + mean[:, 0] ** 2
    sums /= [[255], [255**2]]
    count = max(min(100, len(images)), min(int(len(images) ** 0.75), 10_000))
    chosen = np.round(np.linspace(0, len(images) - 1, count)).astype(int)
    return _mean_std(sums), _mean_std(sums[chosen])


def _mean_std(sums: NDArray[np.float64]) -> list[list[float]]:
    mean, square = sums.mean(0)
    return [mean.tolist(), np.sqrt(np.maximum(0, square - mean**2)).tolist()]
