"""A report tries its own rule: studies made up from its own fitted components, judged as it was judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from provla.statistics.latent import World, studies
from provla.statistics.moments import Array, Moments, moments_of_episodes, moments_of_runs
from provla.statistics.rule import LEVEL, compare, spreads_differ

STUDIES = 2000
TOO_MANY = 0.07  # words where there is no difference


@dataclass(frozen=True)
class Trial:
    """Shares of the made-up studies. false: any word where no arm differs. covered: all simultaneous intervals hold the
    truth. seen: an arm that differs by the margin is called so. equivalent: any arm that differs by the margin is
    called equivalent.
    """

    studies: int
    false: float
    covered: float
    seen: float
    equivalent: float


def try_out(
    m: Moments, base: int, margin: float, rates: Array | None = None, tasks: Sequence[Any] = (), seed: int = 0
) -> Trial:
    """Two times `STUDIES` made-up studies of the shape of one: without a difference, and all arms off by the margin.

    margin: in the objective's units. rates: of the baseline on each task (T), by the order of their names, where
    results are zeros and ones; then the made-up ones are too. tasks: of each episode.
    """
    same: list[Array] = []
    off: list[Array] = []
    for difference, into in ((0.0, same), (margin, off)):
        for made in _made(m, base, difference, rates, tasks, seed):
            found = compare(made, base)
            truth = difference if rates is None else _reached(rates, difference, tasks)
            covered = ((found.low <= truth) & (truth <= found.high)).all(-1)
            into.append(
                np.stack([found.clear().any(-1), covered, found.clear().mean(-1), found.equivalent(margin).any(-1)])
            )
    null, apart = (np.concatenate(one, -1).mean(-1) for one in (same, off))
    return Trial(STUDIES, float(null[0]), float(null[1]), float(apart[2]), float(apart[3]))


def _made(m: Moments, base: int, difference: float, rates: Array | None, tasks: Sequence[Any], seed: int) -> Any:
    spreads = m.training if spreads_differ(m) >= LEVEL else np.maximum(0.0, m.spreads - (m.runs - m.training))
    if rates is None or not m.episodes:
        rng = np.random.default_rng(seed)
        width = np.sqrt(np.broadcast_to(m.runs if spreads.ndim == 0 else m.spreads, len(m.counts)))
        values = [width[arm] * rng.standard_normal((STUDIES, count)) for arm, count in enumerate(m.counts)]
        yield moments_of_runs([one + difference * (arm != base) for arm, one in enumerate(values)], m.blocked)
        return
    names, counts = np.unique([str(task) for task in tasks], return_counts=True)
    table = np.tile(rates, (len(m.counts), 1))
    for arm in range(len(m.counts)):
        table[arm] = rates if arm == base else _moved(rates, difference, counts)
    spread = np.sqrt(np.broadcast_to(spreads, len(m.counts)))
    # What the other components leave of the whole, so that the residual comes out as it was.
    whole, rest = float((rates * (1 - rates)).mean()), float(m.training + m.interaction + m.residual)
    difficulty = math.sqrt(max(0.0, whole - rest))
    world = World(table, spread, 0.0, difficulty, math.sqrt(float(m.interaction)))
    order = list(np.repeat(names, counts))
    for outcomes in studies(world, m.counts, [int(one) for one in counts], STUDIES, seed):
        yield moments_of_episodes(outcomes, order, m.blocked)


def _moved(rates: Array, difference: float, counts: Array) -> Array:
    """Rates of tasks whose mean is further by a difference: down where there is no room above."""
    whole = float((rates * counts).sum() / counts.sum())
    if difference == 0 or not 0 <= whole + difference <= 1:
        difference = -difference
    if difference == 0:
        return rates
    # Every task is moved by the same share of its room.
    share = difference / (1 - whole) if difference > 0 else difference / whole
    return rates + share * (1 - rates) if difference > 0 else rates + share * rates


def _reached(rates: Array, difference: float, tasks: Sequence[Any]) -> float:
    counts = np.unique([str(task) for task in tasks], return_counts=True)[1]
    return float(((_moved(rates, difference, counts) - rates) * counts).sum() / counts.sum())
