"""What is said of demonstrations that are whole and lack something: each fault in a data set of LeRobot's own writer,
and nothing of a sound one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_lerobot

from provla.dataset.demonstrations import Demonstrations
from provla.dataset.lacks import survey
from provla.dataset.lerobot import LeRobotSource

Command = Callable[..., tuple[int, str, str]]
LENGTH, FPS = 30, 10
GRAIN = np.random.default_rng(0).integers(60, 120, (48, 64, 3), dtype=np.uint8)


def vector(key: str, episode: int, step: int) -> np.ndarray:
    """Three joints that swing, each episode otherwise; the action is where the state will be."""
    time = (step + (key == "action")) / LENGTH * 2 * np.pi
    return np.array([np.sin(time + episode), np.cos(1.3 * time - episode), np.sin(0.7 * time + 2 * episode)])


def picture(camera: int, episode: int, step: int) -> np.ndarray:
    """A light square that follows the first joint, on a grainy ground that is not."""
    found = GRAIN.copy()
    x = int(28 + 20 * vector("observation.state", episode, step)[camera])
    found[16 + 8 * camera :, x : x + 8][:10] = 230
    return found


def write(root: Path, **changes: Any) -> Path:
    return write_lerobot(root, **({"episodes": 4, "length": LENGTH, "vector": vector, "picture": picture} | changes))


def late(root: Path) -> None:
    """The clock of episode 2 goes half a second ahead after its step 11."""
    (file,) = root.glob("data/*/*.parquet")
    table = pq.read_table(file)
    times = table["timestamp"].to_numpy().copy()
    times[2 * LENGTH + 12 : 3 * LENGTH] += 0.5
    at = table.column_names.index("timestamp")
    pq.write_table(table.set_column(at, table.schema.field("timestamp"), pa.array(times)), file)


def frozen(camera: int, episode: int, step: int) -> np.ndarray:
    return picture(camera, episode, 8 if (camera, episode) == (1, 2) and 8 <= step <= 22 else step)


def changed(change: Callable[[np.ndarray, str, int, int], Any]) -> Callable[[str, int, int], np.ndarray]:
    def found(key: str, episode: int, step: int) -> np.ndarray:
        values = vector(key, episode, step)
        change(values, key, episode, step)
        return values

    return found


def stuck(values: np.ndarray, key: str, episode: int, step: int) -> None:
    values[2] = 0.25 if key == "action" else values[2]


def far(values: np.ndarray, key: str, episode: int, step: int) -> None:
    values[1] = 6 if (key, episode, step) == ("action", 1, 12) else values[1]


FAULTS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "time": ({}, "2", "1.10 s – 1.20 s", "the clock goes from 1.100 s to 1.700 s in one step", "resample"),
    "camera": ({"picture": frozen}, "2", r"(0\.8|0\.9|1\.0)0 s – 2\.20 s", "wrist shows one picture for 1.", "cable"),
    "joint": ({"vector": changed(stuck)}, "", "", "action gripper is 0.25 in every step", "record demonstrations"),
    "range": ({"vector": changed(far)}, "1", "1.20 s", "action elbow is 6; 98 % of all lie in", "cut or correct it"),
    "copy": (
        {"vector": lambda key, episode, step: vector(key, 1 if episode == 3 else episode, step)},
        *("3", "0.00 s – 2.90 s", "moves as episode 1 does", "remove one"),
    ),
    "task": (
        {"task": lambda episode, step: "Wave" if episode == 3 else "Point"},
        *("", "", "'Wave' has 1 episode", "record 1 more"),
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named_with_its_place_and_a_remedy(kind: str, command: Command, tmp_path: Path) -> None:
    changes, episode, time, what, remedy = FAULTS[kind]
    root = write(tmp_path / "data_set", **changes)
    if kind == "time":
        late(root)
    asked = ["dataset=lerobot", f"dataset.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
    asked += [f"min_episodes={1 + (kind == 'task')}"]
    code, out, err = command("analyze", *asked, "check=true")
    rows = [*csv.DictReader((tmp_path / "run" / "lacks.csv").open())]
    assert [row["kind"] for row in rows] == [kind]
    assert rows[0]["episode"] == episode
    assert re.fullmatch(time, rows[0]["time"])
    assert rows[0]["what"].startswith(what)
    assert remedy in rows[0]["what to do"]
    assert code == 2
    assert "1 things are lacking" in err
    assert what.split()[0] in out
    assert (tmp_path / "run" / "lacks.png").stat().st_size > 5_000
    if kind == "time":  # which is also another file than it says
        assert "1 things are wrong" in err
        assert "expected 1.2000 s" in " ".join(out.split())
    else:  # without check=true it is said, and no error
        assert command("analyze", *asked)[0] == 0


def test_each_source_of_a_mix_is_looked_at(sound: Path, command: Command, tmp_path: Path) -> None:
    """What is found is said with its source, also after one that cannot be read; the exit code is over all."""

    def asked(**sources: Path) -> list[str]:
        nodes = ",".join(f"{name}:{{root:{root}}}" for name, root in sources.items())
        given = ["dataset=mix", f"dataset.sources={{{nodes}}}", "check=true", "min_episodes=2"]
        return [*given, f"hydra.run.dir={tmp_path / 'run'}"]

    changes, episode, *_ = FAULTS["camera"]
    faulty = write(tmp_path / "faulty", **changes)
    code, out, err = command("analyze", *asked(sound=sound, faulty=faulty, gone=tmp_path / "nowhere"))
    assert code == 2
    said = " ".join(err.split())
    assert "faulty: 1 things are lacking; gone: " in said
    assert "sound: " not in said
    assert all(f"source {name}" in out for name in ("sound", "faulty", "gone"))
    rows = [*csv.DictReader((tmp_path / "run" / "faulty" / "lacks.csv").open())]
    assert [(row["kind"], row["episode"]) for row in rows] == [("camera", episode)]
    assert not (tmp_path / "run" / "sound" / "lacks.csv").exists()
    code, out, err = command("analyze", *asked(sound=sound, again=sound))
    assert (code, err) == (0, "")
    assert out.count("nothing is wrong") == 2
    assert "sound: " in out[out.index("the mix") :]  # what they are together


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "sound")


def test_nothing_is_said_of_sound_data(sound: Path, command: Command, tmp_path: Path) -> None:
    asked = ["dataset=lerobot", f"dataset.root={sound}", "check=true", f"hydra.run.dir={tmp_path / 'run'}"]
    code, out, err = command("analyze", *asked, "min_episodes=2", "augmentation=camera")
    assert (code, err) == (0, "")
    assert "nothing is lacking" in out
    assert not (tmp_path / "run" / "lacks.png").exists()
    assert (tmp_path / "run" / "augmentation.png").stat().st_size > 50_000
    code, _, err = command("analyze", *asked, "look_frames=0")
    assert code == 2
    assert "look_frames=0: expected a whole number from 1" in err


def loaded(root: Path, data_dir: Path) -> Demonstrations:
    return LeRobotSource(str(data_dir), 0.4, 0, root=str(root), cache="none").load()


def test_of_large_data_whole_episodes_are_looked_at(sound: Path, tmp_path: Path) -> None:
    data = loaded(sound, tmp_path)
    read: list[int] = []

    class Counted:
        def __init__(self, frames: Any) -> None:
            self.frames, self.shape = frames, frames.shape

        def __getitem__(self, rows: Any) -> Any:
            read.extend(rows.tolist())
            return self.frames[rows]

    for camera, frames in data.frames.items():
        data.frames[camera] = Counted(frames)  # type: ignore[index]
    found = survey(data, range(4), 1, 2 * LENGTH, ["a", "b", "c"])
    assert found.looked == 2
    assert sorted(set(read)) == [*range(LENGTH), *range(3 * LENGTH, 4 * LENGTH)]
    assert survey(data, range(4), 1, 1, ["a", "b", "c"]).looked == 1
    assert survey(data, range(4), 1, 10**6, ["a", "b", "c"]).looked == 4


def test_a_camera_may_stand_still_while_nothing_moves(tmp_path: Path) -> None:
    def waits(step: int) -> int:
        return step if step < 8 else max(8, step - 14)

    root = write(
        tmp_path / "waits",
        vector=lambda key, episode, step: vector(key, episode, waits(step)),
        picture=lambda camera, episode, step: picture(camera, episode, waits(step)),
    )
    assert not survey(loaded(root, tmp_path), range(4), 1, 10**6, ["a", "b", "c"]).lacks
