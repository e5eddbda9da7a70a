"""The pictures of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from provla.run.plots import BLUE, GREY, ORANGE, STYLE, save
from provla.study.pictures import RED, Scale
from provla.study.trials import Trial


def history(trials: Sequence[Trial], maximize: bool, metric: str, path: Path) -> Path | None:
    """The value of every trial in its turn, and the best so far; pruned and failed ones as crosses below."""
    done = [trial for trial in trials if trial.state == "complete"]
    if not done:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        axes.plot([t.number for t in done], [t.value for t in done], "o", color=BLUE, ms=5, label="completed")
        best = (np.maximum if maximize else np.minimum).accumulate([t.value for t in done])
        axes.step([t.number for t in done], best, where="post", color=ORANGE, lw=1.6, label="best so far")
        _crosses(axes, [t.number for t in trials if t.state == "pruned"], "pruned", GREY)
        _crosses(axes, [t.number for t in trials if t.state == "fail"], "failed", RED)
        axes.set_xlabel("trial")
        axes.set_ylabel(metric.replace("_", " "))
        axes.legend()
        return save(figure, path)


def _crosses(axes: Axes, places: Sequence[Any], label: str, colour: str) -> None:
    """Marks on the lower edge for trials without a value."""
    if places:
        axes.plot(
            places, [0.02] * len(places), "x", color=colour, ms=6, label=label, transform=axes.get_xaxis_transform()
        )


def importance(shares: Mapping[str, float], path: Path) -> Path | None:
    """How much of the values' variation each parameter explains."""
    if not shares:
        return None
    rows = sorted(shares.items(), key=lambda item: item[1])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 0.9 + 0.35 * len(rows)))
        axes.barh([key for key, _ in rows], [share for _, share in rows], color=BLUE)
        for y, (_, share) in enumerate(rows):
            axes.text(share + 0.01, y, f"{share:.0%}", va="center", fontsize=8)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel("importance (mean decrease of impurity, random forest)")
        return save(figure, path)


def _complete(trials: Sequence[Trial]) -> tuple[list[Trial], list[str]]:
    """The complete trials, and the parameters that any of them drew."""
    done = [trial for trial in trials if trial.state == "complete"]
    return done, list(dict.fromkeys(key for trial in done for key in trial.params))


def slices(trials: Sequence[Trial], metric: str, path: Path) -> Path | None:
    """The value against each parameter; the colour is the trial's turn."""
    done, keys = _complete(trials)
    if not keys:
        return None
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, len(keys), figsize=(3 * len(keys), 3), sharey=True, squeeze=False)
        for axes, key in zip(row[0], keys, strict=True):
            scale = _scale(trials, key)
            x = scale[2]
            # A search that was begun without this axis has others.
            drawn = [trial for trial in done if key in trial.params]
            turns = {"c": [t.number for t in drawn], "vmin": done[0].number, "vmax": done[-1].number}
            shown = axes.scatter([x(t) for t in drawn], [t.value for t in drawn], cmap="viridis", s=28, **turns)
            _crosses(axes, [x(t) for t in trials if t.state == "pruned" and key in t.params], "pruned", GREY)
            _mark(axes, "x", scale)
            axes.set_xlabel(key)
        row[0, 0].set_ylabel(metric.replace("_", " "))
        figure.colorbar(shown, ax=row[0], label="trial")
        return save(figure, path)


def pairs(trials: Sequence[Trial], metric: str, path: Path) -> Path | None:
    """Each pair of parameters against each other; the colour is the value, a cross a trial that was pruned."""
    done, keys = _complete(trials)
    if len(keys) < 2:
        return None
    side, low, high = len(keys) - 1, min(t.value for t in done), max(t.value for t in done)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            side,
            side,
            figsize=(2.6 * side + 1, 2.2 * side + 0.4),
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for (row, column), axes in np.ndenumerate(grid):
            if column > row:
                axes.set_axis_off()
                continue
            across, down = keys[column], keys[row + 1]
            x, y = _scale(trials, across), _scale(trials, down)
            both = [trial for trial in trials if {across, down} <= trial.params.keys()]
            pruned, done = ([t for t in both if t.state == state] for state in ("pruned", "complete"))
            axes.scatter(*_places(pruned, x, y), marker="x", color=GREY, s=30)
            shown = axes.scatter(
                *_places(done, x, y), c=[t.value for t in done], cmap="viridis", vmin=low, vmax=high, s=30, zorder=3
            )
            _mark(axes, "x", x)
            _mark(axes, "y", y)
            axes.set_xlabel(across if row == side - 1 else "")
            axes.set_ylabel(down if column == 0 else "")
        figure.colorbar(shown, ax=grid, label=metric.replace("_", " "))
        return save(figure, path)


def _places(trials: Sequence[Trial], x: Scale, y: Scale) -> NDArray[Any]:
    """(2, trials): where they lie; those of the same options lie around them, not on each other."""
    angles = 2.4 * np.array([t.number for t in trials], dtype=float)
    ring = (np.cos(angles), np.sin(angles))
    return np.array(
        [
            np.array([place(t) for t in trials]) + 0.12 * bool(ticks) * aside
            for (_, ticks, place), aside in zip((x, y), ring, strict=True)
        ]
    )


def _mark(axes: Axes, which: str, scale: Scale) -> None:
    """The scale of the axis `which`, x or y, and its options' names."""
    kind, ticks, _ = scale
    axes.set(**{f"{which}scale": kind})
    if ticks:
        getattr(axes, f"{which}axis").set_ticks(
            range(len(ticks)), ticks, fontsize=7, rotation=20 if which == "x" else 0
        )


def _scale(trials: Sequence[Trial], key: str) -> Scale:
    """The scale of a parameter, its ticks where it is categorical, and the place of a trial on it."""
    values = {trial.params[key] for trial in trials if key in trial.params}
    if any(key in trial.logarithmic for trial in trials):
        return "log", [], lambda trial: trial.params[key]
    if all(isinstance(value, float) for value in values):
        return "linear", [], lambda trial: trial.params[key]
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    return "linear", [str(value) for value in ordered], lambda trial: ordered.index(trial.params[key])


def parallel_coordinates(trials: Sequence[Trial], metric: str, path: Path) -> Path | None:
    """A line per completed trial through its parameters to its value; the colour is the value."""
    done, keys = _complete(trials)
    done = [trial for trial in done if len(trial.params) == len(keys)]
    if len(done) < 2 or not keys:
        return None
    values = np.array([t.value for t in done])
    level = (values - values.min()) / (np.ptp(values) or 1)
    columns: list[tuple[str, NDArray[Any], list[tuple[float, str]]]] = []
    for key in keys:
        scale, ticks, place_of = _scale(trials, key)
        place = np.array([float(place_of(t)) for t in done])
        place = np.log10(place) if scale == "log" else place
        low, span = (0.0, max(1, len(ticks) - 1)) if ticks else (place.min(), np.ptp(place) or 1)
        named = (
            [(i / span, text) for i, text in enumerate(ticks)]
            if ticks
            else [(h, f"{10 ** (low + h * span) if scale == 'log' else low + h * span:.2g}") for h in (0, 0.5, 1)]
        )
        columns.append((key, (place - low) / span, named))
    columns.append((metric, level, [(h, f"{values.min() + h * np.ptp(values):.3g}") for h in (0, 0.5, 1)]))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2 * len(columns), 3.6))
        for i in np.argsort(level):
            axes.plot(
                range(len(columns)),
                [column[1][i] for column in columns],
                color=plt.get_cmap("viridis")(level[i]),
                lw=1.5,
                alpha=0.8,
            )
        for x, (_, _, named) in enumerate(columns):
            axes.axvline(x, color=GREY, lw=0.8)
            for height, text in named:
                axes.text(
                    x + 0.03,
                    height,
                    text,
                    fontsize=7,
                    va="center",
                    bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.5},
                )
        axes.set_xticks(range(len(columns)), [name for name, _, _ in columns])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return save(figure, path)
