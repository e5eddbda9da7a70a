"""A trained policy judged under perturbations, one at a time, on the same episodes as without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from provla.core.build import build
from provla.core.files import csv_text, write_text
from provla.core.machine import find_device
from provla.core.progress import console
from provla.core.result import Played, read_episodes
from provla.env.chunk import close
from provla.env.perturb import FACTORS, WORDS, available, chosen, perturbed
from provla.env.suite import plays
from provla.run.evaluate import Changes, Judge, evaluate, load_judged, read_config
from provla.statistics.checks import paired_interval, wilson

FOLDER = "perturb"  # of a run or an evaluation; in it a folder for each factor and level


def survive(
    checkpoint: Path,
    device: str,
    changes: Changes,
    folder: Path,
    bases: Mapping[str, str] | None,
    trust: Sequence[str],
    levels: Mapping[str, int],
    judge: Judge | None = None,
) -> list[dict[str, Any]]:
    """Rows {factor, level, …} of what was found under each factor: success with its Wilson interval, endings, and the
    paired difference from the episodes in `folder`, which were played without. Into perturb/, perturb.csv and plots/.

    changes, bases, trust: see `evaluate`. levels: see `factors`. judge: as of `evaluate_steps`; None: `evaluate`, which
    then loads the policy once.
    """
    from provla.run.plots import plot_survival

    plain, rows = read_episodes(folder / "episodes.csv"), []
    if judge is None:
        judge = partial(evaluate, loaded=load_judged(checkpoint, find_device(device), changes, bases, trust))
    for factor, level in levels.items():
        console.print(f"{factor}, level {level}: {amount(factor, level)}")
        under, place = with_factor(changes, folder, factor, level)
        try:
            judge(checkpoint, device, under, place, bases, trust, quiet=True)
        except ValueError as error:
            if factor not in WORDS:
                raise
            rows.append({"factor": factor, "level": level, "note": str(error)})  # it reads no other sentences
            continue
        rows.append({"factor": factor, "level": level, **_row(plain, read_episodes(place / "episodes.csv"))})
    write_text(folder / "perturb.csv", csv_text(rows, list(dict.fromkeys(key for row in rows for key in row))))
    rate = float(np.mean([one.success for one in plain.values()]))
    plot_survival(rows, rate, folder / "plots" / "perturb.png")
    picture(build(read_config(checkpoint, changes, trust)["env"], "env"), levels, folder / "plots" / "perturbed.png")
    _show(rows, rate)
    return rows


def with_factor(changes: Changes, folder: Path, factor: str, level: int) -> tuple[Changes, Path]:
    """What `evaluate` is asked under a factor: changes, and where to."""
    env = {**changes["env"], "perturb": {factor: level}, "videos_per_task": 0}
    return {**changes, "env": env}, folder / FOLDER / f"{factor}_{level}"


def factors(
    checkpoint: Path,
    changes: Changes,
    trust: Sequence[str],
    asked: str | Sequence[str] | Mapping[str, int],
) -> dict[str, int]:
    """Factor → level of what is asked for (see `env.perturb.chosen`). `ValueError` for what the run's worlds do not
    have.
    """
    suite = build(read_config(checkpoint, changes, trust)["env"], "env")
    if not plays(suite):
        raise ValueError(f"perturb={asked}: this run has no simulation, so nothing can be perturbed")
    return chosen(asked, available(suite))


def amount(factor: str, level: int) -> str:
    """A level in words."""
    found = FACTORS[factor]
    return found.unit if len(found.amounts) == 1 else f"{found.amounts[level - 1]:g} {found.unit}"


def _row(plain: Mapping[Any, Played], found: Mapping[Any, Played]) -> dict[str, Any]:
    won = [one.success for one in found.values()]
    low, high = wilson(sum(won), len(won))
    row: dict[str, Any] = {"success": float(np.mean(won)), "low": low, "high": high, "episodes": len(won)}
    if pairs := [(found[key].success, plain[key].success) for key in found if key in plain]:
        # This policy's on other episodes, no claim about other trainings.
        interval = paired_interval(*np.array(pairs).T)
        row |= dict(zip(("difference", "difference_low", "difference_high"), interval, strict=True))
    endings = [one.ending for one in found.values()]
    return row | {ending: endings.count(ending) for ending in ("opposite", "unsafe", "timeout", "fault")}


def _show(rows: Sequence[Mapping[str, Any]], plain: float) -> None:
    table = Table(title=f"what it survives (without: {plain:.0%})", title_justify="left")
    for column in ("factor", "level", "success", "difference", "opposite"):
        table.add_column(column, justify="left" if column == "factor" else "right")
    for row in sorted(rows, key=lambda row: row.get("success", 2.0)):
        if "note" in row:
            table.add_row(row["factor"], str(row["level"]), "–", "", "")
            continue
        change, low, high = (100 * row[key] for key in ("difference", "difference_low", "difference_high"))
        difference = f"{change:+.0f} ({low:+.0f} to {high:+.0f})"
        table.add_row(row["factor"], str(row["level"]), f"{row['success']:.0%}", difference, str(row["opposite"]))
    console.print(table)
    for row in rows:
        if "note" in row:
            console.print(f"{row['factor']}: {row['note']}", soft_wrap=True)


def picture(suite: Any, levels: Mapping[str, int], path: Path) -> None:
    """One episode under each factor, as a policy sees it a few steps on: what was asked of it."""
    from provla.run.plots import plot_gallery

    first = suite.episodes[0]
    seen: dict[str, NDArray[Any]] = {}
    for factor, level in {"": 0, **levels}.items():
        if factor in WORDS:
            continue
        world = perturbed(suite.make(first.task), {factor: level} if factor else None)
        world.reset(first.seed)
        for _ in range(8):
            world.step(world.embodiment.action.clip(world.expert() if hasattr(world, "expert") else 0.0))
        name = next(iter(world.embodiment.cameras))
        seen[f"{factor} {level}" if factor else "as demonstrated"] = world.images()[name]
        close(world)
    plot_gallery(seen, path)
