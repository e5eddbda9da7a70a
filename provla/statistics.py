"""Statistics of success counts."""

from __future__ import annotations


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), by statsmodels; (0, 1) where nothing was tried."""
    from statsmodels.stats.proportion import proportion_confint

    if episodes == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, episodes, alpha=1 - confidence, method="wilson")
    return float(low), float(high)
