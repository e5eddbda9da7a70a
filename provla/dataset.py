"""Data sets: demonstrations as contiguous arrays, from any LeRobot v3 data set (recorded here, on disk, or on the Hub)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from provla.cache import Frames, VideoSpan, frame_cache
from provla.demonstrations import MetaworldRecording, record_metaworld
from provla.hub import guarded
from provla.types import Batch, JointGroups, Observation, joint_groups_of

Array = NDArray[Any]


@dataclass(frozen=True)
class Demonstrations:
    """Whole data set as arrays; row i is one control step.

    frames: camera → (N,3,h,w) uint8; state (N,S), actions (N,A) float32; starts (E+1,): episode e is rows
    starts[e] … starts[e+1]-1; task (E,): index into `instructions` of each episode.
    """

    frames: Mapping[str, Frames]
    state: Array
    actions: Array
    starts: Array
    task: Array
    instructions: list[str]
    joint_names: list[str]
    joint_groups: dict[str, list[int]]
    fps: float
    source: str

    @property
    def image_size(self) -> tuple[int, int]:
        h, w = next(iter(self.frames.values())).shape[-2:]
        return int(h), int(w)

    def rows(self, episodes: Array) -> Array:
        """All rows of the given episodes, in order."""
        return np.concatenate([np.arange(self.starts[e], self.starts[e + 1]) for e in episodes])

    def split(self, val_fraction: float, seed: int) -> tuple[Array, Array]:
        """Training and validation episodes, sorted. Whole episodes, stratified by task: at least one of every task that has two."""
        if not 0 <= val_fraction < 1:
            raise ValueError(f"dataset.val_fraction={val_fraction}: must lie in [0, 1)")
        val: list[int] = []
        for task in range(len(self.instructions)):
            episodes = np.flatnonzero(self.task == task)
            count = min(max(1, round(val_fraction * len(episodes))), len(episodes) - 1) if val_fraction else 0
            val.extend(np.random.default_rng([seed, task]).permutation(episodes)[: max(count, 0)])
        chosen = np.array(sorted(val), dtype=np.int64)
        return np.setdiff1d(np.arange(len(self.task)), chosen), chosen


class Sampler:
    """Gathers batches from `Demonstrations`: frames from the memory-mapped cache, chunks from one contiguous array.

    Which rows a step trains on is a pure function of (seed, step): an epoch is a permutation, the rest of an epoch that
    fills no batch is left out.
    """

    def __init__(self, data: Demonstrations, episodes: Array, cameras: Sequence[str], horizon: int, n_obs_steps: int) -> None:
        self.data, self.rows = data, data.rows(episodes)
        self._frames = [data.frames[camera] for camera in cameras]
        owner = np.repeat(np.arange(len(data.task)), np.diff(data.starts))
        self._first, self._last = data.starts[owner], data.starts[owner + 1] - 1
        self._instruction = np.array(data.instructions, dtype=object)[data.task[owner]]
        self._ahead, self._behind = np.arange(horizon), np.arange(1 - n_obs_steps, 1)
        self._epoch: tuple[tuple[int, int], Array] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, rows: Array) -> Batch:
        """The samples at these rows of the data set. The first frame of an episode is repeated before its start, the last
        action after its end (where `is_pad`)."""
        ahead = rows[:, None] + self._ahead  # (B, H)
        last = self._last[rows][:, None]
        behind = np.maximum(rows[:, None] + self._behind, self._first[rows][:, None])  # (B, T)
        images = np.stack([frames[behind] for frames in self._frames], 2) if len(self._frames) > 1 else self._frames[0][behind][:, :, None]
        return Batch(
            Observation(torch.from_numpy(images), torch.from_numpy(self.data.state[behind]), list(self._instruction[rows])),
            torch.from_numpy(self.data.actions[np.minimum(ahead, last)]),
            torch.from_numpy(ahead > last),
        )

    def rows_at(self, seed: int, step: int, size: int) -> Array:
        """The rows of the data set that a training step sees."""
        per_epoch = max(1, len(self.rows) // size)
        return self._order(seed, step // per_epoch, size)[(step % per_epoch) * size :][:size]

    def step(self, seed: int, step: int, size: int) -> Batch:
        """The batch of a training step, with its random draws (see `Batch`)."""
        batch = self.gather(self.rows_at(seed, step, size))
        rng = np.random.default_rng([seed, step, 1])
        return Batch(
            batch.observation,
            batch.actions,
            batch.is_pad,
            noise=torch.from_numpy(rng.standard_normal(tuple(batch.actions.shape), dtype=np.float32)),
            time=torch.from_numpy(rng.random(size, dtype=np.float32)),
            crop=torch.from_numpy(rng.random((size, 2), dtype=np.float32)),
            color=torch.from_numpy(rng.random((size, 2), dtype=np.float32)),
            key=torch.from_numpy(rng.integers(2**63, size=size)),
        )

    def _order(self, seed: int, epoch: int, size: int) -> Array:
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            order = np.random.default_rng([seed, epoch, 0]).permutation(self.rows)
            self._epoch = (seed, epoch), np.resize(order, max(size, len(order)))  # fewer samples than a batch: repeat them
        return self._epoch[1]


class LeRobotSource:
    """`dataset=lerobot`: any LeRobot v3 data set, by `root` (a folder) and/or `repo_id` (a Hub id).

    cameras: names of image features, with or without their `observation.images.` prefix; null: all. state_key and
    action_key name the features. image_size: [h, w] to which frames are reduced in the cache; null: as recorded.
    joint_groups: group → names of joints (of the action feature); each: one group a joint; null: none. num_episodes: the first n; null: all.
    """

    def __init__(
        self,
        data_dir: str,
        val_fraction: float,
        split_seed: int,
        repo_id: str | None = None,
        root: str | None = None,
        revision: str | None = None,
        cameras: Sequence[str] | None = None,
        state_key: str = "observation.state",
        action_key: str = "action",
        image_size: Sequence[int] | None = None,
        joint_groups: JointGroups = None,
        num_episodes: int | None = None,
    ) -> None:
        if root is None and repo_id is None:
            raise ValueError("the data set has no source: give dataset.root=<folder> and/or dataset.repo_id=<Hub id>")
        self.data_dir = Path(data_dir).expanduser()
        self.repo_id, self.root, self.revision = repo_id, None if root is None else Path(root).expanduser(), revision
        self.wanted, self.state_key, self.action_key = cameras, state_key, action_key
        self.image_size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
        self.groups, self.num_episodes = joint_groups, num_episodes
        self.val_fraction, self.split_seed = val_fraction, split_seed

    def load(self) -> Demonstrations:
        """Everything but the pixels in memory; frames decoded now if they are not cached. Errors: `ValueError`."""
        root = self._folder()
        info = read_info(root)
        cameras = self._cameras(info)
        self._check_vectors(info)
        table, episodes = _read_tables(root, info, [self.state_key, self.action_key])
        if self.num_episodes is not None:
            if not 1 <= self.num_episodes <= len(episodes):
                raise ValueError(f"dataset.num_episodes={self.num_episodes}: {root} holds {len(episodes)}")
            episodes = episodes.iloc[: self.num_episodes]
        lengths = episodes["length"].to_numpy()
        starts = np.concatenate([[0], np.cumsum(lengths)])
        table = table.iloc[: starts[-1]]
        instructions = list(dict.fromkeys(tasks[0] for tasks in episodes["tasks"]))
        names = _names(info, self.action_key)
        self._check_sizes(info, cameras)
        return Demonstrations(
            frames={camera: self._frames(root, info, camera, episodes, starts) for camera in cameras},
            state=_column(table, self.state_key),
            actions=_column(table, self.action_key),
            starts=starts,
            task=np.array([instructions.index(tasks[0]) for tasks in episodes["tasks"]]),
            instructions=instructions,
            joint_names=names,
            joint_groups=joint_groups_of(names, self.groups),
            fps=float(info["fps"]),
            source=str(root),
        )

    def _folder(self) -> Path:
        """The data set's folder, fetched from the Hub where no root is given."""
        if self.root is not None:
            return self.root
        from huggingface_hub import snapshot_download

        repo_id = self.repo_id
        assert repo_id is not None
        return Path(guarded(lambda: snapshot_download(repo_id, repo_type="dataset", revision=self.revision), repo_id, "dataset.repo_id"))

    def _cameras(self, info: dict[str, Any]) -> list[str]:
        found = [key.removeprefix("observation.images.") for key, f in info["features"].items() if f["dtype"] == "video"]
        wanted = found if self.wanted is None else [c.removeprefix("observation.images.") for c in self.wanted]
        missing = [camera for camera in wanted if camera not in found]
        if missing or not wanted:
            raise ValueError(
                f"dataset.cameras={list(self.wanted or [])}: no camera {missing[0] if missing else ''!r} in this data set; it has: {', '.join(found) or 'none'}"
            )
        return wanted

    def _check_vectors(self, info: dict[str, Any]) -> None:
        for option, key in (("state_key", self.state_key), ("action_key", self.action_key)):
            vectors = [k for k, f in info["features"].items() if f["dtype"].startswith("float") and len(f["shape"]) == 1 and k != "timestamp"]
            if key not in vectors:
                raise ValueError(f"dataset.{option}={key!r} is not a vector of this data set; it has: {', '.join(vectors) or 'none'}")

    def _check_sizes(self, info: dict[str, Any], cameras: list[str]) -> None:
        sizes = {camera: _image_size(info, camera) for camera in cameras}
        if self.image_size is None and len(set(sizes.values())) > 1:
            found = ", ".join(f"{camera} {h}×{w}" for camera, (h, w) in sizes.items())
            raise ValueError(f"the cameras differ in size: {found}; set dataset.image_size=[h,w] to bring them to one, or choose among dataset.cameras")

    def _frames(self, root: Path, info: dict[str, Any], camera: str, episodes: Any, starts: Array) -> Frames:
        key = _camera_key(info, camera)
        spans = [
            VideoSpan(
                file=root
                / info["video_path"].format(video_key=key, chunk_index=episode[f"videos/{key}/chunk_index"], file_index=episode[f"videos/{key}/file_index"]),
                first=round(episode[f"videos/{key}/from_timestamp"] * info["fps"]),
                length=int(episode["length"]),
                row=int(row),
            )
            for (_, episode), row in zip(episodes.iterrows(), starts[:-1], strict=True)
        ]
        folder = self.data_dir / "frames" / _identity(root, spans)
        return frame_cache(folder, camera, spans, self.image_size or _image_size(info, camera))


class MetaworldSource(LeRobotSource):
    """`dataset=metaworld`: demonstrations of scripted experts, recorded on first use and found again by their parameters."""

    def __init__(
        self,
        data_dir: str,
        val_fraction: float,
        split_seed: int,
        tasks: Sequence[str],
        episodes_per_task: int,
        cameras: Sequence[str],
        image_size: int,
        seed: int,
        noise: float,
        noise_correlation: float,
        crf: int,
        workers: int,
        joint_groups: JointGroups = None,
    ) -> None:
        self.recording = MetaworldRecording(tuple(tasks), episodes_per_task, tuple(cameras), image_size, seed, noise, noise_correlation, crf)
        self.workers = workers
        folder = Path(data_dir).expanduser() / "datasets" / self.recording.name
        super().__init__(data_dir, val_fraction, split_seed, root=str(folder), cameras=cameras, joint_groups=joint_groups)

    def load(self) -> Demonstrations:
        self.record()
        return super().load()

    def record(self) -> Path:
        """The folder of the recording, made now if there is none."""
        return record_metaworld(self.recording, self.data_dir / "datasets", self.workers)


class FakeSource:
    """`dataset=fake`: random pixels and smooth random motions that depend on the instruction, in memory; for tests."""

    def __init__(
        self,
        val_fraction: float,
        split_seed: int,
        episodes: int,
        length: int,
        image_size: int,
        cameras: Sequence[str],
        state_size: int,
        action_size: int,
        seed: int,
        joint_groups: JointGroups = None,
    ) -> None:
        self.val_fraction, self.split_seed, self._groups = val_fraction, split_seed, joint_groups
        self._shape = episodes, length, image_size, list(cameras), state_size, action_size, seed

    def load(self) -> Demonstrations:
        episodes, length, size, cameras, state_size, action_size, seed = self._shape
        rng = np.random.default_rng(seed)
        instructions = ["Reach left", "Reach right"]
        task = np.arange(episodes) % 2
        time = np.linspace(0, np.pi, length)[:, None]
        phase = rng.uniform(0, 1, (episodes, 1, action_size)) + task[:, None, None]
        actions = np.sin(time + phase).reshape(-1, action_size).astype(np.float32)
        names = [f"joint{i}" for i in range(action_size)]
        return Demonstrations(
            frames={camera: rng.integers(0, 256, (episodes * length, 3, size, size), dtype=np.uint8) for camera in cameras},
            state=np.resize(np.cos(time + phase), (episodes, length, state_size)).reshape(-1, state_size).astype(np.float32),
            actions=actions,
            starts=np.arange(episodes + 1) * length,
            task=task,
            instructions=instructions,
            joint_names=names,
            joint_groups=joint_groups_of(names, self._groups),
            fps=10.0,
            source="fake",
        )


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json` of a LeRobot v3 data set; `ValueError` for a folder that is missing or of another schema."""
    if not root.is_dir():
        raise ValueError(f"dataset.root={str(root)!r}: no such folder")
    try:
        info: dict[str, Any] = json.loads((root / "meta" / "info.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"dataset.root={str(root)!r} is not a LeRobot data set: it has no meta/info.json") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{root}/meta/info.json is damaged: {error}") from error
    version = str(info.get("codebase_version"))
    if not version.startswith("v3"):
        raise ValueError(
            f"dataset.root={str(root)!r} has schema {version}, provla reads v3; convert it with LeRobot: "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<id>"
        )
    missing = [key for key in ("fps", "features", "total_frames", "total_episodes", "video_path") if key not in info]
    if missing:
        raise ValueError(f"{root}/meta/info.json has no {missing[0]!r}: not a LeRobot v3 data set with videos")
    return info


def _read_tables(root: Path, info: dict[str, Any], columns: list[str]) -> tuple[Any, Any]:
    """The rows of the data files with the given columns, and the table of episodes, both as pandas frames in order."""
    import pandas as pd
    from pyarrow import ArrowException

    def read(folder: str, columns: list[str] | None) -> Any:
        files = sorted((root / folder).rglob("*.parquet"))
        if not files:
            raise ValueError(f"{root}/{folder} holds no parquet file: the data set is incomplete")
        try:
            return pd.concat([pd.read_parquet(file, columns=columns) for file in files], ignore_index=True)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{root}/{folder} cannot be read, it is truncated or damaged: {error}") from error

    table = read("data", ["index", "episode_index", *columns]).sort_values("index", ignore_index=True)
    episodes = read("meta/episodes", None).sort_values("episode_index", ignore_index=True)
    for what, found, expected in (("frames", len(table), info["total_frames"]), ("episodes", len(episodes), info["total_episodes"])):
        if found != expected:
            raise ValueError(f"{root} is truncated: meta/info.json promises {expected} {what}, the parquet files hold {found}")
    if int(episodes["length"].sum()) != len(table):
        raise ValueError(f"{root} is inconsistent: its episodes are {int(episodes['length'].sum())} frames long, its data {len(table)}")
    return table, episodes


def _column(table: Any, key: str) -> Array:
    """(N,D) float32."""
    values = np.stack(table[key].to_numpy()).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{key} of this data set holds numbers that are not finite, first in row {int(np.flatnonzero(~np.isfinite(values).all(1))[0])}")
    return values


def _camera_key(info: dict[str, Any], camera: str) -> str:
    return camera if camera in info["features"] else f"observation.images.{camera}"


def _image_size(info: dict[str, Any], camera: str) -> tuple[int, int]:
    """(h, w) as recorded; LeRobot data sets store height and width first, or the channels."""
    feature = info["features"][_camera_key(info, camera)]
    h, w = feature["shape"][:2] if feature["names"][0] != "channels" else feature["shape"][1:]
    return int(h), int(w)


def _names(info: dict[str, Any], key: str) -> list[str]:
    """One name per dimension of a vector feature; LeRobot stores a list, or a dictionary with one."""
    size = info["features"][key]["shape"][0]
    names = info["features"][key].get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()))
    return [str(name) for name in names] if names and len(names) == size else [f"{key}_{i}" for i in range(size)]


def _identity(root: Path, spans: list[VideoSpan]) -> str:
    """Name of a data set's cache: changes with its metadata and the size of its videos, not with where it lies."""
    digest = hashlib.sha256((root / "meta" / "info.json").read_bytes())
    for file in sorted({span.file for span in spans}):
        size = file.stat().st_size if file.is_file() else -1
        digest.update(f"{file.relative_to(root)}:{size}".encode())
    digest.update(repr([(span.first, span.length) for span in spans]).encode())
    return f"{root.name}_{digest.hexdigest()[:10]}"
