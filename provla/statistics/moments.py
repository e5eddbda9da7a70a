"""What results vary by, over all arms together: between trainings, by arm and episode, and the rest.

Legend: A arms, S trainings of an arm, E episodes in T tasks, `…` studies side by side (a simulation's). A result y is 0
or 1, or a score; y[a] has shape (…,S,E), row s a training, column e an episode that all of them met.

    y = μ(a, task) + e(episode) + u(a, s) + w(a, e) + ε,    tasks fixed, the rest drawn

so that a difference of two arms' means, on the same episodes, has the variance

    (σ_u² + σ_ε²/E)·(1/S_a + 1/S_0) + 2 σ_w²/E

whose first factor is the variance of run values within an arm, and whose last term is what other episodes would change.
The components are those of the analysis of variance (method of moments; Searle, Casella & McCulloch 1992): on balanced
data they are REML's, where none is negative. Where arms share what a training was drawn with (`blocked`: the same
weights, or the same demonstrations), row s of all arms is one block, whose effect leaves the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Moments:
    """values: of the runs, of each arm (…,S). spreads: their variance in each arm (…,A). runs: the same, over all arms
    (…). interaction: σ_w² (…), at least 0. pool, residual: the mean squares that it is the difference of. df, df_pool,
    df_residual: degrees of freedom of runs, pool, residual. episodes: 0 where single results are not known, or not
    paired: then `runs` holds all there is, and no interaction.
    """

    values: tuple[Array, ...]
    spreads: Array
    runs: Array
    interaction: Array
    pool: Array
    residual: Array
    df: float
    df_pool: float = 0.0
    df_residual: float = 0.0
    episodes: int = 0
    blocked: bool = False

    @property
    def means(self) -> Array:
        """Of the arms (…,A)."""
        return np.stack([one.mean(-1) for one in self.values], -1)

    @property
    def counts(self) -> tuple[int, ...]:
        """Trainings of each arm."""
        return tuple(one.shape[-1] for one in self.values)

    @property
    def training(self) -> Array:
        """σ_u²: the variance of true rates between trainings (…), at least 0."""
        return np.maximum(0.0, self.runs - (self.residual / self.episodes if self.episodes else 0.0))


def moments_of_runs(values: Sequence[Array], blocked: bool = False) -> Moments:
    """From run values alone: values[a] has shape (…,S)."""
    centred, share = _centred(values, blocked)
    spreads, runs, df = _spread(centred, share)
    zero = np.zeros(runs.shape)
    return Moments(tuple(values), spreads, runs, zero, zero, zero, df, blocked=blocked)


def moments_of_episodes(outcomes: Sequence[Array], tasks: Sequence[Any], blocked: bool = False) -> Moments:
    """From single results: outcomes[a] has shape (…,S,E). tasks: of each episode (E)."""
    values = tuple(one.mean(-1) for one in outcomes)
    counts = [one.shape[-2] for one in outcomes]
    outcomes, share = _centred(outcomes, blocked)
    episodes, columns = outcomes[0].shape[-1], _columns(tasks)
    spreads, runs, df = _spread([one.mean(-1) for one in outcomes], share)
    by_episode = np.stack([one.mean(-2) for one in outcomes], -2)  # (…,A,E)
    residual, pool = np.zeros(runs.shape), np.zeros(runs.shape)
    for here in columns:
        for arm, one in enumerate(outcomes):
            residual = residual + _interaction(one[..., here], by_episode[..., arm, here])
        cells = by_episode[..., here] - by_episode[..., here].mean(-1, keepdims=True)
        pool = pool + ((cells - cells.mean(-2, keepdims=True)) ** 2).sum((-1, -2))
    free, arms = episodes - len(columns), len(outcomes)
    df_residual, df_pool = share * sum(count - 1 for count in counts) * free, (arms - 1) * free
    residual = residual / df_residual if df_residual else residual
    pool = pool / df_pool if df_pool else pool
    excess = pool - residual * float(np.mean([1 / count for count in counts]))
    interaction = np.maximum(0.0, excess) if df_residual and df_pool else np.zeros(runs.shape)
    found = (values, spreads, runs, interaction, pool, residual)
    return Moments(*found, df, df_pool, df_residual, episodes, blocked)


def _centred(values: Sequence[Array], blocked: bool) -> tuple[list[Array], float]:
    """Without the blocks' effects, and the share of the degrees of freedom that this leaves."""
    if not blocked:
        return list(values), 1.0
    middle = np.mean(np.stack(values), 0)
    return [one - middle for one in values], 1 - 1 / len(values)


def _spread(values: Sequence[Array], share: float) -> tuple[Array, Array, float]:
    counts = [one.shape[-1] for one in values]
    squares = np.stack([((one - one.mean(-1, keepdims=True)) ** 2).sum(-1) for one in values], -1)
    free = np.array([max(1, count - 1) for count in counts])
    df = share * sum(count - 1 for count in counts)
    return squares / (share * free), squares.sum(-1) / df if df else np.full(squares.shape[:-1], np.nan), df


def _interaction(outcomes: Array, by_episode: Array) -> Array:
    """Sum of squares of training × episode, in one arm and task: outcomes (…,S,E), by_episode (…,E)."""
    trainings, episodes = outcomes.shape[-2:]
    rows = outcomes.mean(-1)
    whole = rows.mean(-1)
    # Of zeros and ones, the sum of squares is the sum: no second pass over what is large.
    squares = outcomes.sum((-1, -2)) if outcomes.dtype == np.uint8 else (outcomes**2).sum((-1, -2))
    means = episodes * (rows**2).sum(-1) + trainings * (by_episode**2).sum(-1) - trainings * episodes * whole**2
    return np.asarray(squares - means)


def _columns(tasks: Sequence[Any]) -> list[Array]:
    names = np.asarray([str(task) for task in tasks])
    return [np.flatnonzero(names == name) for name in np.unique(names)]
