"""Suites: which episodes are played, and what every suite is asked."""

# Annotations are objects here: the fields of a suite of another module are checked by them (see `core/checks.py`).
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provla.core.checks import Count, Depth, Name, Names, Natural, Positive, Steps
from provla.core.world import Episode
from provla.env.chunk import check_embodiment, gymnasium_hint
from provla.env.perturb import WORDS, check_levels, reworded

# What a suite must have, and what is taken where it does not say it (see `interfaces.Suite`).
NEEDS = ("episodes", "embodiment", "max_episode_steps", "make")
OPTIONS: dict[str, Any] = {
    "num_envs": 10,
    "workers": None,
    "timeout": 120.0,
    "video_stride": 4,
    "success_score": 1.0,
    "perturb": None,
}


def option(suite: Any, name: str) -> Any:
    """What a suite says of one of `OPTIONS`, or what is usual."""
    found = getattr(suite, name, None)
    return OPTIONS[name] if found is None else found


def tasks_of(suite: Any) -> list[str]:
    """The tasks of a suite's episodes, in their order."""
    return list(dict.fromkeys(episode.task for episode in suite.episodes))


def plays(suite: Any) -> bool:
    """Whether there is anything to play; `ValueError` for what is no suite at all."""
    if not hasattr(suite, "episodes"):
        check_suite(suite)
    return bool(suite.episodes)


def check_suite(suite: Any, asked: bool = True) -> None:
    """`ValueError` that names what a suite lacks, or what it says of itself; before anything slow begins. asked: it is
    asked that here, and not where it is rehearsed (see `worlds.rehearsing`).
    """
    # Not hasattr: a property that raises says more.
    missing = [name for name in NEEDS if name not in dir(suite)]
    if missing:
        kind = type(suite).__name__
        world = all(hasattr(suite, name) for name in ("reset", "step", "images"))
        hint = gymnasium_hint(suite) or (
            "; it is a world: env=world 'env.world={_target_: <module>.<class>}' plays it" if world else ""
        )
        raise ValueError(f"env: {kind} has no {', '.join(missing)}; a suite needs {', '.join(NEEDS)}{hint}")
    check_embodiment(suite, "env: ")
    if asked and hasattr(suite, "check"):
        suite.check()


@dataclass(kw_only=True, eq=False)
class TaskSuite:
    """Episodes of several tasks: the same initial states for every policy. What a suite adds are its fields, each with
    its type, and `sentences`.

    episodes_per_task: episodes of seeds first_seed, first_seed + 1, … num_envs: worlds alive at once (at least: every
    task has as many); their observations form one batch. max_episode_steps: control steps until an episode has failed.
    videos_per_task: episodes filmed, with a frame every video_stride control steps. instructions: task → what is said
    instead of its own sentence, or several things to say in turn. timeout: seconds that a world may take to reset or to
    execute a chunk before its episode has failed. workers: processes that the worlds are spread over; null: one per
    thread that torch has. perturb: factor → level (see `perturb`); under one of words, tasks
    of which nothing is known to say are not played. paraphrases: task → other words for the same.
    """

    episodes_per_task: Steps
    first_seed: Natural
    num_envs: Depth
    max_episode_steps: Steps
    videos_per_task: Natural
    video_stride: Count
    instructions: Mapping[str, Name | Names] | None = None
    timeout: Positive = 120.0
    workers: Depth | None = None
    perturb: Mapping[str, Natural] | None = None
    paraphrases: Mapping[str, Names] | None = None

    @property
    def opposites(self) -> Mapping[str, str]:
        """Task → the sentence that asks for its opposite; empty where tasks have none."""
        return {}

    @property
    def objects(self) -> Mapping[str, str]:
        """Task → the object that it is about; empty where nobody knows."""
        return {}

    @property
    def sentences(self) -> Mapping[str, str]:
        """Task → what is said."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        said = {task: [sentence] for task, sentence in self.sentences.items()}
        for task, texts in (self.instructions or {}).items():
            if task not in said or not texts:
                raise ValueError(
                    f"env.instructions.{task}={texts!r}: expected sentences for one of env.tasks: {', '.join(said)}"
                )
            said[task] = [texts] if isinstance(texts, str) else list(texts)
        check_levels(self.perturb or {}, "env.perturb")
        for factor in (name for name in WORDS if (self.perturb or {}).get(name)):
            said = reworded(factor, {task: texts[0] for task, texts in said.items()}, self)
        self.episodes = [
            Episode(
                task, texts[i % len(texts)], self.first_seed + i, self.video_stride if i < self.videos_per_task else 0
            )
            for task, texts in said.items()
            for i in range(self.episodes_per_task)
        ]
