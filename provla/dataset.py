"""Data sets: demonstrations as contiguous arrays, from any LeRobot v3 data set (recorded here, on disk, or on the Hub)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray

from provla.cache import Frames
from provla.checks import Count, Depth, Edge, Extent, Fraction, Name, Names, NonNegative, Seed, Steps, Width
from provla.checksums import Checksums
from provla.demonstrations import MetaworldRecording, record_metaworld
from provla.hub import guarded
from provla.inspection import Inspection, files, report
from provla.lerobot_format import Camera, Info, Problem, read_info
from provla.progress import console
from provla.types import Batch, JointGroups, Observation, joint_groups_of
from provla.verify import read_contents

Array = NDArray[Any]


@dataclass(frozen=True)
class Demonstrations:
    """Whole data set as arrays; row i is one control step.

    frames: camera → (N,3,h,w) uint8; state (N,S), actions (N,A) float32; starts (E+1,): episode e is rows
    starts[e] … starts[e+1]-1; task (E,): index into `instructions` of each episode's first row; row_task (N,): of each row, None where
    no episode changes its task. skipped: what is wrong with the episodes that were left out.
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
    row_task: Array | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def image_size(self) -> tuple[int, int]:
        h, w = next(iter(self.frames.values())).shape[-2:]
        return int(h), int(w)

    def rows(self, episodes: Array) -> Array:
        """All rows of the given episodes, in order."""
        return np.concatenate([np.arange(0), *(np.arange(self.starts[e], self.starts[e + 1]) for e in episodes)])

    def split(self, val_fraction: float, seed: int) -> tuple[Array, Array]:
        """Training and validation episodes, sorted. Whole episodes, stratified by task: at least one of every task that has two."""
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
        self._instruction = np.array(data.instructions, dtype=object)[data.task[owner] if data.row_task is None else data.row_task]
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
            self._epoch = (seed, epoch), np.random.default_rng([seed, epoch, 0]).permutation(self.rows)
        return self._epoch[1]


class LeRobotSource:
    """`dataset=lerobot`: any LeRobot v3 data set, by `root` (a folder) and/or `repo_id` (a Hub id).

    cameras: names of image features, with or without their `observation.images.` prefix; null: all colour cameras. state_key and
    action_key name the features. image_size: [h, w] to which frames are reduced in the cache; null: as recorded. joint_groups: group →
    names of joints (of the action feature); each: one group a joint; null: none. num_episodes: the first n; null: all. bad_episodes: fail, or skip
    to leave out those with which something is wrong.
    """

    def __init__(
        self,
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        repo_id: Name | None = None,
        root: Name | None = None,
        revision: Name | None = None,
        cameras: Names | None = None,
        state_key: Name = "observation.state",
        action_key: Name = "action",
        image_size: Extent | None = None,
        joint_groups: JointGroups = None,
        num_episodes: Count | None = None,
        bad_episodes: Literal["fail", "skip"] = "fail",
    ) -> None:
        if root is None and repo_id is None:
            raise ValueError("the data set has no source: give dataset.root=<folder> and/or dataset.repo_id=<Hub id>")
        if bad_episodes not in ("fail", "skip"):
            raise ValueError(f"dataset.bad_episodes={bad_episodes!r}; valid: fail, skip")
        self.data_dir = Path(data_dir).expanduser()
        self.repo_id, self.root, self.revision = repo_id, None if root is None else Path(root).expanduser(), revision
        self.wanted, self.state_key, self.action_key = cameras, state_key, action_key
        self.image_size = None if image_size is None else (image_size[0], image_size[1])
        self.groups, self.num_episodes, self.bad_episodes = joint_groups, num_episodes, bad_episodes
        self.val_fraction, self.split_seed = val_fraction, split_seed

    def load(self) -> Demonstrations:
        """Everything but the pixels in memory; frames decoded now if they are not cached.

        All is checked when it is read first, and again where a file has changed. Errors: `ValueError` that names file, episode and frame.
        """
        found = self.inspect()
        for line in found.notes:
            console.print(line)
        whole = [problem for problem in found.problems if problem.episode is None]
        if found.problems and (whole or not found.episodes or self.bad_episodes == "fail"):
            raise ValueError(report(found, whole if self.bad_episodes == "skip" else []))
        if found.problems:
            console.print(f"{len(found.bad)} of {len(found.bad) + len(found.episodes)} episodes of {found.source} are left out (dataset.bad_episodes=skip):")
            for problem in found.problems:
                console.print(f"  {problem}")
        return self._demonstrations(found)

    def inspect(self, fresh: bool = False, thorough: bool = False) -> Inspection:
        """Reads and checks everything; what is wrong stands in the answer. `ValueError` where the data set cannot be made out at all.

        fresh: read every file again, the frame cache too. thorough: look for more where something is wrong already.
        """
        root = self._folder()
        info = read_info(root)
        cameras, notes = self._cameras(info)
        self._check_vectors(info)
        self._check_sizes(cameras)
        contents = read_contents(info, [self.state_key, self.action_key], cameras)
        total = len(contents.starts) - 1
        if self.num_episodes is not None and not 1 <= self.num_episodes <= total:
            raise ValueError(f"dataset.num_episodes={self.num_episodes}: {root} holds {total}")
        count = total if self.num_episodes is None else self.num_episodes
        sums = Checksums(root, self.data_dir / "checked", files(contents, cameras), fresh)
        problems = [p for p in contents.problems if p.episode is None or p.episode < count]
        failed = bool(problems) and self.bad_episodes == "fail" and not thorough
        problems = [Problem(name, None, None, why) for name, why in sums.wrong.items()] + problems
        found = Inspection(contents, cameras, [], problems, {}, [*notes, *contents.notes], [], sums)
        while not failed:
            found.episodes = [e for e in range(count) if e not in found.bad]
            worse = found.decode(self.data_dir / "frames", self.image_size, fresh) if found.episodes else []
            problems += worse
            failed = not worse or self.bad_episodes == "fail"
        sums.remember()
        return found

    def _demonstrations(self, found: Inspection) -> Demonstrations:
        contents, info = found.contents, found.contents.info
        lengths = np.diff(contents.starts)[found.episodes]
        rows = np.concatenate([np.arange(contents.starts[e], contents.starts[e + 1]) for e in found.episodes])
        used = list(dict.fromkeys(contents.task[rows].tolist()))  # in the order in which they come up
        position = np.zeros(len(contents.instructions), dtype=np.int64)
        position[used] = np.arange(len(used))
        starts, row_task = np.concatenate([[0], np.cumsum(lengths)]), position[contents.task[rows]]
        names, _ = info.names(self.action_key)
        return Demonstrations(
            frames=found.frames,
            state=contents.vectors[self.state_key][rows],
            actions=contents.vectors[self.action_key][rows],
            starts=starts,
            task=row_task[starts[:-1]],
            instructions=[contents.instructions[i] for i in used],
            joint_names=names,
            joint_groups=joint_groups_of(names, self.groups),
            fps=info.fps,
            source=found.source,
            row_task=row_task,
            skipped=[str(problem) for problem in found.problems],
        )

    def _folder(self) -> Path:
        """The data set's folder, fetched from the Hub where no root is given."""
        if self.root is not None:
            return self.root
        from huggingface_hub import snapshot_download

        repo_id = self.repo_id
        assert repo_id is not None
        return Path(guarded(lambda: snapshot_download(repo_id, repo_type="dataset", revision=self.revision), repo_id, "dataset.repo_id"))

    def _cameras(self, info: Info) -> tuple[list[Camera], list[str]]:
        """The cameras that are wanted, and a line for each that is not taken or whose joints have no names."""
        found, others = info.cameras()
        wanted = list(found) if self.wanted is None else [c.removeprefix("observation.images.") for c in self.wanted]
        missing = [camera for camera in wanted if camera not in found]
        valid = f"it has: {', '.join(found) or 'none'}"
        if missing and missing[0] in others:
            raise ValueError(f"dataset.cameras={list(self.wanted or [])}: the camera {missing[0]!r} {others[missing[0]]}; {valid}")
        if missing or not wanted:
            none = "" if missing else "; ".join(f"{name!r} {why}" for name, why in others.items())
            raise ValueError(
                f"dataset.cameras={list(self.wanted or [])}: no camera {missing[0] if missing else ''!r} in this data set; {valid}{none and f' ({none})'}"
            )
        unclear = [f"{name!r} {why}" for name, why in others.items() if "leave open" in why]
        if unclear and self.wanted is None:
            raise ValueError(
                f"{info.root}/meta/info.json: the camera {unclear[0]}; name them channels, height, width, "
                f"or choose among dataset.cameras: {', '.join(found) or 'none'}"
            )
        left = [] if self.wanted is not None else [f"the camera {name!r} is left out: it {why}" for name, why in others.items()]
        return [found[name] for name in dict.fromkeys(wanted)], [
            *left,
            *filter(None, [info.names(self.action_key)[1] if self.action_key in info.vectors() else ""]),
        ]

    def _check_vectors(self, info: Info) -> None:
        vectors = info.vectors()
        for option, key in (("state_key", self.state_key), ("action_key", self.action_key)):
            if key not in vectors:
                raise ValueError(f"dataset.{option}={key!r} is not a vector of this data set; it has: {', '.join(vectors) or 'none'}")
            info.shape(key)

    def _check_sizes(self, cameras: list[Camera]) -> None:
        if self.image_size is None and len({camera.size for camera in cameras}) > 1:
            found = ", ".join(f"{camera.name} {camera.size[0]}×{camera.size[1]}" for camera in cameras)
            raise ValueError(f"the cameras differ in size: {found}; set dataset.image_size=[h,w] to bring them to one, or choose among dataset.cameras")


class MetaworldSource(LeRobotSource):
    """`dataset=metaworld`: demonstrations of scripted experts, recorded on first use and found again by their parameters."""

    def __init__(
        self,
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        tasks: Names,
        episodes_per_task: Count,
        cameras: Names,
        image_size: Edge,
        seed: Seed,
        noise: NonNegative,
        noise_correlation: Fraction,
        crf: Annotated[int, Ge(0), Le(51)],
        workers: Depth,
        joint_groups: JointGroups = None,
        bad_episodes: Literal["fail", "skip"] = "fail",
    ) -> None:
        self.recording = MetaworldRecording(tuple(tasks), episodes_per_task, tuple(cameras), image_size, seed, noise, noise_correlation, crf)
        self.workers = workers
        folder = Path(data_dir).expanduser() / "datasets" / self.recording.name
        super().__init__(data_dir, val_fraction, split_seed, root=str(folder), cameras=cameras, joint_groups=joint_groups, bad_episodes=bad_episodes)

    def inspect(self, fresh: bool = False, thorough: bool = False) -> Inspection:
        self.record()
        return super().inspect(fresh, thorough)

    def record(self) -> Path:
        """The folder of the recording, made now if there is none."""
        return record_metaworld(self.recording, self.data_dir / "datasets", self.workers)


class FakeSource:
    """`dataset=fake`: random pixels and smooth random motions that depend on the instruction, in memory; for tests."""

    def __init__(
        self,
        val_fraction: Fraction,
        split_seed: Seed,
        episodes: Steps,
        length: Steps,
        image_size: Edge,
        cameras: Names,
        state_size: Width,
        action_size: Width,
        seed: Seed,
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
