"""Damaged data sets and frame caches: each is refused with the file, episode and frame, or read right."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from damages import DAMAGES, DATA, EPISODES, VIDEO, _flip, outcome

ROOT = Path(__file__).parents[2]


def _recorded(place: Path, which: str) -> tuple[Path, Any]:
    """A small data set, by LeRobot's own writer or recorded in simulation, and what is read from it while it
    is whole.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_two_cameras

    from provla.dataset.lerobot import LeRobotSource
    from provla.dataset.metaworld import MetaworldRecording
    from provla.dataset.recording import record

    if which == "lerobot":
        root = write_two_cameras(place / "whole" / "two_cameras")
    else:
        root = record(
            MetaworldRecording(("drawer-close", "window-open"), 2, ("corner2",), 32, 0, 0.05, 0.0, 3),
            place / "whole",
            workers=2,
        )
    return root, LeRobotSource(str(place / "data"), 0.2, 0, root=str(root)).load()


def _try(place: Path, which: str, damages: dict[str, Any]) -> tuple[int, int, str]:
    root, whole = _recorded(place, which)
    lost = []
    for number, (name, damage) in enumerate(damages.items()):
        shutil.copytree(root, place / str(number))
        damage(place / str(number))
        good, said = outcome(place / str(number), place / f"data{number}", whole)
        shutil.rmtree(place / str(number))
        if not good:
            lost.append(f"{name}: {said[:80]}")
    return len(damages), len(damages) - len(lost), "; ".join(lost)


def fault_recording(place: Path) -> tuple[int, int, str]:
    """Damages of a recording made here: files, rows, times, numbers, tasks, statistics, info.json"""
    return _try(place, "metaworld", DAMAGES)


def fault_lerobot(place: Path) -> tuple[int, int, str]:
    """The same damages of a data set by LeRobot's own writer, which keeps no checksums"""
    return _try(place, "lerobot", DAMAGES)


def fault_flips_recording(place: Path) -> tuple[int, int, str]:
    """Single flipped bits anywhere in a recording made here: video, rows, episodes"""
    return _try(
        place,
        "metaworld",
        {f"{pattern} {seed}": _flip(pattern, seed) for pattern in (VIDEO, DATA, EPISODES) for seed in range(100, 110)},
    )


def fault_flips_lerobot(place: Path) -> tuple[int, int, str]:
    """200 flipped bits in each file of a data set that keeps no checksums: noticed by decoders, statistics and one
    another alone
    """
    return _try(
        place,
        "lerobot",
        {
            f"{pattern} {seed}": _flip(pattern, seed, 200)
            for pattern in (VIDEO, DATA, EPISODES)
            for seed in range(200, 207)
        },
    )


def fault_frame_cache(place: Path) -> tuple[int, int, str]:
    """A frame cache with a flipped bit (its time of modification put back), cut, emptied, without its notes:
    made again
    """
    from provla.dataset.lerobot import LeRobotSource

    root, whole = _recorded(place, "lerobot")
    frames = np.array(whole.frames["front"])
    cache = next((place / "data").rglob("front_*.npy"))
    good = cache.read_bytes()
    lost = []
    for what in ("flip", "cut", "empty", "notes", "gone"):
        stamp = cache.stat()
        data = bytearray(good)
        data[len(data) // 2] ^= 1
        cache.write_bytes({"flip": data, "cut": good[:-100], "empty": b""}.get(what, good))
        os.utime(cache, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        if what == "notes":
            cache.with_suffix(".json").unlink()
        if what == "gone":
            cache.unlink()
        found = LeRobotSource(str(place / "data"), 0.2, 0, root=str(root)).load()
        if not np.array_equal(found.frames["front"], frames):
            lost.append(what)
    return 5, 5 - len(lost), "; ".join(lost)
