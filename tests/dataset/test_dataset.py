"""Recording, LeRobot data sets, the frame cache, chunks, splits; and what is said of broken data."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, compose

from provla.core.build import build
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.metaworld import MetaworldRecording
from provla.dataset.recording import record
from provla.dataset.sampler import Sampler

TASKS = ("drawer-close", "window-open")


def source(root: Path, data_dir: Path, **changes: Any) -> LeRobotSource:
    return LeRobotSource(str(data_dir), 0.4, 0, root=str(root), **changes)


def fake(**changes: Any) -> Demonstrations:
    found = build(compose("dataset=fake")["dataset"] | changes, "dataset").load()
    assert isinstance(found, Demonstrations)
    return found


def test_recording_opens_in_lerobot_with_the_same_numbers(recording: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("provla/metaworld", root=recording, video_backend="pyav")
    ours = source(recording, tmp_path).load()
    assert (theirs.num_episodes, theirs.num_frames) == (4, len(ours.actions))
    assert ours.instructions == ["Push and close a drawer", "Push and open a window"]
    assert ours.joint_names == ["hand_x", "hand_y", "hand_z", "gripper"]
    for i in (0, 1, int(ours.starts[1]), int(ours.starts[3]) + 7, len(ours.actions) - 1):
        item = theirs[i]
        np.testing.assert_array_equal(item["action"].numpy(), ours.actions[i])
        np.testing.assert_array_equal(item["observation.state"].numpy(), ours.state[i])
        episode = np.searchsorted(ours.starts, i, side="right") - 1
        assert item["task"] == ours.instructions[ours.task[episode]]
        pixels = (item["observation.images.corner2"] * 255).round().numpy().astype(int)
        assert np.abs(pixels - ours.frames["corner2"][i]).max() <= 1


def test_recorded_frames_are_what_the_simulator_shows(recording: Path, tmp_path: Path) -> None:
    from provla.env.metaworld import MetaworldTask

    ours = source(recording, tmp_path).load()
    env = MetaworldTask("drawer-close", ["corner2"], 32)
    rng = np.random.default_rng([0, *b"drawer-close", 1, 0])
    env.reset(int(rng.integers(2**31)))
    start = ours.starts[1]
    np.testing.assert_array_equal(env.state(), ours.state[start])
    assert np.abs(env.images()["corner2"].transpose(2, 0, 1).astype(int) - ours.frames["corner2"][start]).mean() < 2
    # Noise is on the executed action alone: replaying with the recorded actions and the same noise meets the same
    # states.
    for i in range(start, start + 20):
        env.step(ours.actions[i] + rng.normal(0, 0.05, 4))
        np.testing.assert_allclose(env.state(), ours.state[i + 1], atol=1e-6)
    env.close()


def test_only_successful_episodes_are_kept_and_end_at_success(recording: Path, tmp_path: Path) -> None:
    lengths = np.diff(source(recording, tmp_path).load().starts)
    assert ((lengths > 40) & (lengths < 200)).all()


def test_recording_is_found_again_and_depends_on_every_parameter(recording: Path) -> None:
    asked = MetaworldRecording(TASKS, 2, ("corner2",), 32, 0, 0.05, 0.0, 3)
    before = (recording / "meta" / "info.json").stat().st_mtime_ns
    assert record(asked, recording.parent, 1) == recording
    assert (recording / "meta" / "info.json").stat().st_mtime_ns == before
    assert json.loads((recording / "recording.json").read_text())["episodes_per_task"] == 2
    names = {
        MetaworldRecording(TASKS, 2, ("corner2",), 32, s, n, 0.0, c).name
        for s in (0, 1)
        for n in (0.05, 0.1)
        for c in (12, 20)
    }
    assert len(names) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": ("drawer-shut",)},
            "unknown Meta-World task 'drawer-shut'; did you mean drawer-.*; valid: assembly, ",
        ),
        ({"image_size": 33}, "dataset.image_size=33: must be even"),
        ({"cameras": ("corner9",)}, "no camera 'corner9' in this simulation; valid: topview, corner"),
    ],
)
def test_bad_recordings_are_refused_and_leave_nothing(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        record(
            MetaworldRecording(
                **(
                    {
                        "tasks": TASKS,
                        "episodes_per_task": 1,
                        "cameras": ("corner2",),
                        "image_size": 32,
                        "seed": 0,
                        "noise": 0.05,
                        "noise_correlation": 0.0,
                        "crf": 12,
                    }
                    | changes
                )
            ),
            tmp_path,
            1,
        )
    assert [f.name for f in tmp_path.iterdir() if not f.name.endswith(".claim")] == []


def test_killed_recording_never_looks_finished(tmp_path: Path) -> None:
    """kill -9 in the middle; the next call records from the start and cleans up."""
    code = (
        "from pathlib import Path\nfrom provla.dataset.metaworld import MetaworldRecording\n"
        "from provla.dataset.recording import record\n"
        "asked = MetaworldRecording(('drawer-close',), 30, ('corner2',), 16, 0, 0.05, 0.0, 12)\n"
        f"if __name__ == '__main__': record(asked, Path({str(tmp_path)!r}), 1)"
    )
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "go.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".metaworld*.partial/shard0/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, 9)
    process.wait()
    assert list(tmp_path.glob(".metaworld*.partial"))
    assert not list(tmp_path.glob("metaworld*"))
    short = MetaworldRecording(("drawer-close",), 1, ("corner2",), 16, 0, 0.05, 0.0, 12)
    (tmp_path / f".{short.name}-dead.partial").mkdir()
    assert (record(short, tmp_path, 1) / "recording.json").is_file()
    assert not list(tmp_path.glob(f".{short.name}-*.partial"))


def test_any_lerobot_data_set_by_name(two_cameras: Path, tmp_path: Path) -> None:
    data = source(
        two_cameras, tmp_path, cameras=["wrist", "observation.images.front"], state_key="observation.effort"
    ).load()
    assert list(data.frames) == ["wrist", "front"]
    assert data.image_size == (48, 64)
    assert data.joint_names == ["shoulder", "elbow", "gripper"]
    for k, camera in enumerate(("front", "wrist")):
        for row in (0, 13, 59):
            expected = 20 + 100 * k + 12 * (row // 12) + 4 * (row % 12 % 3)
            assert abs(int(data.frames[camera][row].mean()) - expected) <= 2
    import pandas as pd

    table = pd.concat([pd.read_parquet(f) for f in sorted((two_cameras / "data").rglob("*.parquet"))])
    np.testing.assert_array_equal(np.stack(table["observation.effort"]), data.state)
    small = source(
        two_cameras, tmp_path, image_size=[24, 32], num_episodes=3, joint_groups={"arm": ["shoulder", "elbow"]}
    ).load()
    assert small.image_size == (24, 32)
    assert len(small.task) == 3
    assert small.joint_groups == {"arm": [0, 1]}


def test_cache_is_written_once_and_shared(two_cameras: Path, tmp_path: Path) -> None:
    data = source(two_cameras, tmp_path).load()
    files = sorted((tmp_path / "frames").rglob("*.npy"))
    assert sorted(f.name for f in files) == ["front_48x64.npy", "wrist_48x64.npy"]
    stamps = [f.stat().st_mtime_ns for f in files]
    moved = tmp_path / "elsewhere" / "two_cameras"
    shutil.copytree(two_cameras, moved)
    again = source(moved, tmp_path).load()
    assert [f.stat().st_mtime_ns for f in files] == stamps
    assert isinstance(again.frames["front"], np.memmap)
    np.testing.assert_array_equal(again.frames["front"], data.frames["front"])


def test_processes_that_ask_at_once_share_one_cache(two_cameras: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_load, args=(two_cameras, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list((tmp_path / "frames").rglob("*.partial"))


def _load(root: Path, data_dir: Path) -> None:
    source(root, data_dir).load()


Break = Callable[[Path], None]


def _info(change: Callable[[dict[str, Any]], None]) -> Break:
    def apply(root: Path) -> None:
        file = root / "meta" / "info.json"
        info = json.loads(file.read_text())
        change(info)
        file.write_text(json.dumps(info))

    return apply


def _cut(pattern: str, keep: float) -> Break:
    def apply(root: Path) -> None:
        file = sorted(root.glob(pattern))[0]
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda root: (root / "meta" / "info.json").unlink(), "is not a LeRobot data set: it has no meta/info.json"),
        (_cut("meta/info.json", 0.5), "info.json is damaged"),
        (_info(lambda i: i.update(codebase_version="v2.1")), r"has schema v2.1, provla reads v3; convert it"),
        (_info(lambda i: i.pop("fps")), "has no 'fps'"),
        (
            _info(lambda i: i.update(total_frames=61)),
            "truncated: meta/info.json promises 61 frames, the parquet files hold 60",
        ),
        (_cut("data/*/*.parquet", 0.5), "data cannot be read, it is truncated or damaged"),
        (lambda root: shutil.rmtree(root / "data"), "data holds no parquet file"),
        (_cut("videos/*/*/*.mp4", 0.3), "truncated|cannot be decoded"),
        (lambda root: next(iter(root.glob("videos/*/*/*.mp4"))).unlink(), "is missing: the data set is incomplete"),
    ],
    ids=[
        "missing",
        "no-info",
        "half-info",
        "v2",
        "no-fps",
        "frames",
        "half-table",
        "no-table",
        "half-video",
        "no-video",
    ],
)
def test_broken_data_sets_are_named(damage: Break, message: str, two_cameras: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(two_cameras, root)
    damage(root)
    before = sorted((str(f), f.stat().st_size) for f in root.rglob("*") if f.is_file())
    with pytest.raises(ValueError, match=message):
        source(root, tmp_path).load()
    assert sorted((str(f), f.stat().st_size) for f in root.rglob("*") if f.is_file()) == before
    assert not list(tmp_path.rglob("*.partial"))
    assert not list((tmp_path / "frames").rglob("front*.npy")) or "video" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ["back"]}, r"dataset.cameras=\['back'\]: no camera 'back' in this data set; it has: front, wrist"),
        (
            {"state_key": "state"},
            (
                "dataset.state_key='state' is not a vector of this data set; it has: observation.state, "
                "observation.effort, action"
            ),
        ),
        ({"action_key": "observation.images.front"}, "dataset.action_key="),
        ({"num_episodes": 6}, "dataset.num_episodes=6: .* holds 5"),
        (
            {"joint_groups": {"arm": ["knee"]}},
            "names 'knee', which is no joint of this data set; it has: shoulder, elbow, gripper",
        ),
    ],
)
def test_wrong_names_are_answered_with_the_right_ones(
    changes: dict[str, Any], message: str, two_cameras: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        source(two_cameras, tmp_path, **changes).load()


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"dataset.repo_id='nobody/nothing' is not a folder here and could not be fetched from the Hugging Face "
        r"Hub",
    ):
        LeRobotSource(str(tmp_path), 0.1, 0, repo_id="nobody/nothing").load()
    with pytest.raises(ValueError, match=r"give dataset.root=<folder> and/or dataset.repo_id"):
        LeRobotSource(str(tmp_path), 0.1, 0)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("unshare") is None, reason="needs Linux's unshare for a small file system"
)
def test_full_disk_while_caching_is_one_clear_message(two_cameras: Path, tmp_path: Path) -> None:
    """A real file system of 1 MB: the check sees it, and so does a write that runs out of room."""
    small = tmp_path / "small"
    small.mkdir()
    code = (
        "import sys; from provla.dataset import LeRobotSource; import provla.dataset.cache\n"
        # somebody else filled the disk meanwhile
        "if sys.argv[1] == 'late': provla.dataset.cache.check_space = lambda *a: None\ntry: "
        f"LeRobotSource({str(small)!r}, 0.4, 0, root={str(two_cameras)!r}).load()\nexcept ValueError as error: "
        "print('MESSAGE', error); import pathlib; print('LEFT', [f.name for f in "
        f"pathlib.Path({str(small)!r}).rglob('*') if f.is_file() and '.claim' not in str(f)])\n"
    )
    for when, message in (
        ("early", "the frame cache will not fit into"),
        ("late", "cannot be written: no space left on disk"),
    ):
        mount = f'mount -t tmpfs -o size=400k tmpfs {small} && {sys.executable} -c "$CODE" {when}'
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", mount],
            env=os.environ | {"CODE": code},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip("this machine allows no mount in a user namespace")
        assert message in done.stdout, done.stderr
        assert "LEFT []" in done.stdout


def test_chunks_end_at_the_episodes_end() -> None:
    data = fake(length=6)
    sampler = Sampler(data, np.array([1, 3]), ["front"], horizon=4, n_obs_steps=3)
    batch = sampler.gather(np.array([6, 10, 11]))
    actions, state = torch.from_numpy(data.actions), torch.from_numpy(data.state)
    assert batch.is_pad.tolist() == [[False] * 4, [False, False, True, True], [False, True, True, True]]
    assert torch.equal(batch.actions[0], actions[6:10])
    # The last action is repeated, never the next episode's first.
    assert torch.equal(batch.actions[1], actions[[10, 11, 11, 11]])
    assert torch.equal(batch.observation.state[0], state[[6, 6, 6]])  # the first observation is repeated
    assert torch.equal(batch.observation.state[1], state[[8, 9, 10]])
    assert torch.equal(batch.observation.images[1, :, 0], torch.from_numpy(data.frames["front"][8:11]))
    assert batch.observation.instruction == ["Reach right"] * 3


def test_every_step_is_a_pure_function_and_an_epoch_sees_each_sample_once() -> None:
    data = fake(length=8)
    one, two = (Sampler(data, np.arange(6), ["front"], 4, 1) for _ in range(2))
    for step in (11, 3, 0):  # in another order than the first sampler's
        a, b = two.step(7, step, 12), one.step(7, step, 12)
        assert a.noise is not None
        assert b.noise is not None
        assert torch.equal(a.actions, b.actions)
        assert torch.equal(a.noise, b.noise)
    seen = torch.cat([one.step(7, s, 12).observation.state[:, 0, 0] for s in range(4)])
    assert sorted(seen.tolist()) == sorted(data.state[:, 0].tolist())
    assert not torch.equal(one.step(7, 0, 12).actions, one.step(7, 4, 12).actions)


def test_split_is_by_episode_stratified_and_seeded() -> None:
    data = fake(episodes=30)
    train, val = data.split(0.2, 0)
    assert sorted([*train, *val]) == list(range(30))
    assert np.bincount(data.task[val]).tolist() == [3, 3]
    assert np.array_equal(val, data.split(0.2, 0)[1])
    assert not np.array_equal(val, data.split(0.2, 1)[1])
    assert len(data.split(0.0, 0)[1]) == 0


def test_splitting_a_batch_loses_nothing() -> None:
    sampler = Sampler(fake(), np.arange(6), ["front"], 4, 1)
    batch = sampler.step(0, 0, 10)
    parts = list(batch.split(3))
    assert [len(p) for p in parts] == [3, 3, 4]
    assert batch.noise is not None
    assert torch.equal(torch.cat([p.noise for p in parts if p.noise is not None]), batch.noise)
    assert torch.equal(torch.cat([p.observation.images for p in parts]), batch.observation.images)
    assert [t for p in parts for t in p.observation.instruction] == batch.observation.instruction
