"""What a verdict consists of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from provla.statistics.checks import wilson
from provla.statistics.moments import Array, Moments
from provla.statistics.trial import Trial
from provla.study.study import Episode, Run, Study

BETTER, WORSE, EQUIVALENT, UNRESOLVED, UNKNOWN = "better", "worse", "equivalent", "unresolved", "no result"
WORDS = (BETTER, WORSE, EQUIVALENT, UNRESOLVED, UNKNOWN)

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
    """An arm against the baseline, by the rule (`statistics.rule`); differences are arm − baseline, in the objective's
    units.

    low, high: the simultaneous interval. p: adjusted for all comparisons. error, df: of the difference. reach: half of
    the interval that must lie within the margin for *equivalent*. resolvable: the smallest true difference that this
    design finds with 80 % power under the rule. shared: what run s of both has in common: weights, demonstrations, or
    nothing. own: the arms' spreads differ, so that these two arms were judged by themselves.

    Beside the rule: permutation: p of the runs' arrangements. wins, losses, mcnemar: on the checkpoints of the seeds
    that both have, alone: episodes that only the arm, only the baseline, succeeded in, and the p of that.
    """

    seeds: list[int]
    difference: float
    low: float
    high: float
    p: float
    error: float
    df: float
    reach: float
    resolvable: float
    shared: str = ""
    own: bool = False
    permutation: float = math.nan
    wins: int | None = None
    losses: int | None = None
    mcnemar: float = math.nan
    word: str = UNKNOWN


@dataclass
class Family:
    """Arms that are compared together, the baseline first. shared: what their runs have in common, row by row. alpha:
    its part of what all comparisons may err.
    """

    arms: list[str]
    moments: Moments
    shared: str
    alpha: float
    spread: float  # p of the test that all arms vary alike between trainings
    trial: Trial | None = None


@dataclass
class Arm:
    """One row of the verdict. mean, low, high: the objective over trainings, with its 95 % interval by Student's t, the
    variance pooled over all arms.
    """

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
    """families: of arms that were compared together. effects: of a factorial grid, per axis and pair of axes. problems:
    what is wrong with the study. notes: what a reader should know.
    """

    study: Study
    margin: float
    arms: list[Arm]
    families: list[Family] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def percent(self) -> bool:
        """Whether the objective is a rate, which is shown in percent and points."""
        return is_rate(self.study.metric)

    @property
    def higher_is_better(self) -> bool:
        return is_rate(self.study.metric) or self.study.metric == SCORE

    @property
    def wanted(self) -> float:
        """The margin, in the objective's units."""
        return self.margin * (1.0 if self.percent else abs(self.baseline.mean) if self.baseline else math.nan)

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == self.study.sweep.baseline), None)

    @property
    def compared(self) -> list[tuple[Arm, Comparison]]:
        return [(arm, arm.comparison) for arm in self.arms if arm.comparison]


SCORE = "score"  # of results from elsewhere: higher is better


def is_rate(metric: str) -> bool:
    """Whether a metric is a success rate; the others are errors (lower is better), but for a score."""
    return metric.startswith("success_rate")


def outcomes_of(study: Study, runs: Sequence[Run]) -> tuple[Array, list[Episode]]:
    """Results (S,E) of the runs on the episodes that the objective counts, and those episodes, by task and episode
    seed; bytes where all are zeros and ones.
    """
    task = study.metric.partition("/")[2]
    episodes = sorted(episode for episode in runs[0].episodes if not task or episode[0] == task)
    found = np.array([[run.episodes[episode] for episode in episodes] for run in runs], dtype=float)
    return (found.astype(np.uint8) if np.isin(found, (0, 1)).all() else found), episodes
