"""What was found in a data set, and what is said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provla.core.cameras import Size
from provla.core.files import fingerprint
from provla.core.progress import progress_bars
from provla.dataset.cache import Frames, frame_cache, statistics
from provla.dataset.checksums import Checksums
from provla.dataset.format import Camera
from provla.dataset.frames import MISSING, Span, read_spans
from provla.dataset.problem import Problem
from provla.dataset.stored import Stored
from provla.dataset.verify import Contents, compare_pictures


@dataclass
class Inspection:
    """What was found in a data set: the episodes that are left, their frames by camera, what is wrong, what there is to
    say, which frame caches had to be made again, and the checksums of its files."""

    contents: Contents
    cameras: list[Camera]
    episodes: list[int]
    problems: list[Problem]
    frames: dict[str, Frames | Stored]
    notes: list[str]
    rebuilt: list[str]
    sums: Checksums

    @property
    def source(self) -> str:
        return str(self.contents.info.root)

    @property
    def bad(self) -> set[int]:
        return {problem.episode for problem in self.problems if problem.episode is not None}

    def decode(self, place: Path, sizes: Mapping[str, Size], fresh: bool) -> list[Problem]:
        """Fills in the frames of the episodes that are left, from the caches in `place`; what is wrong with them.
        sizes: of each camera's frames.
        """
        contents, info, worse = self.contents, self.contents.info, list[Problem]()
        for camera in self.cameras:
            spans = self._spans(camera)
            folder = place / _identity(info.root, camera, spans, self.sums)
            cached = frame_cache(folder, info.root, camera, spans, sizes[camera.name], info.fps, fresh)
            worse += cached.problems
            if cached.rebuilt:
                self.rebuilt.append(f"{folder.name}, {camera.name}: {cached.rebuilt}")
            if cached.frames is not None:
                self.frames[camera.name] = cached.frames
                told = fingerprint([self.sums[file] for file in contents.episodes.files], 32)
                if fresh or not cached.compared or cached.compared["with"] != told:
                    off = compare_pictures(contents, camera, self.episodes, cached.everywhere, cached.sampled)
                    cached.remember({"with": told, "problems": [vars(problem) for problem in off]})
                    worse += off
                else:
                    worse += [Problem(**problem) for problem in cached.compared["problems"]]
        return worse

    def leave(self, sizes: Mapping[str, Size], fresh: bool) -> list[Problem]:
        """Fills in the frames of the episodes that are left, to be decoded when they are asked for; what is wrong with
        their files, of which each picture is looked at with fresh alone.
        """
        info, worse = self.contents.info, list[Problem]()
        for camera in self.cameras:
            spans = self._spans(camera)
            self.frames[camera.name] = Stored(info.root, camera, spans, sizes[camera.name], info.fps)
            gone = {file: not file.is_file() for file in {span.file for span in spans}}
            worse += [
                Problem(str(span.file.relative_to(info.root)), span.episode, None, MISSING)
                for span in spans
                if gone[span.file]
            ]
            if fresh and not worse:
                worse += self._look(camera, spans)
        return worse

    def _look(self, camera: Camera, spans: list[Span]) -> list[Problem]:
        """What is wrong with a camera's pictures."""
        info, worse, seen = self.contents.info, list[Problem](), {}
        with progress_bars() as bars:
            bar = bars.add_task("decoding", total=sum(span.length for span in spans), note=camera.name)
            for span, images, found in read_spans(info.root, camera, spans, info.fps):
                bars.advance(bar, span.length)
                worse += found
                if not found:
                    seen[span.episode] = statistics(images)
        if worse:
            return worse
        everywhere, sampled = ([seen[e][i] for e in self.episodes] for i in range(2))
        return compare_pictures(self.contents, camera, self.episodes, everywhere, sampled)

    def _spans(self, camera: Camera) -> list[Span]:
        """Where the pictures of the episodes that are left lie."""
        contents, spans, row = self.contents, [], 0
        for e, length in zip(self.episodes, np.diff(contents.starts)[self.episodes].tolist(), strict=True):
            if camera.stored == "video":
                chunk, number, first = (int(x) for x in contents.videos[camera.key][e])
                file = contents.info.video(camera.key, chunk, number)
            else:
                file, first = contents.rows.place(int(contents.starts[e]))
            spans.append(Span(e, file, first, length, row))
            row += length
        return spans


def report(found: Inspection, whole: list[Problem]) -> str:
    """What is wrong, and the ways out. whole: what concerns no single episode, where the others would be left out."""
    shown = whole or found.problems
    lines = "; ".join(str(problem) for problem in shown[:5])
    more = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
    if whole:
        return f"{found.source} is damaged, and not in single episodes that could be left out: {lines}{more}"
    if found.problems and all(problem.episode is None for problem in found.problems):
        return f"{found.source} is damaged: {lines}{more}"
    ways_out = (
        "python -m provla.analyze check=true lists everything; dataset.bad_episodes=skip leaves these episodes out"
    )
    return f"{found.source} is damaged: {lines}{more}. {ways_out}"


def files(contents: Contents, cameras: list[Camera]) -> list[Path]:
    """Every file that is read."""
    info = contents.info
    found = [info.root / "meta" / name for name in ("info.json", "stats.json", "tasks.parquet")]
    found += [*contents.rows.files, *contents.episodes.files]
    for camera in cameras:
        if camera.stored == "video":
            found += {
                info.video(camera.key, int(chunk), int(file)): None for chunk, file, _ in contents.videos[camera.key]
            }
        else:
            found += sorted(file for file in (info.root / "images").rglob("*") if file.is_file())
    return list(dict.fromkeys(found))


def _identity(root: Path, camera: Camera, spans: list[Span], sums: Checksums) -> str:
    """Name of a camera's cache: changes with the content of its files, not with where they lie."""
    digest = hashlib.sha256(camera.key.encode())
    files = {span.file for span in spans}
    if camera.stored == "image":
        files |= {file for file in (root / "images").rglob("*") if file.is_file()}
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}:{sums[file]}".encode())
    digest.update(repr([(span.episode, span.first, span.length) for span in spans]).encode())
    return f"{root.name}_{digest.hexdigest()[:10]}"
