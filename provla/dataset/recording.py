"""Recording: scripted experts in simulation → a LeRobot v3 data set on disk.

Several processes record one shard each; LeRobot's own aggregation joins the shards. All of it happens in a temporary
folder that is renamed when complete, so a folder that exists is a finished recording.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import traceback
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from provla.core.files import check_space, fingerprint, write_json, writing
from provla.core.progress import progress_bars
from provla.dataset.checksums import RECORD, sha256_of_all
from provla.env.metaworld import (
    METAWORLD_FPS,
    METAWORLD_JOINTS,
    MetaworldEnv,
    MetaworldExpert,
    metaworld_instruction,
    require_opengl,
)

MAX_STEPS = 300  # the experts need about 90 of Meta-World's 500 control steps


MAX_ATTEMPTS = 20  # failed demonstrations in a row before the recording gives up


REPO_ID = "provla/metaworld"


@dataclass(frozen=True)
class MetaworldRecording:
    """Everything that decides what a recording contains; `name` is its identity on disk.

    noise: standard deviation of the Gaussian added to the executed action; the recorded one is the expert's.
    noise_correlation: from one control step to the next (AR(1)); correlated noise carries the hand further off its
    path, so that the demonstrations show how to come back.
    """

    tasks: tuple[str, ...]
    episodes_per_task: int
    cameras: tuple[str, ...]
    image_size: int
    seed: int
    noise: float
    noise_correlation: float
    crf: int
    version: int = 2

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"dataset.tasks={list(self.tasks)}: name each task once")
        if self.image_size < 16 or self.image_size % 2:
            raise ValueError(
                f"dataset.image_size={self.image_size}: must be even and at least 16 (video encoders need it)"
            )
        for task in self.tasks:
            metaworld_instruction(task)

    @property
    def name(self) -> str:
        return f"metaworld_{fingerprint(asdict(self))}"

    @property
    def room(self) -> int:
        """Bytes that are enough: raw frames of 100 steps an episode."""
        return len(self.tasks) * self.episodes_per_task * 100 * self.image_size**2 * 3 * len(self.cameras)

    def episodes(self) -> list[tuple[str, int]]:
        """(task, number within the task) in the order they are stored."""
        return [(task, i) for task in self.tasks for i in range(self.episodes_per_task)]


def record_metaworld(recording: MetaworldRecording, folder: Path, workers: int) -> Path:
    """The folder of the finished recording under `folder`; recorded now if it is not there yet.

    Another process that asks for the same recording meanwhile waits for it.
    """
    final = folder / recording.name
    if (final / RECORD).is_file():
        return final
    with writing(final, recording.room):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{recording.name}.lock"):
            if not (final / RECORD).is_file():
                _record(recording, final, max(1, workers))
    return final


def _record(recording: MetaworldRecording, final: Path, workers: int) -> None:
    require_opengl()
    episodes = recording.episodes()
    check_space(final.parent, recording.room, "the recording")  # better to refuse now than to die in the middle
    for stale in final.parent.glob(f".{final.name}-*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = final.parent / f".{final.name}-{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        shards = [list(part) for part in np.array_split(np.arange(len(episodes)), min(workers, len(episodes)))]
        roots = [partial / f"shard{i}" for i in range(len(shards))]
        _record_shards(recording, [[episodes[i] for i in shard] for shard in shards], roots)
        joined = partial / "joined"
        _join(roots, joined)
        write_json(joined / RECORD, asdict(recording) | {"sha256": sha256_of_all(joined)})
        os.replace(joined, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record_shards(recording: MetaworldRecording, shards: list[list[tuple[str, int]]], roots: list[Path]) -> None:
    """One process per shard; an error in any of them stops all of them and is raised here."""
    context = multiprocessing.get_context("spawn")  # a forked child cannot make an OpenGL context of its own
    news: Any = context.Queue()
    processes = [
        context.Process(target=_worker, args=(recording, *work, news), daemon=True)
        for work in zip(shards, roots, strict=True)
    ]
    for process in processes:
        process.start()
    running = len(processes)
    try:
        with progress_bars() as bars:
            bar = bars.add_task("recording", total=sum(map(len, shards)), note="demonstrations")
            while running:
                kind, text = _next_news(news, processes)
                if kind == "error":
                    raise ValueError(text)
                running -= kind == "done"
                bars.advance(bar, kind == "episode")
    finally:
        for process in processes:
            process.terminate()
            process.join()
        news.close()


def _next_news(news: Any, processes: list[Any]) -> tuple[str, str]:
    while True:
        try:
            message: tuple[str, str] = news.get(timeout=1.0)
            return message
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in processes):
                return (
                    "error",
                    "recording stopped, nothing was kept: a process was killed (out of memory? see dataset.workers)",
                )


def _worker(recording: MetaworldRecording, episodes: list[tuple[str, int]], root: Path, news: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the recording ends its workers
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's rasteriser: one process per core already
    _hush()
    try:
        _record_shard(recording, episodes, root, news)
        news.put(("done", ""))
    except ValueError as error:
        news.put(("error", str(error)))
    except OSError as error:
        news.put(("error", f"recording stopped, nothing was kept: {error}"))
    except BaseException:
        news.put(("error", f"recording stopped, nothing was kept:\n{traceback.format_exc()}"))


def _hush() -> None:
    """libav and x264 write pages to the process's own stderr, past Python; what goes wrong is raised as exceptions."""
    logging.disable(logging.WARNING)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _record_shard(recording: MetaworldRecording, episodes: list[tuple[str, int]], root: Path, news: Any) -> None:
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    size = recording.image_size
    features: dict[str, dict[str, Any]] = {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": (size, size, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in recording.cameras
    }
    features["observation.state"] = {"dtype": "float32", "shape": (4,), "names": list(METAWORLD_JOINTS)}
    features["action"] = {"dtype": "float32", "shape": (4,), "names": list(METAWORLD_JOINTS)}
    dataset = LeRobotDataset.create(
        REPO_ID,
        fps=METAWORLD_FPS,
        features=features,
        root=root,
        robot_type="sawyer",
        streaming_encoding=True,
        encoder_threads=1,
        encoder_queue_maxsize=MAX_STEPS,
        video_backend="pyav",
        # Full colour resolution and a low crf: a window's handle is two pixels wide in these pictures.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", g=8, crf=recording.crf, preset="veryfast"),
    )
    env: MetaworldEnv | None = None
    for task, number in episodes:
        if env is None or env.task != task:
            if env is not None:
                env.close()
            env = MetaworldEnv(task, recording.cameras, size)
        _demonstrate(recording, env, number, dataset)
        news.put(("episode", task))
    if env is not None:
        env.close()
    dataset.finalize()


def _demonstrate(recording: MetaworldRecording, env: MetaworldEnv, number: int, dataset: Any) -> None:
    """Adds one successful episode. Its randomness depends on the recording's seed, the task and the number alone."""
    expert, keep = MetaworldExpert(env.task), recording.noise_correlation
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([recording.seed, *env.task.encode(), number, attempt])
        state, _ = env.reset(seed=int(rng.integers(2**31)))
        wander = np.zeros(4)
        for _ in range(MAX_STEPS):
            action = expert(env)
            frame: dict[str, Any] = {"observation.state": state, "action": action, "task": env.instruction}
            for camera, image in zip(env.cameras, env.images(), strict=True):
                frame[f"observation.images.{camera}"] = image
            dataset.add_frame(frame)
            wander = keep * wander + (1 - keep**2) ** 0.5 * rng.normal(0, recording.noise, 4)
            state, _, success, _, _ = env.step(action + wander)
            if success:
                dataset.save_episode()
                return
        dataset.clear_episode_buffer()
    raise ValueError(
        f"the expert of {env.task} failed {MAX_ATTEMPTS} times in a row with dataset.noise={recording.noise}; lower "
        "the noise or leave the task out"
    )


def _join(roots: list[Path], joined: Path) -> None:
    """Joins the shards in a process of its own, for the sake of `_hush`."""
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    process = context.Process(target=_aggregate, args=(roots, joined, news))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        why = f"exit code {process.exitcode}" if news.empty() else news.get()
        raise ValueError(f"joining the recorded shards failed ({why}); nothing was kept")


def _aggregate(roots: list[Path], joined: Path, news: Any) -> None:
    _hush()
    from lerobot.datasets.aggregate import aggregate_datasets

    try:
        aggregate_datasets([REPO_ID] * len(roots), REPO_ID, roots=roots, aggr_root=joined)
    except Exception as error:
        news.put(f"{type(error).__name__}: {error}")
        sys.exit(1)
