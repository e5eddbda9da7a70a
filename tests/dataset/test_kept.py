"""Jobs of one process share the data set that they all read, as long as nobody writes to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provla.dataset import kept
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.lerobot import LeRobotSource


@pytest.fixture
def place(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged."""
    monkeypatch.setattr(kept, "_last", [])
    return Path(shutil.copytree(recording, tmp_path / "set"))


def load(root: Path, **changes: Any) -> Demonstrations:
    """By a source of its own, as each job makes one."""
    return LeRobotSource(str(root.parent / "home"), 0.4, 0, root=str(root), **changes).load()


def equal(one: Demonstrations, other: Demonstrations) -> bool:
    same = all(np.array_equal(one.frames[camera], other.frames[camera]) for camera in one.frames)
    return same and np.array_equal(one.state, other.state) and np.array_equal(one.actions, other.actions)


def test_what_has_not_changed_is_read_once(place: Path) -> None:
    first = load(place)
    shared = load(place)
    assert shared.state is first.state
    assert shared.frames["corner2"] is not first.frames["corner2"]  # a mapping of its own
    assert equal(shared, first)
    other = load(place, num_episodes=2)
    assert len(other.actions) < len(first.actions)
    again = load(place)  # only the last one is kept
    assert again.state is not first.state
    assert equal(again, first)
    assert len(kept._last) == 1
    for array in (again.actions, again.state, again.starts, again.task):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_what_was_written_to_is_read_again(place: Path) -> None:
    first = load(place)
    table = next((place / "data").rglob("*.parquet"))
    content = table.read_bytes()
    table.write_bytes(content)  # the same, but nobody knows before reading it
    second = load(place)
    assert second.state is not first.state
    assert equal(second, first)
    shutil.rmtree(place.parent / "home" / "frames")
    third = load(place)
    assert third.state is not second.state
    assert equal(third, first)
    table.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=table.name):
        load(place)


def test_what_cannot_be_watched_is_read_every_time(place: Path, tmp_path: Path) -> None:
    moved = shutil.move(place / "data", tmp_path / "elsewhere")
    (place / "data").symlink_to(moved)
    assert load(place).state is not load(place).state
    assert load(place, cache="none").state is not load(place, cache="none").state
    assert kept._last == []
