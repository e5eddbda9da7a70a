"""What is noticed of a data set that is not what it says, and what is read right although it is stored in
another way.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_lerobot

from provla.dataset.checksums import RECORD
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.format import Camera
from provla.dataset.frames import Span, read_spans
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.sampler import Sampler

sys.path.insert(0, str(ROOT / "benchmarks" / "faults"))
from damages import DAMAGES, DATA, EPISODES, VIDEO, _flip, _numbers, _set, _table, outcome

Command = Callable[..., tuple[int, str, str]]


def source(root: Path, data_dir: Path, **changes: Any) -> LeRobotSource:
    return LeRobotSource(str(data_dir), 0.4, 0, root=str(root), **changes)


def copy(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to))


def edit_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


@pytest.fixture(scope="module")
def whole(two_cameras: Path, tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return source(two_cameras, tmp_path_factory.mktemp("whole")).load()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera, three episodes of six steps."""
    return write_lerobot(tmp_path_factory.mktemp("small") / "small", cameras={"front": {}}, episodes=3, length=6)


# `make faults` does all of them, to a recording too.
@pytest.mark.parametrize("name", [name for name in DAMAGES if not name.endswith((", 1", ", 2", ", 3"))])
def test_a_damage_is_named_or_read_right(name: str, two_cameras: Path, whole: Demonstrations, tmp_path: Path) -> None:
    root = copy(two_cameras, tmp_path / "broken")
    DAMAGES[name](root)
    good, said = outcome(root, tmp_path / "data", whole)
    assert good, said
    if not name.startswith("a flipped bit") and name not in ("an episode begins between frames", "no task texts"):
        assert said != "read"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "an action of 1e30",
            r"data/chunk-000/file-000.parquet, episode 0, frame 5: action holds 1e\+30, whose square is too large",
        ),
        ("7 actions where info.json says fewer", "episode 0, frame 0: action holds 7 numbers, info.json says 3"),
        (
            "two time stamps exchanged",
            r"episode 0, frame 4: timestamp is 0.9000 s, expected 0.4000 s \(frame 4 at 10 fps",
        ),
        ("another fps", "timestamp is 0.1000 s, expected 0.0500 s"),
        (
            "a video at another rate",
            "front/chunk-000/file-000.mp4, episode 0, frame 0: runs at 20 fps, info.json says 10",
        ),
        ("an empty task text", "episode 0, frame 0: has no task text"),
        ("statistics disagree", r"meta/stats.json: action: the stored mean is \[.*\], that of the data"),
        ("another video in a video's place", "front/chunk-000/file-000.mp4, episode 0: front: the pictures' mean is"),
        ("rows out of order", "rows are missing or out of order"),
        ("a negative length", "the length of episode 1 is -5"),
    ],
)
def test_messages_name_file_episode_and_frame(name: str, message: str, two_cameras: Path, tmp_path: Path) -> None:
    root = copy(two_cameras, tmp_path / "broken")
    next(damage for full, damage in DAMAGES.items() if full.startswith(name))(root)
    with pytest.raises(ValueError, match=message):
        source(root, tmp_path).load()


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [(VIDEO, False), (DATA, False), (EPISODES, False), ("meta/info.json", False), ("meta/tasks.parquet", True)],
)
def test_any_byte_of_a_recording_is_held_by_its_checksum(
    pattern: str, missing: bool, recording: Path, tmp_path: Path
) -> None:
    root = copy(recording, tmp_path / "broken")
    assert set(json.loads((root / RECORD).read_text())["sha256"]) == {
        str(f.relative_to(root)) for f in root.rglob("*.*") if f.is_file()
    } - {RECORD}
    file = next(iter(root.glob(pattern)))
    before = source(root, tmp_path).load().actions
    if missing:
        file.unlink()
    else:
        data, stat = bytearray(file.read_bytes()), file.stat()
        at = data.rindex(b"hand_x") if file.suffix == ".json" else len(data) // 2
        data[at] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(
        ValueError, match="is missing" if missing else "cannot be read|its sha256 differs from that in recording.json"
    ):
        source(root, tmp_path).load()
    assert len(before)


def test_what_came_from_the_hub_is_compared_with_what_was_sent(small: Path, tmp_path: Path) -> None:
    """The Hub's cache names the blobs that its links lead to after their content."""
    from provla.core.manifest import sha256

    root = tmp_path / "snapshots" / "small"
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in [f for f in small.rglob("*") if f.is_file()]:
        link, blob = root / file.relative_to(small), blobs / sha256(file)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    assert len(source(root, tmp_path).load().task) == 3
    blob = next(root.glob(VIDEO)).resolve()
    data = bytearray(blob.read_bytes())
    data[data.index(b"x264 - core")] ^= 1  # a comment of the encoder's: no picture changes
    blob.write_bytes(data)
    with pytest.raises(ValueError, match="file-000.mp4: is not what the Hub sent"):
        source(root, tmp_path).load()


def test_bad_episodes_can_be_left_out(
    two_cameras: Path, whole: Demonstrations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(two_cameras, tmp_path / "broken")
    _table(DATA, _set("action", 17, _numbers(lambda v: v * np.nan)))(root)  # episode 1
    video = root / "videos" / "observation.images.wrist" / "chunk-000" / "file-000.mp4"
    data = bytearray(video.read_bytes())
    data[-30:] = bytes(30)  # the last frames, in episode 4
    video.write_bytes(data)
    with pytest.raises(
        ValueError,
        match="episode 1, frame 5: action holds a number that is not finite.*dataset.bad_episodes=skip leaves these "
        "episodes out",
    ):
        source(root, tmp_path).load()
    left = source(root, tmp_path, bad_episodes="skip").load()
    assert "2 of 5 episodes" in capsys.readouterr().out
    assert [line.split(", ")[1].rstrip(":") for line in left.skipped] == ["episode 1", "episode 4"]
    keep = np.concatenate([np.arange(0, 12), np.arange(24, 48)])
    np.testing.assert_array_equal(left.actions, whole.actions[keep])
    assert left.starts.tolist() == [0, 12, 24, 36]
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(left.frames[camera], whole.frames[camera][keep])
    assert [left.instructions[t] for t in left.task] == ["Point", "Point", "Wave"]
    again = source(root, tmp_path, bad_episodes="skip").load()  # from what was remembered
    assert again.skipped == left.skipped
    np.testing.assert_array_equal(again.frames["front"], left.frames["front"])
    shutil.rmtree(root / "videos" / "observation.images.front")
    with pytest.raises(ValueError, match="is missing: the data set is incomplete"):
        source(root, tmp_path, bad_episodes="skip").load()
    with pytest.raises(ValueError, match="dataset.bad_episodes='drop'; valid: fail, skip"):
        source(root, tmp_path, bad_episodes="drop")


@pytest.mark.parametrize("what", ["flip", "cut", "empty", "notes", "shape"])
def test_a_damaged_frame_cache_is_made_again(
    what: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = np.array(source(small, tmp_path).load().frames["front"])
    cache = next((tmp_path / "frames").rglob("front_*.npy"))
    data, stat = bytearray(cache.read_bytes()), cache.stat()
    data[len(data) // 2] ^= 1
    if what == "notes":
        cache.with_suffix(".json").unlink()
    elif what == "shape":
        np.save(cache, before[:-1])
    else:
        cache.write_bytes({"flip": data, "cut": data[:-100], "empty": b""}[what])
        os.utime(cache, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    np.testing.assert_array_equal(source(small, tmp_path).load().frames["front"], before)
    assert "is damaged" in " ".join(capsys.readouterr().out.split())
    stamp = cache.stat().st_mtime_ns
    os.utime(cache)  # touched, and still what it was
    source(small, tmp_path).load()
    source(small, tmp_path).load()
    assert cache.stat().st_mtime_ns > stamp
    assert "damaged" not in capsys.readouterr().out


def test_a_video_that_changed_at_the_same_size_is_seen(small: Path, tmp_path: Path) -> None:
    root = copy(small, tmp_path / "data set")
    source(root, tmp_path).load()
    video = next(root.glob(VIDEO))
    stat, data = video.stat(), bytearray(video.read_bytes())
    data[data.index(b"x264 - core")] ^= 1
    video.write_bytes(data)
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    source(root, tmp_path).load()
    assert len(list((tmp_path / "frames").rglob("front_*.npy"))) == 2


def test_libav_conceals_nothing(recording: Path, tmp_path: Path) -> None:
    """Of 24 flipped bits in the pictures' part of a video, without checksums: the frames from a damaged one to the next
    key frame are named.
    """
    video = next(recording.glob(VIDEO))
    camera, data = Camera("corner2", "observation.images.corner2", "video", (32, 32)), video.read_bytes()
    spans = [Span(e, tmp_path / "video.mp4", 80 * e, 80, 80 * e) for e in range(4)]
    rng, noticed = np.random.default_rng(0), 0
    for _ in range(24):
        broken = bytearray(data)
        broken[int(rng.integers(len(data) // 10, len(data)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "video.mp4").write_bytes(broken)
        problems = [problem for *_, found in read_spans(tmp_path, camera, spans, 80.0) for problem in found]
        noticed += bool(problems)
        assert len({problem.episode for problem in problems}) <= 2
    assert noticed >= 14  # plain decoding notices 1 in 60


def test_check_lists_everything(small: Path, command: Command, tmp_path: Path) -> None:
    arguments = ["dataset=lerobot", "check=true", "min_episodes=1", f"hydra.run.dir={tmp_path / 'run'}"]
    root = copy(small, tmp_path / "copied" / "small")
    code, out, err = command("analyze", f"dataset.root={root}", *arguments)
    assert (code, err) == (0, "")
    assert "nothing is wrong" in out
    cache = next((tmp_path / "data" / "frames").rglob("front_*.npy"))
    _table(DATA, _set("action", 8, _numbers(lambda v: v * np.inf)))(root)
    _table(DATA, _set("timestamp", 13, 9.0))(root)
    code, out, err = command("analyze", f"dataset.root={root}", *arguments)
    assert code == 2
    assert "2 things are wrong" in err
    assert "in 2 episodes" in err
    assert "action holds a number that is not finite" in " ".join(out.split())
    with cache.open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    code, out, err = command("analyze", f"dataset.root={small}", *arguments)
    assert (code, "sha256 in episode 0" in " ".join(out.split())) == (2, True)
    assert command("analyze", f"dataset.root={small}", *arguments)[0] == 0
    code, out, err = command("analyze", "dataset=fake", "check=true", f"hydra.run.dir={tmp_path / 'run'}")
    assert "this source has no files to check" in out


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, 48, 64], ["channels", "height", "width"]),
        ([3, 48, 64], ["channel", "height", "width"]),
        ([3, 48, 64], ["c", "h", "w"]),
        ([3, 48, 64], None),
        ([48, 64, 3], None),
        ([48, 64, 3], {"axes": ["height", "width", "c"]}),
        ([64, 48, 3], ["width", "height", "channel"]),
    ],
)
def test_the_channel_is_found_by_shape_and_names(shape: list[int], names: Any, small: Path, tmp_path: Path) -> None:
    root = copy(small, tmp_path / "set")
    edit_info(root, lambda info: info["features"]["observation.images.front"].update(shape=shape, names=names))
    data = source(root, tmp_path).load()
    assert data.image_size == (48, 64)
    assert data.frames["front"].shape == (18, 3, 48, 64)


def test_cameras_that_are_none_are_named(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    front = "observation.images.front"
    root = copy(small, tmp_path / "set")
    edit_info(root, lambda info: info["features"][front].update(shape=[3, 64, 3], names=["x", "y", "z"]))
    with pytest.raises(
        ValueError,
        match=r"'front' has shape \[3, 64, 3\] and names \['x', 'y', 'z'\], which leave open which axis is the channel",
    ):
        source(root, tmp_path).load()
    edit_info(root, lambda info: info["features"][front].update(shape=[48, 64, 3], names=None))
    for flag in (
        {"info": {"is_depth_map": True}},
        {"video_info": {"video.is_depth_map": True}},
        {"shape": [48, 64, 1]},
    ):
        edit_info(root, lambda info, flag=flag: info["features"].update(deep=info["features"][front] | flag))
        data = source(root, tmp_path).load()
        assert list(data.frames) == ["front"]
        assert "the camera 'deep' is left out: it " in capsys.readouterr().out
        with pytest.raises(ValueError, match="the camera 'deep' (is a depth map|has 1 channel).*it has: front"):
            source(root, tmp_path, cameras=["front", "deep"]).load()
    edit_info(root, lambda info: info["features"].update({"../../x": info["features"][front]}))
    with pytest.raises(ValueError, match="has a name that cannot name a file"):
        source(root, tmp_path).load()


def test_pictures_are_read_like_videos(tmp_path: Path) -> None:
    """LeRobot's own writer with use_videos=False, and a set that holds both."""
    plain = {"dtype": "image"}
    root = write_lerobot(tmp_path / "images", cameras={"front": plain}, episodes=2, length=4)
    data = source(root, tmp_path).load()
    for row in range(8):
        np.testing.assert_array_equal(
            data.frames["front"][row], np.full((3, 48, 64), 20 + 12 * (row // 4) + 4 * (row % 4 % 3))
        )
    _flip(DATA, 0, 1)(root)
    with pytest.raises(ValueError, match=r"file-000.parquet"):
        source(root, tmp_path).load()
    both = source(
        write_lerobot(tmp_path / "both", cameras={"front": {}, "wrist": plain}, episodes=2, length=4), tmp_path
    ).load()
    assert list(both.frames) == ["front", "wrist"]
    assert int(both.frames["wrist"][4].mean()) == 132
    assert abs(int(both.frames["front"][4].mean()) - 32) <= 2


def test_pictures_in_files_of_their_own(tmp_path: Path) -> None:
    """A table may name files instead of holding their bytes; only files of the data set are read."""
    from PIL import Image as Pillow

    root = write_lerobot(tmp_path / "images", cameras={"front": {"dtype": "image"}}, episodes=1, length=4)
    (root / "images").mkdir(exist_ok=True)

    def out(table: Any) -> None:
        cells = []
        for i, cell in enumerate(table["observation.images.front"]):
            (root / "images" / f"{i}.png").write_bytes(cell["bytes"])
            cells.append({"bytes": None, "path": f"images/{i}.png"})
        table["observation.images.front"] = cells

    _table(DATA, out)(root)
    assert source(root, tmp_path).load().frames["front"][:, 0, 0, 0].tolist() == [20, 24, 28, 20]
    Pillow.fromarray(np.full((48, 64, 3), 200, dtype=np.uint8)).save(root / "images" / "2.png")
    with pytest.raises(ValueError, match="episode 0: front: the pictures' mean is"):
        source(root, tmp_path).load()
    _table(DATA, _set("observation.images.front", 1, {"bytes": None, "path": "../secret.png"}))(root)
    with pytest.raises(
        ValueError, match=r"episode 0, frame 1: names '../secret.png', which lies outside of the data set"
    ):
        source(root, tmp_path).load()


def test_each_row_has_the_sentence_of_its_own(tmp_path: Path) -> None:
    root = write_lerobot(
        tmp_path / "set",
        cameras={"front": {}},
        episodes=4,
        length=6,
        task=lambda e, s: "Grasp" if s > 2 else ("Reach", "Push")[e % 2],
    )
    data = source(root, tmp_path).load()
    assert data.instructions == ["Reach", "Grasp", "Push"]
    assert data.task.tolist() == [0, 2, 0, 2]  # of the first row: what the split goes by
    batch = Sampler(data, np.arange(4), ["front"], 4, 1).gather(np.array([0, 2, 3, 5, 6, 9]))
    assert batch.observation.instruction == ["Reach", "Reach", "Grasp", "Grasp", "Push", "Grasp"]
    train, val = data.split(0.5, 0)
    assert sorted(data.task[val].tolist()) == [0, 2]
    assert len(train) == 2


@pytest.mark.parametrize(
    ("dtype", "names", "joints", "note"),
    [
        ("int64", None, ["joint0", "joint1", "joint2"], ""),
        ("float64", {"motors": ["a", "b", "c"]}, ["a", "b", "c"], "action is stored in float64 and rounded to float32"),
        ("float32", ["a", "a", "b"], ["joint0", "joint1", "joint2"], "names repeat"),
    ],
)
def test_numbers_and_names_of_all_kinds(
    dtype: str, names: Any, joints: list[str], note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_lerobot(tmp_path / "set", cameras={"front": {}}, episodes=1, length=6, dtype=dtype, names=names)
    import pandas as pd

    stored = np.stack(pd.read_parquet(next(root.glob(DATA)))["action"])
    data = source(root, tmp_path).load()
    assert stored.dtype == dtype
    assert data.actions.dtype == np.float32
    np.testing.assert_array_equal(data.actions, stored.astype(np.float32))
    assert data.joint_names == joints
    said = capsys.readouterr().out
    assert note in " ".join(said.split())
    assert note or "action" not in said


def test_whole_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", cameras={"front": {}}, episodes=1, length=6, dtype="int64")
    _table(DATA, _set("action", 2, lambda v: [2**24 + 1, 0, 0]))(root)
    with pytest.raises(
        ValueError, match="'action' holds whole numbers up to 16777217, which float32 cannot hold exactly"
    ):
        source(root, tmp_path).load()


def test_nothing_held_out_is_an_empty_sampler(small: Path, tmp_path: Path) -> None:
    data = source(small, tmp_path).load()
    train, val = data.split(0.0, 0)
    assert (len(train), len(val)) == (3, 0)
    assert len(Sampler(data, val, ["front"], 4, 1)) == 0
    assert torch.equal(
        Sampler(data, train, ["front"], 4, 1).gather(np.array([0])).actions[0], torch.from_numpy(data.actions[:4])
    )


def test_pictures_that_are_all_but_noise_are_no_damage(tmp_path: Path) -> None:
    """A codec flattens them: a third of their spread is lost."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    picture = {"dtype": "video", "shape": (64, 80, 3), "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}
    features = {"observation.images.front": picture, "observation.state": vector, "action": vector}
    encoder = RGBEncoderConfig(vcodec="h264", g=2, crf=18, preset="ultrafast")
    root, rng = tmp_path / "noise", np.random.default_rng(0)
    data = LeRobotDataset.create("test/noise", fps=10, features=features, root=root, rgb_encoder=encoder)
    for _ in range(3):
        for step in range(6):
            numbers = {key: np.full(2, step, np.float32) for key in ("observation.state", "action")}
            pixels = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
            data.add_frame(numbers | {"observation.images.front": pixels, "task": "Wave"})
        data.save_episode()
    data.finalize()
    assert len(source(root, tmp_path).load().actions) == 18
