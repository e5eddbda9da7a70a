"""Demonstrations of Meta-World's scripted experts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from provla.core.checks import Count, Depth, Edge, Fraction, Name, Names, NonNegative, Seed
from provla.core.types import JointGroups
from provla.dataset.inspection import Inspection
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.recording import MetaworldRecording, record_metaworld


class MetaworldSource(LeRobotSource):
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
        self.recording = MetaworldRecording(
            tuple(tasks), episodes_per_task, tuple(cameras), image_size, seed, noise, noise_correlation, crf
        )
        self.workers = workers
        folder = Path(data_dir).expanduser() / "datasets" / self.recording.name
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
        return record_metaworld(self.recording, self.data_dir / "datasets", self.workers)
