"""What a design sees, under the rule: before a study from assumed components, after it from its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from provla.statistics.moments import Array, Moments, moments_of_runs
from provla.statistics.rule import ALPHA, ENOUGH, compare

DRAWS = 20_000
POWER = 0.8


@dataclass(frozen=True)
class Components:
    """Variances of a result: between trainings, of an arm on an episode, and the rest."""

    training: float
    rest: float
    interaction: float = 0.0

    @classmethod
    def of_rate(cls, rate: float, spread: float) -> Components:
        """Of zeros and ones at a rate. spread: standard deviation of true rates between trainings."""
        return cls(spread**2, rate * (1 - rate))

    @classmethod
    def of(cls, m: Moments) -> Components:
        """As one study found them."""
        return cls(float(m.training), float(m.residual), float(m.interaction))

    def of_run(self, episodes: int) -> float:
        """Variance of a run's value."""
        return self.training + (self.rest / episodes if episodes else 0.0)


@dataclass(frozen=True)
class Design:
    """A comparison in a study. counts: trainings of each arm; base, arm: the two that are compared. alpha: what all
    comparisons together may err.
    """

    counts: tuple[int, ...]
    episodes: int
    base: int = 0
    arm: int = -1
    alpha: float = ALPHA


@cache
def _unit(counts: tuple[int, ...], base: int, alpha: float) -> tuple[Array, Array, Array, Array]:
    """Of many studies of standard normal run values without any difference: the differences found, their errors, half
    of their intervals (each (studies, arms − 1)), and a normal draw of its own.
    """
    rng = np.random.default_rng(sum(counts))
    found = compare(moments_of_runs([rng.standard_normal((DRAWS, count)) for count in counts]), base, alpha)
    return found.difference, found.error, found.high - found.difference, rng.standard_normal(DRAWS)


def power(difference: float, components: Components, design: Design) -> float:
    """The chance that the rule says better or worse of an arm which differs so much."""
    noise, half = _interval(components, design)
    return float((np.abs(noise + difference) > half).mean())


def resolvable(components: Components, design: Design, wanted: float = POWER) -> float:
    """The smallest true difference that the rule finds with this power, normal run values assumed; nan where an arm has
    too few trainings for a word.
    """
    if min(design.counts[design.base], design.counts[design.arm]) < ENOUGH:
        return math.nan
    noise, half = _interval(components, design)
    low, high = 0.0, float(4 * np.quantile(half, 0.95)) or 1.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if (np.abs(noise + middle) > half).mean() < wanted else (low, middle)
    return high


def _interval(components: Components, design: Design) -> tuple[Array, Array]:
    """Of studies without a difference: the difference found, and half the interval around it."""
    counts, episodes = design.counts, design.episodes
    base, arm = design.base % len(counts), design.arm % len(counts)
    place = arm - (arm > base)
    difference, error, half, other = _unit(counts, base, design.alpha)
    scale = math.sqrt(components.of_run(episodes))
    beyond = 2 * components.interaction / episodes if episodes else 0.0
    # What other episodes would change is taken as known: it has many degrees of freedom.
    wider = np.sqrt(1 + beyond / np.maximum((scale * error[:, place]) ** 2, 1e-300))
    return scale * difference[:, place] + math.sqrt(beyond) * other, scale * half[:, place] * wider


def best_episodes(components: Components, seconds_of_training: float, seconds_of_episode: float) -> float:
    """Episodes per training that give the most for a budget: √((C_train / C_episode) · (σ_ε² / σ_u²)); inf where
    trainings do not differ.
    """
    if components.training <= 0:
        return math.inf
    return math.sqrt(seconds_of_training / seconds_of_episode * components.rest / components.training)
