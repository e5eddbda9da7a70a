"""Demonstrations of Meta-World's scripted experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from provla.core.checks import Count, Depth, Edge, Fraction, Name, Names, NonNegative, Seed
from provla.core.types import JointGroups
from provla.core.world import Embodiment
from provla.dataset.recorded import RecordedSource
from provla.dataset.recording import Recording
from provla.env.metaworld import MetaworldTask, metaworld_embodiment, metaworld_instruction, require_opengl


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
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"dataset.tasks={list(self.tasks)}: name each task once")
        if self.image_size < 16 or self.image_size % 2:
            raise ValueError(
                f"dataset.image_size={self.image_size}: must be even and at least 16 (video encoders need it)"
            )
        for task in self.tasks:
            metaworld_instruction(task)

    @property
    def embodiment(self) -> Embodiment:
        return metaworld_embodiment(self.cameras, self.image_size)

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_instruction(task) for task in self.tasks}

    def make(self, task: str) -> Any:
        return MetaworldTask(task, self.cameras, self.image_size)

    def check(self) -> None:
        super().check()
        require_opengl()


class MetaworldSource(RecordedSource):
    """`dataset=metaworld`: demonstrations of scripted experts, recorded on first use and found again by their
    parameters.
    """

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
        recording = MetaworldRecording(
            tuple(tasks), episodes_per_task, tuple(cameras), image_size, seed, noise, noise_correlation, crf
        )
        super()._setup(recording, data_dir, val_fraction, split_seed, workers, cameras, joint_groups, bad_episodes)
