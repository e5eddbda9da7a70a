"""Demonstrations of scripted experts, recorded on first use."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from provla.core.build import check_node
from provla.core.checks import Count, Depth, Edge, Extents, Fraction, Name, Names, NonNegative, Seed, Steps
from provla.core.types import JointGroups
from provla.core.world import Embodiment
from provla.dataset.inspection import Inspection
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.recording import Recording, record
from provla.env.mujoco import require_opengl
from provla.env.world import Maker


@dataclass(frozen=True)
class WorldRecording(Recording):
    """The scripted expert of a world of somebody's own. source: sha256 of the file its class stands in, so that a world
    that was changed is recorded anew. success_score: see `WorldSuite`.
    """

    world: Mapping[str, Any]
    tasks: Mapping[str, str]
    episodes_per_task: int
    seed: int
    noise: float
    noise_correlation: float
    crf: int
    max_steps: int
    success_score: float
    source: str = field(default="")

    kind: ClassVar[str] = "recorded"
    robot: ClassVar[str] = "provla"

    def __post_init__(self) -> None:
        target, _ = check_node(self.world, "dataset.world", None, ("task",))
        if not hasattr(target, "expert"):
            raise ValueError(
                f"dataset.world: {self.world['_target_']} has no expert(), whose actions would be recorded; give it "
                "one (see provla/core/interfaces.py, World), or train on data from elsewhere (dataset=lerobot)"
            )
        file = inspect.getsourcefile(sys.modules[target.__module__])
        text = Path(file).read_bytes() if file else b""
        object.__setattr__(self, "source", hashlib.sha256(text).hexdigest())

    @cached_property
    def _maker(self) -> Maker:
        return Maker(self.world, tuple(self.tasks))

    @cached_property
    def embodiment(self) -> Embodiment:
        return self._maker.embodiment

    @property
    def sentences(self) -> Mapping[str, str]:
        return self.tasks

    def make(self, task: str) -> Any:
        return self._maker.make(task)


@dataclass(frozen=True)
class ShippedRecording(Recording):
    """The scripted experts of a simulation that comes with provla; see `Recording`. version: counts up when what is
    recorded changes otherwise than by the other fields.
    """

    tasks: tuple[str, ...]
    episodes_per_task: int
    cameras: tuple[str, ...]
    image_size: int
    seed: int
    noise: float
    noise_correlation: float
    crf: int
    version: int = 1

    def __post_init__(self) -> None:
        self.known(self.tasks)
        if self.image_size < 16 or self.image_size % 2:
            raise ValueError(
                f"dataset.image_size={self.image_size}: must be even and at least 16 (video encoders need it)"
            )

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        """The tasks that names stand for; `ValueError` for unknown ones."""
        raise NotImplementedError

    def check(self) -> None:
        super().check()
        require_opengl()


class RecordedSource(LeRobotSource):
    """`dataset=recorded`: demonstrations of the expert of `env`'s world, recorded on first use and found again by
    their parameters, the world's own source included.

    world, tasks, success_score: those of `env`. max_episode_steps: control steps after which a demonstration has
    failed. noise, noise_correlation, crf: see `Recording`.
    image_size: [h, w] to which frames are reduced in the cache, or camera → [h, w]; null: as recorded. workers:
    recording processes.
    """

    def __init__(
        self,
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        world: Mapping[str, Any],
        tasks: Mapping[str, Name],
        episodes_per_task: Count,
        seed: Seed,
        noise: NonNegative,
        noise_correlation: Fraction,
        crf: Annotated[int, Ge(0), Le(51)],
        workers: Depth,
        max_episode_steps: Steps = 300,
        success_score: float = 1.0,
        cameras: Names | None = None,
        image_size: Extents | None = None,
        joint_groups: JointGroups = None,
        bad_episodes: Literal["fail", "skip"] = "fail",
    ) -> None:
        recording = WorldRecording(
            world, tasks, episodes_per_task, seed, noise, noise_correlation, crf, max_episode_steps, success_score
        )
        self._setup(recording, data_dir, val_fraction, split_seed, workers, cameras, joint_groups, bad_episodes)
        self.image_size = image_size

    def _setup(
        self,
        recording: Recording,
        data_dir: str,
        val_fraction: float,
        split_seed: int,
        workers: int,
        cameras: Names | None,
        joint_groups: JointGroups,
        bad_episodes: Literal["fail", "skip"],
    ) -> None:
        self.recording, self.workers = recording, workers
        folder = Path(data_dir).expanduser() / "datasets" / recording.name
        super().__init__(
            data_dir,
            val_fraction,
            split_seed,
            root=str(folder),
            cameras=cameras,
            joint_groups=joint_groups,
            bad_episodes=bad_episodes,
        )

    def inspect(self, fresh: bool = False, thorough: bool = False) -> Inspection:
        self.record()
        return super().inspect(fresh, thorough)

    def record(self) -> Path:
        """The folder of the recording, made now if there is none."""
        return record(self.recording, self.data_dir / "datasets", self.workers)


class ShippedSource(RecordedSource):
    """Demonstrations of a simulation that comes with provla, recorded on first use and found again by their
    parameters. Keys: see `Recording` and `RecordedSource`.
    """

    recording_of: ClassVar[type[ShippedRecording]]

    def __init__(
        self,
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        tasks: Names | Name,
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
        recording = self.recording_of(
            self.recording_of.known(tasks),
            episodes_per_task,
            tuple(cameras),
            image_size,
            seed,
            noise,
            noise_correlation,
            crf,
        )
        self._setup(recording, data_dir, val_fraction, split_seed, workers, cameras, joint_groups, bad_episodes)
