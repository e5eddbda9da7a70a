"""Pictures without a frame cache: decoded when they are needed, or ahead of the steps that need them."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import TINY, compose, write_lerobot

from provla.augmentation import NoAugmentation
from provla.core import signals
from provla.core.build import build
from provla.core.errors import Interrupted
from provla.core.identity import identity
from provla.core.types import Batch
from provla.dataset.demonstrations import Demonstrations, Part, Window
from provla.dataset.format import Camera
from provla.dataset.frames import Span
from provla.dataset.joined import Joined
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.ring import Ring
from provla.dataset.sampler import Sampler
from provla.dataset.shares import MixWindowSampler, Shares, learner_of
from provla.dataset.stored import Stored
from provla.dataset.window import Asked, WindowSampler
from provla.run.features import remember_features

Command = Callable[..., tuple[int, str, str]]
LENGTHS = (30, 9, 41, 17, 3, 26, 33)
STEPS = 24  # two and a half epochs of batches of 16


def moving(camera: int, episode: int, step: int) -> np.ndarray:
    """(48,64,3): no two alike, and each much like the one before."""
    y, x = np.mgrid[:48, :64]
    waves = np.sin(0.3 * x + 0.2 * step + camera) + np.cos(0.17 * y * (1 + 0.1 * episode) - 0.31 * step)
    colors = np.array([1.0, 0.5 + 0.05 * episode, 0.3 + 0.2 * camera])
    picture: np.ndarray = (127 + 60 * waves[..., None] * colors).astype(np.uint8)
    return picture


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven episodes of unlike lengths, two cameras, 12 frames from one key frame to the next, some of which look
    ahead."""
    encoder = {"g": 12, "preset": "veryfast", "crf": 20}
    root = tmp_path_factory.mktemp("movies") / "movies"
    return write_lerobot(root, episodes=len(LENGTHS), length=lambda e: LENGTHS[e], picture=moving, encoder=encoder)


@pytest.fixture(scope="module")
def full(movies: Path, tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return load(movies, tmp_path_factory.mktemp("full"), image_size=[24, 32])


@pytest.fixture
def windows(movies: Path, tmp_path: Path) -> Iterator[Callable[..., WindowSampler]]:
    """`windows(blocks, frames, gb)`: a sampler of all episodes but the second; closed after the test."""
    made: list[WindowSampler] = []

    def make(blocks: int = 5, frames: int = 8, gb: float | None = None, seen: int = 1, **more: Any) -> WindowSampler:
        keys = {"window_blocks": blocks, "window_frames": frames, "window_gb": gb, "window_workers": 2}
        data = load(movies, tmp_path, cache="window", image_size=[24, 32], **keys | more)
        made.append(WindowSampler(data, EPISODES, list(data.frames), 6, seen))
        return made[-1]

    yield make
    for one in made:
        one.close()


EPISODES = np.array([0, 2, 3, 4, 5, 6])


def load(root: Path, data_dir: Path, **keys: Any) -> Demonstrations:
    return LeRobotSource(str(data_dir), 0.4, 0, root=str(root), **keys).load()


def equal(one: Batch, other: Batch) -> bool:
    """Bit for bit, with the draws."""
    assert one.noise is not None
    return (
        torch.equal(one.observation.images, other.observation.images)
        and torch.equal(one.observation.state, other.observation.state)
        and one.observation.instruction == other.observation.instruction
        and all(
            torch.equal(getattr(one, name), getattr(other, name))
            for name in ("actions", "is_pad", "noise", "time", "crop", "color", "key")
        )
    )


def symbolic(lengths: list[int], window: Window, size: int = 4) -> Demonstrations:
    """Episodes that no file holds."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    spans = [Span(e, Path("none"), 0, n, int(starts[e])) for e, n in enumerate(lengths)]
    camera = Camera("front", "front", "video", (size, size))
    frames = Stored(Path(), camera, spans, (size, size), 10.0)
    numbers = np.zeros((int(starts[-1]), 1), dtype=np.float32)
    task = np.zeros(len(lengths), dtype=np.int64)
    return Demonstrations(
        {"front": frames}, numbers, numbers, starts, task, ["Go"], ["x"], {}, 10.0, "symbolic", window=window
    )


@pytest.mark.parametrize("size", [None, [24, 32]])
def test_pictures_that_are_asked_for_are_those_of_the_frame_cache(
    size: list[int] | None, movies: Path, tmp_path: Path
) -> None:
    cached, stored = load(movies, tmp_path, image_size=size), load(movies, tmp_path, cache="none", image_size=size)
    stored.check()
    rows = np.random.default_rng(0).integers(0, len(cached.actions), (6, 3))
    for camera in ("front", "wrist"):
        assert not np.array_equal(cached.frames[camera][1], cached.frames[camera][2])
        np.testing.assert_array_equal(stored.frames[camera][rows], cached.frames[camera][rows])
        np.testing.assert_array_equal(stored.frames[camera][70:90], cached.frames[camera][70:90])
        np.testing.assert_array_equal(stored.frames[camera][rows[:1, 0]], cached.frames[camera][rows[:1, 0]])
    assert stored.image_size == cached.image_size


def test_pictures_in_tables_too(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "images", cameras={"front": {"dtype": "image"}}, picture=moving)
    cached, stored = load(root, tmp_path), load(root, tmp_path, cache="none")
    rows = np.random.default_rng(0).integers(0, 60, 20)
    np.testing.assert_array_equal(stored.frames["front"][rows], cached.frames["front"][rows])


def test_a_video_is_entered_at_a_key_frame(movies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not read from its beginning, nor packet by packet as a damaged one is."""
    from provla.dataset import frames

    counts: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        assert not kwargs.get("careful")
        for found in decode(*args, **kwargs):
            counts.append(found[0])
            yield found

    decode = frames._decode
    monkeypatch.setattr(frames, "_decode", counted)
    stored = load(movies, tmp_path, cache="none").frames["front"]
    assert stored[np.array([120, 122])].shape == (2, 3, 48, 64)
    assert counts == [120, 121, 122]
    assert stored[np.array([122, 120])].shape == (2, 3, 48, 64)
    assert counts == [120, 121, 122]  # what was asked for last is kept


@pytest.mark.parametrize("seen", [1, 3])
def test_batches_are_those_of_the_frame_cache(
    seen: int, full: Demonstrations, windows: Callable[..., WindowSampler], tmp_path: Path
) -> None:
    """Over two and a half epochs; every rank has its rows of them."""
    window, ranks = windows(seen=seen), [windows(seen=seen) for _ in range(2)]
    cached = Sampler(full, EPISODES, list(full.frames), 6, seen)
    cached.shuffled = window.shuffled  # type: ignore[method-assign]
    for step in range(STEPS):
        batch = window.step(7, step, 16)
        assert batch.observation.images.shape == (16, seen, 2, 3, 24, 32)
        assert equal(batch, cached.step(7, step, 16)), step
        for rank, one in enumerate(ranks):
            assert equal(one.step(7, step, 16, rank, 2), cached.step(7, step, 16, rank, 2)), (step, rank)
    assert not list(tmp_path.rglob("*.npy"))  # nothing was written


def test_the_order_is_pure_and_every_epoch_sees_each_sample_once(windows: Callable[..., WindowSampler]) -> None:
    one, two = windows(), windows(gb=0.1, window_workers=1)  # neither changes the order
    steps = len(one) // 16
    for step in (2 * steps + 1, 3, 0):
        assert np.array_equal(one.rows_at(7, step, 16), two.rows_at(7, step, 16))
    for epoch in range(2):
        assert np.array_equal(np.sort(one.shuffled(7, epoch)), one.rows)
        seen = np.concatenate([one.rows_at(7, epoch * steps + s, 16) for s in range(steps)])
        assert len(np.unique(seen)) == 16 * steps
    orders = [one.shuffled(seed, epoch).tolist() for seed, epoch in ((7, 0), (7, 1), (8, 0))]
    orders.append(windows(blocks=6).shuffled(7, 0).tolist())
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("blocks", [4, 16, 10**6])
def test_few_blocks_are_open_at_a_time_and_a_step_draws_from_all_of_them(blocks: int) -> None:
    sampler = WindowSampler(symbolic([96] * 200, Window(blocks, 32)), np.arange(200), ["front"], 4, 1)
    order = sampler.block_of(sampler.shuffled(3, 0))  # 600 blocks
    first, last = np.full(600, len(order)), np.zeros(600, dtype=int)
    np.minimum.at(first, order, np.arange(len(order)))
    np.maximum.at(last, order, np.arange(len(order)))
    opened = np.array([((first <= at) & (last >= at)).sum() for at in range(0, len(order), 97)])
    inside = opened[len(opened) // 10 : -len(opened) // 10]
    if blocks == 10**6:  # a full shuffle
        assert inside.min() > 500
    else:
        assert opened.max() <= blocks + 1
        assert np.median(inside) >= 0.85 * blocks
        assert blocks // 2 <= opened[1] <= blocks // 2 + 4  # three turns after the epoch's beginning
        pairs = order[: len(order) // 2 * 2].reshape(
            -1, 2
        )  # neighbours in time are of one block as often as chance has it
        assert (pairs[:, 0] == pairs[:, 1]).mean() == pytest.approx(1 / blocks, rel=0.25)
    assert len(np.unique(np.diff(np.flatnonzero(np.diff(np.sort(order)))))) == 1  # cut evenly


def test_the_ring_never_holds_more_than_it_may(
    windows: Callable[..., WindowSampler], full: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the smallest window that is taken, over several epochs."""
    with pytest.raises(ValueError, match=r"take \d+\.\d+ GB in pictures of 24×32 of 2 cameras"):
        windows(gb=1e-4)
    with pytest.raises(ValueError, match=r"take \d+\.\d+ GB in pictures of 24×32 of 2 cameras") as error:
        windows(gb=3e-4).step(7, 0, 16)  # what is open, but not a step's samples beside it
    least = float(str(error.value).split(" take ")[1].split(" GB")[0])
    window, most = windows(gb=least), 0
    admit = Ring.admit

    def watched(ring: Ring, *args: Any) -> Any:
        nonlocal most
        found = admit(ring, *args)
        assert ring.frames.nbytes <= least * 1e9
        assert ring.held <= ring.capacity < 0.6 * len(window.rows)
        most = max(most, ring.held)
        return found

    monkeypatch.setattr(Ring, "admit", watched)
    cached = Sampler(full, EPISODES, list(full.frames), 6, 1)
    for step in range(3 * STEPS):
        rows = window.rows_at(7, step, 16)
        assert torch.equal(window.step(7, step, 16).observation.images, cached.gather(rows).observation.images), step
    assert window._walk is not None
    assert most > 0.9 * window._walk.ring.capacity  # what it may hold is used


@pytest.mark.parametrize("seed", range(6))
def test_a_window_that_was_taken_is_never_too_small_later(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the episodes' lengths, history, batches and ranks: a training does not end in its fifth epoch."""
    monkeypatch.setattr(Ring, "_decode", lambda *_: None)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        blocks, frames, seen, ranks = (int(rng.integers(*bounds)) for bounds in ((1, 80), (4, 40), (1, 5), (1, 5)))
        lengths = rng.integers(1, rng.integers(2, 120), rng.integers(20, 60)).tolist()
        asked = symbolic(lengths, Window(blocks, frames, None, 1))
        roomy = WindowSampler(asked, np.arange(len(lengths)), ["front"], 4, seen)
        size = min(ranks * 4, len(roomy.rows) // ranks * ranks)
        least = (roomy.needed(Asked(0, size, 0, 1)) + 0.5) * 48 / 1e9
        data = replace(asked, window=Window(blocks, frames, least, 1))
        window = WindowSampler(data, np.arange(len(lengths)), ["front"], 4, seen)
        for step in range(5 * len(window.rows) // size):
            window.pictures(seed, step, size, 0, ranks)
        window.close()
        roomy.close()


@pytest.mark.parametrize("weights", [[2, 1], [1, 9, 30], [0.3, 0.5, 7.1], [5]])
def test_each_source_of_a_mix_has_its_share_of_however_many_samples(weights: list[float]) -> None:
    shares, total = Shares(weights), 5000
    numbers, places = shares.of(0, total)
    again = [np.concatenate(parts) for parts in zip(shares.of(0, 999), shares.of(999, total - 999), strict=True)]
    assert np.array_equal(again, [numbers, places])
    for number, weight in enumerate(weights):
        mine = np.flatnonzero(numbers == number)
        assert np.array_equal(places[mine], np.arange(len(mine)))  # none is left out, none comes twice
        assert np.array_equal(shares.samples(number, np.arange(len(mine))), mine)
        wanted = np.arange(1, total + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(numbers == number) - wanted).max() < number + 1.01


def mixed(root: Path, data_dir: Path, **given: Any) -> Demonstrations:
    """The movies, and again the first three of them."""
    shared = {"image_size": [24, 32], "root": str(root)}
    few = {"num_episodes": 3, **shared}
    node = {"_target_": "provla.dataset.MixSource", "sources": {"all": shared, "few": few}, "data_dir": str(data_dir)}
    data: Demonstrations = build(node | {"val_fraction": 0.2, "split_seed": 0} | given, "dataset").load()
    return data


@pytest.mark.parametrize("seen", [1, 3])
def test_batches_of_a_mix_are_those_of_the_frame_cache(seen: int, movies: Path, tmp_path: Path) -> None:
    """Over some epochs of the smaller source; every rank has its rows of them, and any step can be the first."""
    ahead = {"window_blocks": 5, "window_frames": 8, "window_workers": 1}
    data = mixed(movies, tmp_path, weights={"all": 2, "few": 1}, cache="window", **ahead)
    full = mixed(movies, tmp_path, weights={"all": 2, "few": 1})
    train = data.split(0, 0)[0]
    made = [learner_of(data)(data, train, list(data.frames), 6, seen) for _ in range(3)]
    cached = learner_of(full)(full, train, list(full.frames), 6, seen)
    window = made[0]
    cached.rows_at = window.rows_at  # type: ignore[method-assign]
    assert isinstance(window, MixWindowSampler)
    drawn = np.concatenate([window.rows_at(7, step, 16) for step in range(STEPS)])
    own = drawn[drawn >= data.starts[len(LENGTHS)]]
    assert abs(len(own) - len(drawn) / 3) <= 1
    assert set(drawn) <= set(window.rows)
    counts = np.unique(own, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    assert counts.max() > 2
    for step in (*range(STEPS), 5, 6, 6, 3):
        wanted = cached.step(7, step, 16)
        assert equal(window.step(7, step, 16), wanted), step
        assert all(equal(one.step(7, step, 16, r, 2), cached.step(7, step, 16, r, 2)) for r, one in enumerate(made[1:]))
    assert window.waited() is not None
    for one in made:
        one.close()


@pytest.mark.parametrize("seed", range(2))
def test_windows_of_a_mix_that_were_taken_are_never_too_small(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "_decode", lambda *_: None)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        blocks, frames, seen, ranks = (int(rng.integers(*bounds)) for bounds in ((1, 80), (4, 40), (1, 5), (1, 5)))
        sets = [rng.integers(1, 120, rng.integers(1, 60)).tolist() for _ in range(3)]
        windows = [Window(blocks, frames, None, 1) for _ in sets]
        for bound in (False, True):
            learn = symbolic_mix(sets, windows, rng.random(3).tolist() if seed else None, seen)
            size = max(ranks, min(ranks * 4, len(learn.rows) // ranks * ranks))
            if not bound:
                least = [(one.needed(Asked(0, size, 0, 1)) + 0.5) * 48 / 1e9 for one in learn._windows]
                windows = [Window(blocks, frames, gb, 1) for gb in least]
                continue
            for step in range(3 * len(learn.rows) // size):
                assert learn.pictures(seed, step, size, ranks - 1, ranks).shape[0] == len(range(ranks - 1, size, ranks))
        learn.close()


def symbolic_mix(
    sets: list[list[int]], windows: list[Window], weights: list[float] | None, seen: int
) -> MixWindowSampler:
    alone = [symbolic(lengths, window) for lengths, window in zip(sets, windows, strict=True)]
    lengths = [n for one in sets for n in one]
    first = np.cumsum([0, *map(len, sets)])
    parts = {
        str(i): Part(None if weights is None else weights[i], np.arange(first[i], first[i + 1]), np.arange(0), window)
        for i, window in enumerate(windows)
    }
    joined = replace(
        symbolic(lengths, windows[0]),
        frames={"front": Joined([one.frames["front"] for one in alone])},
        window=None,
        parts=parts,
    )
    return MixWindowSampler(joined, np.arange(len(lengths)), ["front"], 4, seen)


def test_any_step_can_be_the_first_or_come_again(windows: Callable[..., WindowSampler], full: Demonstrations) -> None:
    whole, resumed = windows(seen=2), windows(seen=2)
    batches = [whole.step(7, step, 16) for step in range(STEPS)]
    for step in (5, 6, 6, 7, 20, 21, 3, 4, 23):  # a resumed run's, a bad step's second look, steps back
        assert equal(resumed.step(7, step, 16), batches[step]), step
    assert torch.equal(resumed.gather(np.array([3, 99])).actions, whole.gather(np.array([3, 99])).actions)


def test_waiting_is_measured_and_said_once(
    windows: Callable[..., WindowSampler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    decode = Stored.decode

    def slowly(self: Stored, *args: Any) -> None:
        time.sleep(0.01)
        decode(self, *args)

    wait = Ring.wait
    monkeypatch.setattr(Ring, "wait", lambda *args, **keys: 0 * wait(*args, **keys))
    quick = windows(blocks=2, frames=64)
    for step in range(30):
        quick.step(7, step, 2)
    assert quick.waited() == 0
    assert "steps wait" not in capsys.readouterr().out
    monkeypatch.setattr(Ring, "wait", wait)
    monkeypatch.setattr(Stored, "decode", slowly)
    slow = windows(blocks=2, frames=4)
    for step in range(30):
        slow.step(7, step, 16)
    assert slow.waited() > 0.1
    assert slow.waited() == 0  # since it was last asked
    said = capsys.readouterr().out
    assert said.count("steps wait for decoded pictures in ") == 1


def test_a_signal_is_heeded_while_a_step_waits(
    windows: Callable[..., WindowSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    monkeypatch.setattr(Ring, "_decode", lambda *_: held.wait())
    monkeypatch.setattr(signals._state, "signum", signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        windows().step(7, 0, 16)
    held.set()


TRAIN = [*(word for word in TINY if word != "dataset=fake"), "dataset=lerobot", "vision.channels=[8,16]"]
TRAIN += ["dataset.image_size=[32,32]", "logger=csv", "trainer.log_every=1", "trainer.val_every=4", "threads=1"]
TRAIN += ["trainer.max_steps=12", "trainer.save_every=3", "n_obs_steps=2", "dataset.val_fraction=0.3"]
WINDOW = ["dataset.cache=window", "dataset.window_blocks=4", "dataset.window_frames=10"]


def metrics(folder: Path) -> list[dict[str, str]]:
    import csv

    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any("train/waiting" in row for row in rows) == ("window" in folder.name)
    return [{k: v for k, v in row.items() if k not in ("train/waiting", "train/steps_per_second")} for row in rows]


def test_a_run_without_a_frame_cache_is_the_run_with_one(movies: Path, command: Command, tmp_path: Path) -> None:
    for cache in ("full", "none"):
        folder = tmp_path / cache
        code, _, err = command(
            "train", *TRAIN, f"dataset.root={movies}", f"dataset.cache={cache}", f"hydra.run.dir={folder}"
        )
        assert code == 0, err
    assert metrics(tmp_path / "none") == metrics(tmp_path / "full")
    results = [json.loads((tmp_path / cache / "result.json").read_text()) for cache in ("full", "none")]
    assert results[0]["config_hash"] == results[1]["config_hash"]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_a_window_run_goes_on_where_it_was(movies: Path, command: Command, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    asked = ["train", *TRAIN, *WINDOW, f"dataset.root={movies}"]
    code, out, err = command(*asked, f"hydra.run.dir={tmp_path / 'window'}")
    assert code == 0, err
    assert "pictures are decoded ahead by " in out
    resumed = Path(shutil.copytree(tmp_path / "window", tmp_path / "window_resumed", symlinks=True))
    for name in ("result.json", "policy/weights.safetensors"):
        (resumed / name).unlink()
    shutil.rmtree(max((resumed / "checkpoints").glob("step_*")))
    code, out, err = command(*asked, "dataset.window_gb=0.05", f"hydra.run.dir={resumed}")
    assert code == 0, err
    assert "resuming from step 9" in out
    assert metrics(resumed) == metrics(tmp_path / "window")
    weights = [load_file(folder / "policy" / "weights.safetensors") for folder in (resumed, tmp_path / "window")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def damaged(movies: Path, to: Path, episode: int) -> Path:
    """The data set, in whose first camera the frames of an episode's second half cannot be decoded."""
    root = Path(shutil.copytree(movies, to))
    [file] = root.glob("videos/observation.images.front/*/*.mp4")
    first = sum(LENGTHS[:episode]) + LENGTHS[episode] // 2
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        places = [
            (packet.pos, packet.size)
            for packet in container.demux(stream)
            if packet.pts is not None and round(float(packet.pts * packet.time_base) * 10) in range(first, first + 6)
        ]
    data = bytearray(file.read_bytes())
    for at, size in places:
        data[at + size // 4 : at + size] = bytes(size - size // 4)
    file.write_bytes(data)
    return root


def test_a_damaged_video_ends_a_training_with_its_name(movies: Path, command: Command, tmp_path: Path) -> None:
    root, folder = damaged(movies, tmp_path / "damaged", 5), tmp_path / "run"
    asked = [f"dataset.root={root}", "dataset.val_fraction=0", "dataset.window_blocks=1", "dataset.cache=window"]
    code, _, err = command("train", *TRAIN, *asked, "trainer.save_every=1", f"hydra.run.dir={folder}")
    assert code == 2
    assert "videos/observation.images.front/chunk-000/file-000.mp4, episode 5, frame 1" in err
    assert "cannot be decoded" in err or "is damaged" in err
    assert "The checkpoints of a training stand" in err
    assert list((folder / "checkpoints").glob("step_*"))
    good = load(root, tmp_path, cache="none").frames["front"]
    np.testing.assert_array_equal(
        good[:97], load(movies, tmp_path).frames["front"][:97]
    )  # the episodes before it are read right
    with pytest.raises(ValueError, match=r"file-000.mp4, episode 5, frame 1"):
        good[np.array([sum(LENGTHS[:5]) + 15])]


def test_check_looks_at_every_picture_without_keeping_any(movies: Path, command: Command, tmp_path: Path) -> None:
    asked = [
        "analyze",
        "check=true",
        "min_episodes=1",
        "dataset=lerobot",
        "dataset.cache=none",
        f"data_dir={tmp_path / 'd'}",
    ]
    code, out, err = command(*asked, f"dataset.root={movies}")
    assert code == 0, out + err
    assert "nothing is wrong" in out
    code, out, err = command(*asked, f"dataset.root={damaged(movies, tmp_path / 'bad', 5)}")
    assert code == 2
    assert "in 1 episodes" in err
    assert not list((tmp_path / "d").rglob("*.npy"))
    (tmp_path / "bad" / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4").unlink()
    with pytest.raises(ValueError, match=r"file-000.mp4, episode 0: is missing"):
        load(tmp_path / "bad", tmp_path, cache="window")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dataset.cache=other", "dataset.cache='other': expected one of: full, window, none"),
        ("dataset.window_blocks=0", "dataset.window_blocks=0: expected a whole number from 1 to"),
        ("dataset.window_gb=0", "dataset.window_gb=0: expected a number above 0"),
        ("dataset.window_gb=0.0001", "dataset.window_gb=0.0001: dataset.window_blocks=256 open blocks of "),
        ("dataset.window_gb=1e9", "dataset.window_gb=1e+09: the ring of dataset.window_blocks=256"),
    ],
)
def test_wrong_values_are_refused_before_the_training(
    key: str, message: str, movies: Path, command: Command, tmp_path: Path
) -> None:
    asked = [*TRAIN, "dataset.cache=window", key, f"dataset.root={movies}", f"hydra.run.dir={tmp_path / 'run'}"]
    code, _, err = command("train", *asked)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("run/checkpoints/step_*"))


def test_what_a_window_is_part_of(movies: Path) -> None:
    """Its order is of a run, its memory and threads are not; runs of before there was a choice are the same runs."""

    def of(*words: str) -> str:
        return identity(compose("dataset=lerobot", "dataset.root=x", *words))

    config = compose("dataset=lerobot", "dataset.root=x")
    old = {k: v for k, v in config["dataset"].items() if k != "cache" and not k.startswith("window")}
    assert of() == identity(config | {"dataset": old}) == of("dataset.cache=none") == of("dataset.window_blocks=3")
    window = of("dataset.cache=window")
    assert window == of("dataset.cache=window", "dataset.window_gb=3", "dataset.window_workers=2")
    others = [of("dataset.cache=window", f"dataset.window_{key}=3") for key in ("blocks", "frames")]
    assert len({of(), window, *others}) == 4
    assert build(config["dataset"], "dataset").window is None


def test_a_window_wants_pictures_that_are_decoded_as_it_goes(full: Demonstrations) -> None:
    with pytest.raises(ValueError, match="its frames lie in arrays"):
        WindowSampler(replace(full, window=Window(4, 8)), EPISODES, ["front"], 6, 1)


def test_frames_that_are_not_kept_give_a_frozen_encoder_no_features(
    movies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    vision = SimpleNamespace(encode=None, pretrained=True, adaptable=frozen)
    policy = SimpleNamespace(vision=vision, augmentation=NoAugmentation())
    setting: Any = SimpleNamespace(data=load(movies, tmp_path, cache="none"))
    remember_features({"data_dir": str(tmp_path)}, policy, setting, torch.device("cpu"))
    assert "its features are kept with dataset.cache=full alone" in " ".join(capsys.readouterr().out.split())


def test_held_out_samples_are_gathered_at_random(full: Demonstrations, movies: Path, tmp_path: Path) -> None:
    data = load(movies, tmp_path, cache="window", image_size=[24, 32])
    mine, theirs = (Sampler(one, np.array([1, 5]), ["wrist", "front"], 6, 2) for one in (data, full))
    for rows in itertools.batched(mine.rows[::3].tolist(), 4):
        one, other = (sampler.gather(np.array(rows)).observation.images for sampler in (mine, theirs))
        assert torch.equal(one, other)
