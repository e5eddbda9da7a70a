"""Demonstrations of Meta-World's scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from provla.core.checks import Count, Depth, Edge, Fraction, Name, Names, NonNegative, Seed
from provla.core.types import JointGroups
from provla.core.world import Embodiment
from provla.dataset.recorded import RecordedSource
from provla.dataset.recording import Recording
from provla.env.metaworld import MetaworldTask, metaworld_embodiment, metaworld_menu, metaworld_tasks
from provla.env.mujoco import require_opengl
from provla.env.twins import MetaworldTwin, twin_tasks


@dataclass(frozen=True)
class MetaworldRecording(Recording):
    """Meta-World's scripted experts; see `Recording`."""

    tasks: tuple[str, ...]
    episodes_per_task: int
    cameras: tuple[str, ...]
    image_size: int
    seed: int
    noise: float
    noise_correlation: float
    crf: int
    version: int = 2

    kind: ClassVar[str] = "metaworld"
    robot: ClassVar[str] = "sawyer"
    max_steps = 300  # no field, so no part of its name; the experts need about 90 of Meta-World's 500 control steps

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 2:
            raise ValueError(
                f"dataset.image_size={self.image_size}: must be even and at least 16 (video encoders need it)"
            )

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        """The tasks that names stand for; `ValueError` for unknown ones."""
        return metaworld_tasks(asked, "dataset.tasks")

    @property
    def embodiment(self) -> Embodiment:
        return metaworld_embodiment(self.cameras, self.image_size)

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_menu()[task]["instruction"] for task in self.tasks}

    def make(self, task: str) -> Any:
        return MetaworldTask(task, self.cameras, self.image_size)

    def check(self) -> None:
        super().check()
        require_opengl()


class MetaworldSource(RecordedSource):
    """`dataset=metaworld`: demonstrations of scripted experts, recorded on first use and found again by their
    parameters.
    """

    recording_of: ClassVar[type[MetaworldRecording]] = MetaworldRecording

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


@dataclass(frozen=True)
class TwinsRecording(MetaworldRecording):
    """The same experts on twins; see `env.twins`."""

    kind: ClassVar[str] = "metaworld_twins"

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        return twin_tasks(asked, "dataset.tasks")

    def make(self, task: str) -> Any:
        return MetaworldTwin(task, self.cameras, self.image_size)


class TwinsSource(MetaworldSource):
    """`dataset=metaworld_twins`: see `MetaworldSource`."""

    recording_of = TwinsRecording
