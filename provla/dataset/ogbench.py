"""Demonstrations of OGBench's oracles in its scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from provla.core.world import Embodiment
from provla.dataset.recorded import ShippedRecording, ShippedSource
from provla.env.ogbench import OgbenchScene, ogbench_embodiment, ogbench_instruction, ogbench_tasks, require_ogbench


@dataclass(frozen=True)
class OgbenchRecording(ShippedRecording):
    """OGBench's oracles; see `ShippedRecording`."""

    version: int = 2

    kind: ClassVar[str] = "ogbench_scene"
    robot: ClassVar[str] = "ur5e"
    max_steps = 200  # no field, so no part of its name; the oracles need 17 to 50, and 40 to 90 for two steps

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        return ogbench_tasks(asked, "dataset.tasks")

    @property
    def embodiment(self) -> Embodiment:
        return ogbench_embodiment(self.cameras, self.image_size)

    @property
    def sentences(self) -> dict[str, str]:
        return {task: ogbench_instruction(task) for task in self.tasks}

    def make(self, task: str) -> OgbenchScene:
        return OgbenchScene(task, self.cameras, self.image_size)

    def check(self) -> None:
        require_ogbench()
        super().check()


class OgbenchSource(ShippedSource):
    """`dataset=ogbench_scene`: see `ShippedSource`."""

    recording_of = OgbenchRecording
