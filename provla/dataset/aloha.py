"""Demonstrations of two arms in gym-aloha's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from provla.core.world import Embodiment
from provla.dataset.recorded import ShippedRecording, ShippedSource
from provla.env.aloha import SCENES, AlohaTask, aloha_assets, aloha_embodiment, aloha_tasks


@dataclass(frozen=True)
class AlohaRecording(ShippedRecording):
    """The expert of `env.aloha_expert`; see `ShippedRecording`."""

    version: int = 2

    kind: ClassVar[str] = "aloha_sim"
    robot: ClassVar[str] = "aloha"
    max_steps = 300  # no field, so no part of its name; the expert needs 190 to 210

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        return aloha_tasks(asked, "dataset.tasks")

    @property
    def embodiment(self) -> Embodiment:
        return aloha_embodiment(self.cameras, self.image_size)

    @property
    def sentences(self) -> dict[str, str]:
        return {task: SCENES[task].instruction for task in self.tasks}

    def make(self, task: str) -> AlohaTask:
        return AlohaTask(task, self.cameras, self.image_size)

    def check(self) -> None:
        aloha_assets()
        super().check()


class AlohaSource(ShippedSource):
    """`dataset=aloha_sim`: see `ShippedSource`."""

    recording_of = AlohaRecording
