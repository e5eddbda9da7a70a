"""Pictures of episodes as they are stored: videos, or encoded pictures in the tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.dataset.format import Camera
from provla.dataset.problem import Problem

Image = NDArray[np.uint8]  # (h,w,3)
Take = Callable[[int, Image], Image]  # a picture's number in its span, and the picture → what is kept of it
MISSING = "is missing: the data set is incomplete; fetch or record it again"
BACK = (0, 64)  # frames before a part at which its video is entered, in turn: a key frame may lie before it is shown


def thinning(height: int, width: int) -> int:
    """Of large pictures LeRobot takes every so many-th row and column for its statistics."""
    return 1 if max(height, width) < 300 else int((width if width > height else height) / 150)


@dataclass(frozen=True)
class Span:
    """Where an episode's pictures lie: `first` … `first + length - 1` of a video's frames or a table's rows. row: the
    first one's in the array that is made of them."""

    episode: int
    file: Path
    first: int
    length: int
    row: int


def read_spans(
    root: Path, camera: Camera, spans: list[Span], fps: float
) -> Iterator[tuple[Span, list[Image], list[Problem]]]:
    """Each span with its pictures, or with what is wrong with them; every file is read once, front to back."""
    by_file: dict[Path, list[Span]] = {}
    for span in spans:
        by_file.setdefault(span.file, []).append(span)
    for file, wanted in by_file.items():
        wanted.sort(key=lambda span: span.first)
        name = str(file.relative_to(root))
        if not file.is_file():
            for span in wanted:
                yield span, [], [Problem(name, span.episode, None, MISSING)]
            continue
        if camera.stored == "image":
            yield from _pictures(root, file, camera, wanted)
            continue
        done = []
        try:
            for found in _cut(_decode(file, camera, fps), wanted, name):
                yield found
                done.append(found[0])
        except _Broken:
            yield from _cut(_decode(file, camera, fps, careful=True), wanted, name)


def read_part(
    root: Path, camera: Camera, span: Span, first: int, length: int, fps: float, take: Take
) -> Problem | None:
    """Shows `take` the pictures `first` … `first + length - 1` of a span, as `read_spans` reads them, or says what is
    wrong with them. A video is entered at a key frame before the first of them and read front to back from there.
    """
    part, name = replace(span, first=span.first + first, length=length), str(span.file.relative_to(root))
    if not span.file.is_file():
        return Problem(name, span.episode, None, MISSING)
    if camera.stored == "image":
        ways = [_pictures(root, span.file, camera, [part], take)]
    else:
        ways = [
            _cut(_decode(span.file, camera, fps, start=max(0, part.first - back)), [part], name, take) for back in BACK
        ]
        ways.append(_cut(_decode(span.file, camera, fps, careful=True), [part], name, take))
    for way in ways:
        with suppress(_Broken):
            problems = next(way)[2]
            return replace(problems[0], frame=first + (problems[0].frame or 0)) if problems else None
    raise AssertionError("who reads carefully meets no _Broken")


class _Broken(Exception):
    """A video that has to be read packet by packet to know which of its frames are whole."""


def _whole(number: int, image: Image) -> Image:
    return image


def _cut(
    stream: Iterator[tuple[int, Image | str]], spans: list[Span], name: str, take: Take = _whole
) -> Iterator[tuple[Span, list[Image], list[Problem]]]:
    """Spans of a stream of numbered frames, in which a text stands for one that cannot be read. Spans do not
    overlap.
    """
    ended, held = "", None
    for span in spans:
        kept: dict[int, Image] = {}
        problems: list[Problem] = []
        last = span.first + span.length - 1
        while not ended:
            number, frame = held or next(stream, (-1, "the file ends before it: it is truncated"))
            held = None
            if number < 0:
                ended = str(frame)
            elif number > last:
                held = number, frame
                break
            elif number >= span.first:
                if isinstance(frame, str):
                    problems.append(Problem(name, span.episode, number - span.first, frame))
                elif number in kept:
                    problems.append(
                        Problem(name, span.episode, number - span.first, "two frames are shown at the time of this one")
                    )
                else:
                    kept[number] = take(number - span.first, frame)
                if number == last and not problems and len(kept) == span.length:
                    break
        if not problems and len(kept) < span.length:
            frame_number = next(i for i in range(span.length) if span.first + i not in kept)
            problems = [Problem(name, span.episode, frame_number, ended or "is missing from the video")]
        yield span, [] if problems else [kept[span.first + i] for i in range(span.length)], problems[:1]


def _decode(
    file: Path, camera: Camera, fps: float, careful: bool = False, start: int | None = None
) -> Iterator[tuple[int, Image | str]]:
    """All frames of a video with their numbers; -1 with the reason where there are no more.

    Where anything is wrong `_Broken` is raised, unless careful: then a text stands for each frame that cannot be
    trusted, which are all from a damaged one to the next key frame. libav conceals most errors unless it is told to
    explode. start: the first frame that is wanted, where those before the last key frame up to it are not looked at;
    others read other parts at the same time, each in one thread.
    """
    import av

    # libav logs from threads of its own into Python, which deadlocks on damaged files; what is wrong is raised anyway.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)
    try:
        with av.open(str(file)) as container:
            stream = _stream(container, threads=0 if start is None else 1, frames_at_once=start is None and not careful)
            if reason := _misfit(stream, camera, fps):
                yield -1, reason
                return
            broken, count = "", _enter(container, stream, start, fps)
            for packet in container.demux(stream):
                if packet.is_corrupt or packet.is_keyframe:  # up to the next key frame, all hang on what was damaged
                    broken = "it is damaged" if packet.is_corrupt else ""
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    frames, broken = [], f"cannot be decoded ({error.strerror}): it is damaged"
                    if packet.pts is not None:
                        yield round(float(packet.pts * packet.time_base) * fps), broken
                if broken and not careful:
                    raise _Broken
                for frame in frames:
                    at = count if frame.pts is None else float(frame.pts * frame.time_base) * fps
                    if count < 0:
                        count = _entered(at, start)
                    if not careful and (abs(at - count) > 0.5 or frame.is_corrupt):
                        raise _Broken
                    if start is None or count >= start:
                        yield (round(at) if careful else count), broken or _rgb(frame, camera)
                    count += 1
    except (av.FFmpegError, ValueError, OverflowError) as error:
        if isinstance(error, av.FFmpegError) and not careful:
            raise _Broken from error
        said = getattr(error, "strerror", None) or error
        yield -1, f"cannot be decoded ({said}): it is truncated or damaged; fetch or record the data set again"


def _stream(container: Any, threads: int, frames_at_once: bool) -> Any:
    """The video in a file, which raises what is wrong with it. threads: 0 as many as its codec likes."""
    if not container.streams.video:
        raise ValueError("it holds no video")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("its codec is unknown")
    stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode", "ec": "0"}
    stream.thread_type = "AUTO" if frames_at_once else "NONE"
    stream.thread_count = threads  # some codecs bring threads of their own
    return stream


def _enter(container: Any, stream: Any, start: int | None, fps: float) -> int:
    """Goes to the key frame before `start`. The number of the frame that comes next; -1 where its time will say it."""
    if not start:
        return 0
    container.seek(round(start / fps / stream.time_base), stream=stream)
    return -1


def _entered(at: float, start: int | None) -> int:
    """The number of the first frame after `_enter`. `_Broken` where it has no time, or lies behind the wanted one."""
    if start is None or not -0.5 < at < start + 0.5:
        raise _Broken
    return round(at)


def _rgb(frame: Any, camera: Camera) -> Image | str:
    if (frame.height, frame.width) != camera.size:
        return f"is a picture of {frame.height}×{frame.width}, info.json says {camera.size[0]}×{camera.size[1]}"
    image: Image = frame.to_ndarray(format="rgb24")
    return image


def _misfit(stream: Any, camera: Camera, fps: float) -> str:
    """Why a video is not what info.json says."""
    size = stream.codec_context.height, stream.codec_context.width
    if size != camera.size:
        return f"holds pictures of {size[0]}×{size[1]}, info.json says {camera.size[0]}×{camera.size[1]}"
    if str(stream.codec_context.pix_fmt).startswith("gray"):
        return f"holds one channel ({stream.codec_context.pix_fmt}), info.json says 3"
    if stream.average_rate and stream.frames != 1 and abs(float(stream.average_rate) / fps - 1) > 0.05:
        return f"runs at {float(stream.average_rate):g} fps, info.json says {fps:g}"
    return ""


def _pictures(
    root: Path, file: Path, camera: Camera, spans: list[Span], take: Take = _whole
) -> Iterator[tuple[Span, list[Image], list[Problem]]]:
    """Pictures that stand, encoded, in the rows of a parquet file, or in files that it names."""
    import pyarrow as pa

    name = str(file.relative_to(root))
    try:
        table, offset = _column(file, camera.key, spans[0].first, spans[-1].first + spans[-1].length)
        for span in spans:
            images, problems = [], []
            for i, cell in enumerate(table.slice(span.first - offset, span.length)):
                image = _picture(root, cell.as_py(), camera)
                if isinstance(image, str):
                    problems.append(Problem(name, span.episode, i, image))
                    break
                images.append(take(i, image))
            if not problems and len(images) < span.length:
                problems = [Problem(name, span.episode, len(images), "the file ends before it: it is truncated")]
            yield span, [] if problems else images, problems
    except (pa.ArrowException, OSError, KeyError) as error:
        for span in spans:
            yield (
                span,
                [],
                [
                    Problem(
                        name, span.episode, None, f"{camera.key} cannot be read, it is truncated or damaged: {error}"
                    )
                ],
            )


def _column(file: Path, key: str, first: int, end: int) -> tuple[Any, int]:
    """A column's row groups that hold any of the rows `first` … `end - 1`, and the number of their first row."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, page_checksum_verification=True, memory_map=True) as stored:
        sizes = [stored.metadata.row_group(i).num_rows for i in range(stored.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [i for i, size in enumerate(sizes) if ends[i] > first and ends[i] - size < end]
        offset = int(ends[groups[0]] - sizes[groups[0]]) if groups else first
        return stored.read_row_groups(groups, columns=[key])[key], offset


def _picture(root: Path, cell: Any, camera: Camera) -> Image | str:
    """A cell of an image column: encoded bytes, the path of a file in the data set, or both."""
    from PIL import Image as Pillow

    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if data is None and isinstance(path, str) and path:
        if not (root / path).resolve().is_relative_to(root.resolve()):
            return f"names {path!r}, which lies outside of the data set"
        if not (root / path).is_file():
            return f"names {path!r}, which is not there"
        data = (root / path).read_bytes()
    if not isinstance(data, bytes):
        return "holds no picture"
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            if (picture.height, picture.width) != camera.size:
                said = f"{camera.size[0]}×{camera.size[1]}"
                return f"is a picture of {picture.height}×{picture.width}, info.json says {said}"
            if picture.mode not in ("RGB", "RGBA", "P", "L"):
                return f"is a picture of mode {picture.mode}, no colour picture of 8 bits"
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        return f"cannot be decoded ({error}): it is damaged"
