"""Worlds of somebody's own class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from provla.core.build import build, check_node
from provla.core.checks import Count, Depth, Name, Natural, Steps
from provla.core.world import Embodiment
from provla.env.chunk import check_world, close
from provla.env.suite import TaskSuite


@dataclass(kw_only=True, eq=False)
class WorldSuite(TaskSuite):
    """`env=world`, or an option of your own with `defaults: [world]`.

    world: a node whose `_target_` is a class that keeps the contract of `interfaces.World`; a constructor that has a
    parameter `task` is given the task's name. tasks: name → the sentence that a policy is told. success_score: where
    the world has a `score()`, the one from which an episode has succeeded. Other keys: see `TaskSuite`.
    """

    world: Mapping[str, Any]
    tasks: Mapping[str, Name]
    first_seed: Natural = 100_000
    num_envs: Depth = 10
    max_episode_steps: Steps = 200
    videos_per_task: Natural = 3
    video_stride: Count = 4
    success_score: float = 1.0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(
                "env.tasks={}: expected at least one task with its sentence, such as {reach: Reach the dot}"
            )
        super().__post_init__()
        self.maker = Maker(self.world, tuple(self.tasks))

    @property
    def sentences(self) -> Mapping[str, str]:
        return self.tasks

    @cached_property
    def embodiment(self) -> Embodiment:
        return self.maker.embodiment

    def make(self, task: str) -> Any:
        return self.maker.make(task)


class Maker:
    """Makes worlds of the class that a node names. Plain values only: it is sent to other processes."""

    def __init__(self, node: Mapping[str, Any], tasks: tuple[str, ...]) -> None:
        self.node, self.tasks = node, tasks
        found = inspect.signature(check_node(node, "env.world", None, ("task",))[0]).parameters
        self._told = "task" in found
        if len(tasks) > 1 and not self._told:
            raise ValueError(
                f"env.tasks has {len(tasks)} tasks ({', '.join(tasks)}), and the constructor of {node['_target_']} "
                "takes no task; give it one, or name one task"
            )

    def make(self, task: str) -> Any:
        """A world for one task."""
        return build(self.node, "env.world", None, **({"task": task} if self._told else {}))

    @cached_property
    def embodiment(self) -> Embodiment:
        """What the first task's world says. `ValueError` where it is no world, or cannot be made."""
        name = self.node["_target_"]
        try:
            world = self.make(self.tasks[0])
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"env.world: {name} cannot be made: {type(error).__name__}: {error}") from error
        try:
            check_world(world)
        except ValueError as error:
            raise ValueError(f"env.world: {error}") from error
        body: Embodiment = world.embodiment
        close(world)
        return body
