"""Demonstrations of Meta-World's scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from provla.core.world import Embodiment
from provla.dataset.recorded import ShippedRecording, ShippedSource
from provla.env.metaworld import MetaworldTask, metaworld_embodiment, metaworld_instruction, metaworld_tasks
from provla.env.twins import MetaworldTwin, twin_tasks


@dataclass(frozen=True)
class MetaworldRecording(ShippedRecording):
    """Meta-World's scripted experts; see `ShippedRecording`."""

    version: int = 2

    kind: ClassVar[str] = "metaworld"
    robot: ClassVar[str] = "sawyer"
    max_steps = 300  # no field, so no part of its name; the experts need about 90 of Meta-World's 500 control steps

    @staticmethod
    def known(asked: str | Sequence[str]) -> tuple[str, ...]:
        return metaworld_tasks(asked, "dataset.tasks")

    @property
    def embodiment(self) -> Embodiment:
        return metaworld_embodiment(self.cameras, self.image_size)

    @property
    def sentences(self) -> dict[str, str]:
        return {task: metaworld_instruction(task) for task in self.tasks}

    def make(self, task: str) -> Any:
        return MetaworldTask(task, self.cameras, self.image_size)


class MetaworldSource(ShippedSource):
    """`dataset=metaworld`: see `ShippedSource`."""

    recording_of = MetaworldRecording


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
