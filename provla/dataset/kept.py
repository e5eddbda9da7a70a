"""The data set that this process loaded last: the jobs of a sweep share it as long as none of its files has changed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from provla.dataset.checksums import signature
from provla.dataset.demonstrations import Demonstrations

Files = dict[str, list[int]]


@dataclass(frozen=True)
class _Kept:
    """kind, asked: of the source. files: what lay in its folder. frames: its frame caches, by camera. data: without
    them: they are mapped anew for each job, so that none counts the pages that another has read as its memory.
    """

    kind: type
    asked: Mapping[str, Any]
    files: Files
    frames: dict[str, tuple[str, list[int]]]
    data: Demonstrations


_last: list[_Kept] = []  # one at most, so that a process that goes through many data sets does not grow


def look(root: Path | None) -> Files:
    """Everything in a folder with its signature; empty where there is nothing to go by, and where a look would take
    long (a file a picture) or not see all (links to other folders).
    """
    if root is None or (root / "images").exists():
        return {}
    with suppress(OSError):
        inside = list(root.rglob("*"))
        if not any(path.is_symlink() and path.is_dir() for path in inside):
            return {str(path): signature(path) for path in [root, *inside]}
    return {}


def recall(source: Any, files: Files) -> Demonstrations | None:
    """What `keep` was given for such a source, where its folder is as it was then."""
    for kept in _last:
        with suppress(OSError, ValueError):  # a frame cache is gone; values that have no equality
            same = type(source) is kept.kind and files == kept.files and vars(source) == kept.asked
            if files and same and all(signature(Path(name)) == was for name, was in kept.frames.values()):
                maps = {
                    camera: np.load(name, mmap_mode="r", allow_pickle=False)
                    for camera, (name, _) in kept.frames.items()
                }
                return replace(kept.data, frames=maps)
    return None


def keep(source: Any, files: Files, data: Demonstrations) -> None:
    """Only data whose pictures lie in frame caches. Nobody can write into the arrays then, so that no job leaves
    anything to the next.
    """
    maps = {name: str(one.filename) for name, one in data.frames.items() if isinstance(one, np.memmap) and one.filename}
    if not files or len(maps) < len(data.frames):
        return
    for array in vars(data).values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    _last[:] = []
    with suppress(OSError):
        frames = {camera: (name, signature(Path(name))) for camera, name in maps.items()}
        _last[:] = [_Kept(type(source), dict(vars(source)), files, frames, replace(data, frames={}))]
