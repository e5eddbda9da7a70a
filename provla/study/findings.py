"""What a verdict consists of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from provla.statistics import (
    Array,
    wilson,
)
from provla.study.study import Episode, Run, Study

ALPHA = 0.05


BETTER, WORSE, NO_DIFFERENCE, NOT_RESOLVABLE, UNKNOWN = (
    "better",
    "worse",
    "no difference found",
    "not resolvable",
    "no result",
)


COSTS = {
    "trainable": "trainable parameters",
    "total": "parameters",
    "flops_per_sample": "FLOPs per sample",
    "train_seconds": "train seconds",
    "ms_per_chunk": "ms per chunk",
    "peak_memory_mb": "peak memory [MB]",
    "peak_gpu_memory_mb": "peak GPU memory [MB]",
}


@dataclass(frozen=True)
class Rate:
    """A success rate over all episodes of all seeds, with its Wilson interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)


@dataclass
class Comparison:
    """An arm against the baseline, on the seeds that both completed; differences are arm − baseline, in the objective's
    units.

    wins, losses: pairs of episodes that only the arm, only the baseline, succeeded in. resolvable: the smallest true
    difference that this comparison finds with 80 % power under Holm's correction.
    """

    seeds: list[int]
    difference: float
    low: float
    high: float
    p: float
    resolvable: float
    wins: int | None = None
    losses: int | None = None
    p_holm: float = math.nan
    word: str = UNKNOWN


@dataclass
class Arm:
    """One row of the verdict. mean, low, high: the objective over seeds, with its interval by Student's t."""

    name: str
    seeds: list[int]
    mean: float
    low: float
    high: float
    states: Counter[str]
    success: Rate
    tasks: dict[str, Rate]
    costs: dict[str, float]
    comparison: Comparison | None = None


@dataclass
class Verdict:
    """effects: of a factorial grid, per axis and pair of axes. problems: what is wrong with the study. notes: what a
    reader should know.
    """

    study: Study
    margin: float
    arms: list[Arm]
    effects: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def higher_is_better(self) -> bool:
        return is_rate(self.study.metric)

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == self.study.sweep.baseline), None)

    @property
    def compared(self) -> list[tuple[Arm, Comparison]]:
        return [(arm, arm.comparison) for arm in self.arms if arm.comparison]


def is_rate(metric: str) -> bool:
    """Whether a metric is a success rate (higher is better); the others are errors (lower is better)."""
    return metric.startswith("success_rate")


def outcomes_of(study: Study, runs: Sequence[Run]) -> tuple[Array, list[Episode]]:
    """Successes (S,E) of the runs on the episodes that the objective counts, and those episodes, by task and episode
    seed.
    """
    task = study.metric.partition("/")[2]
    episodes = sorted(episode for episode in runs[0].episodes if not task or episode[0] == task)
    return np.array([[run.episodes[episode] for episode in episodes] for run in runs], dtype=float), episodes
