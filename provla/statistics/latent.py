"""Made-up studies of zeros and ones, with rates and components of variance as asked: what the rule is tried on.

An episode succeeds where a sum of normal draws stays below its task's threshold: draws of the training, of the training
on this task, of the episode, of the arm on this episode, and the rest, together of variance one. So every rate is
exactly as asked, whatever varies, and never leaves 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from provla.statistics.moments import Array


@dataclass(frozen=True)
class World:
    """rates: of each arm on each task (A,T). spread: standard deviation of true rates between trainings of each arm
    (A), at its own rate. by_task: its share that is of single tasks. difficulty: standard deviation of true rates
    between episodes of a task, at the first arm's rate. interaction: the same between arms on one episode.
    """

    rates: Array
    spread: Array
    by_task: float = 0.0
    difficulty: float = 0.2
    interaction: float = 0.0

    def latent(self) -> tuple[Array, Array, float, float]:
        """The draws' variances: training (A), training on a task (A), episode, arm on an episode."""
        own = np.clip(self.rates.mean(1), 0.02, 0.98)
        spreads = [(float(rate), float(one) ** 2) for rate, one in zip(own, self.spread, strict=True)]
        training = np.array([share_of(square, rate) for rate, square in spreads])
        # By task, a spread is averaged over the tasks, so that more of it makes the same spread of whole rates.
        by_task = np.array([share_of(square * self.rates.shape[1], rate) for rate, square in spreads])
        episode = share_of(self.difficulty**2, float(own[0]))
        both = share_of(self.difficulty**2 + self.interaction**2, float(own[0]))
        found = (1 - self.by_task) * training, self.by_task * by_task, episode, both - episode
        room = 0.98 / max(0.98, float((found[0] + found[1]).max()) + both)
        return found[0] * room, found[1] * room, found[2] * room, found[3] * room


def share_of(variance: float, rate: float) -> float:
    """The correlation of two normal draws by which two results of one rate have this covariance: Φ₂(z, z; ρ) − p²."""
    from scipy.optimize import brentq
    from scipy.special import ndtri, owens_t

    if variance <= 0:
        return 0.0
    z = float(ndtri(rate))

    def excess(rho: float) -> float:
        # Φ₂(z, z; ρ) = Φ(z) − 2 T(z, √((1−ρ)/(1+ρ))), Owen 1956
        return rate - 2 * float(owens_t(z, np.sqrt((1 - rho) / (1 + rho)))) - rate**2 - variance

    return float(brentq(excess, 0.0, 0.999)) if excess(0.999) > 0 else 0.999


def studies(
    world: World, trainings: Sequence[int], episodes: Sequence[int], number: int, seed: int = 0
) -> Iterator[list[Array]]:
    """Studies in batches: of each arm (R,S,E) zeros and ones. trainings: of each arm; episodes: of each task."""
    from scipy.special import ndtri

    rng, width = np.random.default_rng(seed), sum(episodes)
    u, v, e, w = world.latent()
    task = np.repeat(np.arange(len(episodes)), episodes)
    thresholds = ndtri(np.clip(world.rates, 1e-9, 1 - 1e-9))[:, task].astype(np.float32)  # (A,E)
    batch = max(1, int(4e6 / (sum(trainings) * width)))
    for begin in range(0, number, batch):
        here = min(batch, number - begin)
        shared = np.sqrt(np.float32(e)) * rng.standard_normal((here, 1, width), np.float32)
        found = []
        for arm, count in enumerate(trainings):
            rest = np.sqrt(np.float32(max(1e-3, 1 - u[arm] - v[arm] - e - w)))
            level = thresholds[arm] - shared
            if w > 0:
                level = level - np.sqrt(np.float32(w)) * rng.standard_normal((here, 1, width), np.float32)
            if u[arm] > 0:
                level = level - np.sqrt(np.float32(u[arm])) * rng.standard_normal((here, count, 1), np.float32)
            if v[arm] > 0:
                own = rng.standard_normal((here, count, len(episodes)), np.float32)[..., task]
                level = level - np.sqrt(np.float32(v[arm])) * own
            found.append((rest * rng.standard_normal((here, count, width), np.float32) < level).view(np.uint8))
        yield found
