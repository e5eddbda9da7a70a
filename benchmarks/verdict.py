"""What the verdict's rule keeps and sees, in made-up studies whose truth is known.

    python benchmarks/verdict.py            # 5,000 studies for each of 390 cases, twice: five minutes on two cores
    python benchmarks/verdict.py 400        # fewer

Writes docs/verdict.csv, a row per case, and docs/verdict.png. Cases: spreads of true rates between trainings, numbers
of trainings, rates, one, two and six comparisons, on five tasks of twenty episodes; spreads that differ by arm, that
are of single tasks, and arms that trained on two kinds of machine, a random half of their runs being some points off.
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from provla.core.files import csv_text, write_text
from provla.core.progress import progress_bars
from provla.run.plots import BLUE, GREY, STYLE, save
from provla.statistics.latent import World, studies
from provla.statistics.moments import moments_of_episodes
from provla.statistics.power import Components
from provla.statistics.rule import compare
from provla.study.plan import seen_at

DOCS = Path(__file__).parents[1] / "docs"
TASKS, EACH = 5, 20
DIFFICULTY = 0.2  # spread of episodes within a task


@dataclass(frozen=True)
class Case:
    """spreads: of the baseline's trainings, and of the other arms'. machines: points that a run on the second kind of
    machine is off.
    """

    kind: str
    comparisons: int
    trainings: int
    rate: float
    spreads: tuple[float, float]
    by_task: float = 0.0
    interaction: float = 0.0
    machines: float = 0.0


def cases() -> Iterator[Case]:
    for spread, trainings, rate, count in itertools.product(
        (0.0, 0.03, 0.05, 0.08, 0.10), (3, 4, 5, 8, 12), (0.3, 0.5, 0.7, 0.9), (1, 2, 6)
    ):
        yield Case("equal spreads", count, trainings, rate, (spread, spread))
    for trainings, count in itertools.product((3, 4, 5, 8, 12), (1, 2, 6)):
        plain = Case("", count, trainings, 0.5, (0.05, 0.05))
        yield replace(plain, kind="baseline varies twice as much", spreads=(0.10, 0.05))
        yield replace(plain, kind="others vary twice as much", spreads=(0.05, 0.10))
        yield replace(plain, kind="baseline varies three times as much", spreads=(0.10, 0.033))
        yield replace(plain, kind="half of the spread by task", by_task=0.5)
        yield replace(plain, kind="arms differ by episode", interaction=0.2)
        yield replace(plain, kind="two machines, 6 points apart", machines=0.06)


def try_case(case: Case, number: int) -> dict[str, Any]:
    """False words, coverage, power at the resolvable difference, and equivalence at a true difference of the margin."""
    size = resolvable(case)
    same = run(case, number, 0.0, size)
    apart = run(case, number, size, size)
    return {
        **{key: getattr(case, key) for key in ("kind", "comparisons", "trainings", "rate")},
        "spread of the baseline": case.spreads[0],
        "spread of the others": case.spreads[1],
        "studies": number,
        "false words": round(same["word"], 4),
        "coverage": round(same["covered"], 4),
        "resolvable": round(size, 4),
        "power there": round(apart["seen"], 4),
        "coverage there": round(apart["covered"], 4),
        "equivalent at the margin": round(apart["equivalent"], 4),
        "spreads called unequal": round(same["unequal"], 4),
    }


def resolvable(case: Case) -> float:
    """By the plan's formula, which takes the arms' spreads for equal: their mean."""
    spread = math.sqrt((case.spreads[0] ** 2 + case.spreads[1] ** 2) / 2 + case.machines**2 / 4)
    rest = max(0.01, case.rate * (1 - case.rate) - DIFFICULTY**2 - spread**2 - case.interaction**2)
    return seen_at(
        case.rate, Components(spread**2, rest, case.interaction**2), case.comparisons + 1, case.trainings, 100
    )


def run(case: Case, number: int, difference: float, margin: float) -> dict[str, float]:
    arms = case.comparisons + 1
    sign = 1 if case.rate <= 0.5 else -1  # where there is room
    rates = np.full((arms, TASKS), case.rate)
    rates[1:] += sign * difference
    spread = np.array([case.spreads[0]] + [case.spreads[1]] * case.comparisons)
    world = World(rates, spread, case.by_task, DIFFICULTY, case.interaction)
    tasks = list(np.repeat(range(TASKS), EACH))
    seed = zlib.crc32(repr((case, difference > 0)).encode())
    rng, kept = np.random.default_rng(seed), []
    for outcomes in studies(world, [case.trainings] * arms, [EACH] * TASKS, number, seed):
        found = compare(moments_of_episodes(on_machines(outcomes, case.machines, rng), tasks), 0)
        covered = ((found.low <= sign * difference) & (found.high >= sign * difference)).all(-1)
        word = found.clear()
        kept.append(np.stack([word.any(-1), covered, word.mean(-1), found.equivalent(margin).any(-1), found.unequal]))
    means = np.concatenate(kept, -1).mean(-1)
    return dict(zip(("word", "covered", "seen", "equivalent", "unequal"), map(float, means), strict=True))


def on_machines(outcomes: Sequence[Any], points: float, rng: np.random.Generator) -> list[Any]:
    """A random half of the runs succeeds less often by so many points."""
    if not points:
        return list(outcomes)
    changed = []
    for one in outcomes:
        slow = rng.random((*one.shape[:2], 1)) < 0.5
        lost = rng.random(one.shape) < points / max(0.01, one.mean())
        changed.append(np.where(slow & lost, 0, one).astype(np.uint8))
    return changed


def draw(rows: Sequence[dict[str, Any]]) -> None:
    panels = (
        ("false words", "words where no arm differs", (0, 0.12), 0.06, None),
        ("coverage", "all intervals hold the truth", (0.88, 1), 0.93, 0.97),
        ("power there", "power at what the plan calls resolvable", (0.6, 1), 0.75, 0.85),
        ("equivalent at the margin", "equivalent, at a true difference of the margin", (0, 0.12), 0.06, None),
    )
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(10, 7.5), sharey=True)
        for axes, (key, title, limits, low, high) in zip(grid.flat, panels, strict=True):
            for edge in (low, high):
                if edge is not None:
                    axes.axvline(edge, color=GREY, ls="--", lw=0.8)
            for y, kind in enumerate(kinds):
                own = [row for row in rows if row["kind"] == kind]
                shift = np.linspace(-0.32, 0.32, len(own))
                axes.plot([row[key] for row in own], y + shift, "o", ms=2.5, color=BLUE, alpha=0.5, mew=0)
            axes.set_xlim(*limits)
            axes.set_title(title, fontsize=9)
            axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
            axes.invert_yaxis()
        save(figure, DOCS / "verdict.png")


def main(number: int) -> None:
    asked = list(cases())
    rows = []
    with ProcessPoolExecutor() as pool, progress_bars() as bars:
        bar = bars.add_task("cases", total=len(asked), note="")
        for row in pool.map(try_case, asked, [number] * len(asked), chunksize=4):
            rows.append(row)
            bars.advance(bar)
    write_text(DOCS / "verdict.csv", csv_text(rows, end="\n"))
    draw(rows)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        said = ", ".join(
            f"{key} {min(row[key] for row in own):.3f} to {max(row[key] for row in own):.3f}"
            for key in ("false words", "coverage", "power there", "equivalent at the margin")
        )
        print(f"{kind} ({len(own)} cases): {said}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
