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
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from provla.core.claims import claimed
from provla.core.files import check_space, fingerprint, write_json, writing
from provla.core.films import REPEATS
from provla.core.progress import progress_bars
from provla.core.world import Embodiment
from provla.dataset.checksums import RECORD, sha256_of_all
from provla.env.chunk import check_picture, check_state, close, over, solved

MAX_ATTEMPTS = 20  # failed demonstrations in a row before the recording gives up


class Recording(ABC):
    """Everything that decides what a recording contains; `name` is its identity on disk. A dataclass of plain values,
    because it is sent to the recording processes.

    noise: standard deviation of the Gaussian added to the executed action, in the action's units; the recorded action
    is the expert's. noise_correlation: from one control step to the next (AR(1)); correlated noise carries the robot
    further off its path, so that the demonstrations show how to come back. crf: of the video; lower is better.
    """

    episodes_per_task: int
    seed: int
    noise: float
    noise_correlation: float
    crf: int

    kind: ClassVar[str]  # how the names of its folders begin
    robot: ClassVar[str]  # LeRobot's robot_type
    max_steps: int  # control steps after which a demonstration has failed
    success_score: float = 1.0  # see `interfaces.Suite`

    @property
    @abstractmethod
    def embodiment(self) -> Embodiment: ...

    @property
    @abstractmethod
    def sentences(self) -> Mapping[str, str]:
        """Task → its instruction, in the order in which they are recorded."""

    @abstractmethod
    def make(self, task: str) -> Any:
        """A world (see `interfaces.World`) that has an `expert()`."""

    def facts(self) -> dict[str, Any]:
        """What the recording's identity is the hash of."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def check(self) -> None:
        """`ValueError` before anything slow begins."""
        for camera, (h, w) in self.embodiment.cameras.items():
            if min(h, w) < 16 or h % 2 or w % 2:
                raise ValueError(
                    f"the pictures of the camera {camera!r} are {h}×{w}: to be recorded, height and width must be even "
                    "and at least 16 (video encoders need it)"
                )
        if self.embodiment.fps != round(self.embodiment.fps):
            raise ValueError(
                f"{self.embodiment.fps} control steps per second: LeRobot's format knows whole numbers only"
            )

    @property
    def name(self) -> str:
        return f"{self.kind}_{fingerprint(self.facts())}"

    @property
    def repo_id(self) -> str:
        return f"provla/{self.kind}"

    @property
    def room(self) -> int:
        """Bytes that are enough: raw frames of 100 steps an episode."""
        pixels = sum(h * w for h, w in self.embodiment.cameras.values())
        return len(self.sentences) * self.episodes_per_task * 100 * pixels * 3

    def episodes(self) -> list[tuple[str, int]]:
        """(task, number within the task) in the order they are stored."""
        return [(task, i) for task in self.sentences for i in range(self.episodes_per_task)]


def record(recording: Recording, folder: Path, workers: int) -> Path:
    """The folder of the finished recording under `folder`; recorded now if it is not there yet.

    Another process that asks for the same recording meanwhile waits for it.
    """
    final = folder / recording.name
    if (final / RECORD).is_file():
        return final
    with writing(final, recording.room):
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder / f".{recording.name}.claim"):
            if not (final / RECORD).is_file():
                _record(recording, final, max(1, workers))
    return final


def _record(recording: Recording, final: Path, workers: int) -> None:
    recording.check()
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
        _join(roots, joined, recording.repo_id)
        write_json(joined / RECORD, recording.facts() | {"sha256": sha256_of_all(joined)})
        os.replace(joined, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record_shards(recording: Recording, shards: list[list[tuple[str, int]]], roots: list[Path]) -> None:
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
        for process in processes:
            process.join(10)  # stopped at its end, it would leave behind what it was about to tidy, and say so
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


def _worker(recording: Recording, episodes: list[tuple[str, int]], root: Path, news: Any) -> None:
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


def _record_shard(recording: Recording, episodes: list[tuple[str, int]], root: Path, news: Any) -> None:
    dataset = _create(recording, root)
    world, made = None, ""
    for task, number in episodes:
        if world is None or made != task:
            close(world)
            world, made = recording.make(task), task
        _demonstrate(recording, world, task, number, dataset)
        news.put(("episode", task))
    close(world)
    dataset.finalize()


def _create(recording: Recording, root: Path) -> Any:
    """An empty data set by LeRobot's writer."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    body = recording.embodiment
    features: dict[str, dict[str, Any]] = {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": (*size, 3),
            "names": ["height", "width", "channels"],
        }
        for camera, size in body.cameras.items()
    }
    for key, vector in (("observation.state", body.state), ("action", body.action)):
        features[key] = {"dtype": "float32", "shape": (len(vector),), "names": list(vector.names)}
    return LeRobotDataset.create(
        recording.repo_id,
        fps=round(body.fps),
        features=features,
        root=root,
        robot_type=recording.robot,
        streaming_encoding=True,
        encoder_threads=1,
        encoder_queue_maxsize=recording.max_steps,
        video_backend="pyav",
        # Full colour resolution and a low crf: a window's handle is two pixels wide in these pictures.
        rgb_encoder=RGBEncoderConfig(
            vcodec="h264", pix_fmt="yuv444p", g=8, crf=recording.crf, preset="veryfast", extra_options=dict(REPEATS)
        ),
    )


def _demonstrate(recording: Recording, world: Any, task: str, number: int, dataset: Any) -> None:
    """Adds one successful episode. Its randomness depends on the recording's seed, the task and the number alone."""
    body, keep, size = world.embodiment, recording.noise_correlation, len(world.embodiment.action)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([recording.seed, *task.encode(), number, attempt])
        world.reset(int(rng.integers(2**31)))
        wander = np.zeros(size)
        for _ in range(recording.max_steps):
            action = _ask(world)
            frame: dict[str, Any] = {
                "observation.state": check_state(world.state(), body),
                "action": action,
                "task": recording.sentences[task],
            }
            pictures = world.images()
            for camera in body.cameras:
                check_picture(pictures, camera, body)
                frame[f"observation.images.{camera}"] = pictures[camera]
            dataset.add_frame(frame)
            wander = keep * wander + (1 - keep**2) ** 0.5 * rng.normal(0, recording.noise, size)
            world.step(body.action.clip(action + wander))
            if solved(world, recording.success_score):
                dataset.save_episode()
                return
            if over(world):
                break
        _forget(dataset)
    raise ValueError(
        f"the expert of {task} failed {MAX_ATTEMPTS} times in a row with dataset.noise={recording.noise}, within "
        f"{recording.max_steps} steps each; lower the noise or leave the task out"
    )


def _forget(dataset: Any) -> None:
    """Drops the episode. LeRobot's encoders look only once a second whether they are to stop; `None` ends them."""
    encoder = getattr(getattr(dataset, "writer", None), "_streaming_encoder", None)
    for waiting in getattr(encoder, "_frame_queues", {}).values():
        with suppress(queue.Full):
            waiting.put(None, timeout=1)
    dataset.clear_episode_buffer()


def _ask(world: Any) -> Any:
    """The expert's action, (A,) float32 within its bounds."""
    body, action = world.embodiment, np.asarray(world.expert(), dtype=np.float32)
    if action.shape != (len(body.action),) or not np.isfinite(action).all():
        raise ValueError(f"the expert's action is {action}, expected {len(body.action)} finite numbers")
    return body.action.clip(action).astype(np.float32)


def _join(roots: list[Path], joined: Path, repo_id: str) -> None:
    """Joins the shards in a process of its own, for the sake of `_hush`."""
    context = multiprocessing.get_context("spawn")
    news = context.SimpleQueue()
    process = context.Process(target=_aggregate, args=(roots, joined, repo_id, news))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        why = f"exit code {process.exitcode}" if news.empty() else news.get()
        raise ValueError(f"joining the recorded shards failed ({why}); nothing was kept")


def _aggregate(roots: list[Path], joined: Path, repo_id: str, news: Any) -> None:
    _hush()
    from lerobot.datasets.aggregate import aggregate_datasets

    try:
        aggregate_datasets([repo_id] * len(roots), repo_id, roots=roots, aggr_root=joined)
    except Exception as error:
        news.put(f"{type(error).__name__}: {error}")
        sys.exit(1)
