"""What the simulations that come with provla share: how their tasks are named, and their suites."""

# Annotations are objects here: see `suite.py`.
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provla.core.checks import Edge, Name, Names, did_you_mean
from provla.core.world import Embodiment
from provla.env.mujoco import require_opengl
from provla.env.suite import TaskSuite


def named_tasks(
    asked: str | Sequence[str],
    key: str,
    lacks: Callable[[str], str],
    tasks: Sequence[str],
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[str, ...]:
    """The tasks that names of tasks and of groups stand for, in that order. `ValueError` that names the key for unknown
    ones, or for a task that is there twice. lacks: what is said of an unknown name.
    """
    groups = groups or {}
    names = [asked] if isinstance(asked, str) else list(asked)
    valid = ", ".join(tasks) + (f", and the groups {', '.join(groups)}" if groups else "")
    for name in names:
        if name not in tasks and name not in groups:
            hint = did_you_mean(name, [*tasks, *groups])
            raise ValueError(f"{key}={asked}: {lacks(name)}{hint}; valid: {valid}")
    found = [task for name in names for task in groups.get(name, (name,))]
    if twice := [task for task in found if found.count(task) > 1]:
        raise ValueError(f"{key}={asked}: name {twice[0]} once")
    return tuple(found)


@dataclass(kw_only=True, eq=False)
class ShippedSuite(TaskSuite):
    """tasks: names of tasks, or of groups of them. image_size: of the square pictures that a policy sees; video_size:
    of those for people, in pixels. Other keys: see `TaskSuite`.
    """

    tasks: Names | Name
    cameras: Names
    image_size: Edge
    video_size: Edge

    @property
    @abstractmethod
    def embodiment(self) -> Embodiment: ...

    @abstractmethod
    def make(self, task: str) -> Any: ...

    def check(self) -> None:
        """`ValueError` now rather than after the training: is the simulation here, OpenGL, such a camera?"""
        require_opengl()
        world = self.make(self.episodes[0].task)
        world.reset(self.first_seed)
        world.images()
        world.close()


def object_of(task: str) -> str:
    """What a task is about, where its name begins with that: drawer-open."""
    return task.partition("-")[0]
