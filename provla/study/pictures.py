"""Pictures and videos of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from provla.core.files import write_bytes
from provla.run.plots import BLUE, GREY, ORANGE, STYLE, save
from provla.study.study import Study, read_curve
from provla.study.trials import Trial
from provla.study.verdict import BETTER, WORSE, Verdict, axes_of, is_rate

GREEN, RED = "#2e8b57", "#c23b3b"
Curves = dict[str, list[list[tuple[int, float]]]]
Scale = tuple[
    str, list[str], Callable[[Trial], Any]
]  # linear or log; the names of options, if it has any; where a trial lies


def forest(verdict: Verdict, path: Path) -> Path | None:
    """Every arm's paired difference from the baseline with its 95 % interval; grey: what the design could not have
    seen.
    """
    rows = [(arm, found) for arm, found in verdict.compared if math.isfinite(found.low)]
    if not rows:
        return None
    scale = 100 if verdict.higher_is_better else 1
    colours = {BETTER: GREEN, WORSE: RED}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.42 * len(rows)))
        for y, (_, found) in enumerate(reversed(rows)):
            axes.fill_betweenx(
                [y - 0.38, y + 0.38], -scale * found.resolvable, scale * found.resolvable, color=GREY, alpha=0.15, lw=0
            )
            colour = colours.get(found.word, BLUE)
            axes.plot([scale * found.low, scale * found.high], [y, y], color=colour, lw=2)
            axes.plot([scale * found.difference], [y], "o", color=colour, ms=6)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(range(len(rows)), [f"{arm.name}\n{found.word}" for arm, found in reversed(rows)], fontsize=8)
        axes.grid(axis="y", visible=False)
        unit = "points of success" if scale == 100 else verdict.study.metric.replace("_", " ")
        axes.set_xlabel(
            f"difference from {verdict.study.sweep.baseline} [{unit}], 95 % interval; grey: below what the design "
            "resolves"
        )
        return save(figure, path)


def _grouped(study: Study, metric: str) -> Curves:
    found: Curves = {}
    for run in study.runs:
        if curve := read_curve(run.folder, metric):
            found.setdefault(run.job.arm, []).append(curve)
    return found


def learning_curves(study: Study, path: Path, metric: str = "trajectory_mse") -> Path | None:
    """A validation metric over the steps: mean over seeds, band from the lowest to the highest; in a search a line per
    trial.
    """
    curves = _grouped(study, metric)
    if not curves:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4))
        if study.sweep.kind == "search":
            for run in study.runs:
                if curve := read_curve(run.folder, metric):
                    pruned = run.status == "pruned"
                    axes.plot(
                        [step for step, _ in curve],
                        [value for _, value in curve],
                        color=GREY if pruned else BLUE,
                        lw=1,
                        alpha=0.8,
                        marker="x" if pruned else None,
                        markevery=[-1],
                        ms=6,
                    )
            axes.plot([], [], color=BLUE, label="completed")
            axes.plot([], [], color=GREY, marker="x", label="pruned")
        else:
            for colour, (arm, seeds) in zip(_colours(len(curves)), curves.items(), strict=True):
                steps = sorted(set.intersection(*({step for step, _ in curve} for curve in seeds)))
                table = np.array([[dict(curve)[step] for step in steps] for curve in seeds])
                style = {"ls": "--", "color": "black"} if arm == study.sweep.baseline else {"color": colour}
                axes.plot(steps, table.mean(0), label=arm, lw=1.6, **style)
                axes.fill_between(steps, table.min(0), table.max(0), color=style["color"], alpha=0.12, lw=0)
        axes.set_yscale("log")
        axes.set_xlabel("training step")
        axes.set_ylabel(f"validation {metric.replace('_', ' ')}")
        axes.legend(fontsize=7, ncols=2)
        return save(figure, path)


def _colours(count: int) -> list[Any]:
    return [plt.get_cmap("tab10" if count <= 10 else "viridis")(i if count <= 10 else i / count) for i in range(count)]


def success_against_time(verdict: Verdict, path: Path) -> Path | None:
    """The objective, with its interval, against the milliseconds of an action chunk."""
    rows = [arm for arm in verdict.arms if "ms_per_chunk" in arm.costs and math.isfinite(arm.mean)]
    if not rows:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4))
        edge = 1.06 * max(arm.costs["ms_per_chunk"] for arm in rows)
        for arm in rows:
            low, high = arm.success.interval if verdict.study.metric == "success_rate" else (arm.low, arm.high)
            colour = "black" if arm.name == verdict.study.sweep.baseline else BLUE
            x = arm.costs["ms_per_chunk"]
            if math.isfinite(low):
                axes.plot([x, x], [low, high], color=colour, lw=1, alpha=0.5)
            axes.plot([x], [arm.mean], "o", color=colour, ms=5)
        bottom, top = axes.get_ylim()
        height = -math.inf
        for arm in sorted(rows, key=lambda arm: arm.mean):  # names in a column of their own, none on another
            height = max(arm.mean, height + 0.045 * (top - bottom))
            axes.annotate(
                arm.name,
                (arm.costs["ms_per_chunk"], arm.mean),
                (edge, height),
                fontsize=7,
                va="center",
                arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5},
            )
        axes.set_xlabel("ms per action chunk")
        axes.set_ylabel(verdict.study.metric.replace("_", " "))
        axes.set_xlim(0, edge)
        return save(figure, path)


def quality_against_steps(study: Study, path: Path) -> Path | None:
    """The objective, mean over seeds, against the number of sampler steps; a horizontal line for an arm that has none
    to choose.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for run in study.completed:
        for row in run.result.get("sampler_steps") or []:
            quality = row.get("rate") if is_rate(study.metric) else row.get(study.metric)
            if quality is not None:
                found.setdefault(run.job.arm, {}).setdefault(row["num_inference_steps"], []).append(quality)
    if not found:
        return None
    arms = list(dict.fromkeys(run.job.arm for run in study.completed))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4))
        for colour, arm in zip(_colours(len(arms)), arms, strict=True):
            if arm in found:
                steps = sorted(found[arm])
                axes.plot(steps, [np.mean(found[arm][s]) for s in steps], marker="o", ms=4, color=colour, label=arm)
            else:
                values = [run.value for run in study.of(arm) if run.status == "completed"]
                axes.axhline(float(np.mean(values)), color=colour, ls="--", lw=1.2, label=f"{arm} (no steps to choose)")
        axes.set_xscale("log", base=2)
        ticks = sorted({step for curve in found.values() for step in curve})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("sampler steps")
        axes.set_ylabel(study.metric.replace("_", " "))
        axes.legend(fontsize=7)
        return save(figure, path)


def heat_map(
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str, str],
    percent: bool,
    path: Path,
) -> Path:
    """A table of numbers (R,C) as colours. titles: of the rows, the columns, the values."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.2 + 0.9 * len(columns), 1.2 + 0.42 * len(rows)))
        limits = {"vmin": 0, "vmax": 1} if percent else {}
        shown = axes.imshow(values, cmap="viridis" if percent else "viridis_r", aspect="auto", **limits)
        axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        for (r, c), value in np.ndenumerate(values):
            if math.isfinite(value):
                level = float(shown.norm(value))
                dark = level < 0.6 if percent else level > 0.4
                axes.text(
                    c,
                    r,
                    f"{value:.0%}" if percent else f"{value:.3g}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        axes.set_ylabel(titles[0])
        axes.set_xlabel(titles[1])
        figure.colorbar(shown, ax=axes, label=titles[2])
        return save(figure, path)


def two_way(study: Study, path: Path) -> Path | None:
    """The mean over seeds for each pair of values, where a grid has two axes."""
    axes = axes_of(study)
    if len(axes) != 2:
        return None
    (down, rows), (across, columns) = axes.items()
    cells: dict[tuple[str, str], list[float]] = {}
    for run in study.completed:
        if down in run.job.axes and across in run.job.axes:
            cells.setdefault((run.job.axes[down], run.job.axes[across]), []).append(run.value)
    if not cells:
        return None
    values = np.array([[np.mean(cells[r, c]) if (r, c) in cells else math.nan for c in columns] for r in rows])
    return heat_map(values, rows, columns, (down, across, study.metric.replace("_", " ")), is_rate(study.metric), path)


def by_task(verdict: Verdict, path: Path) -> Path | None:
    """Success of every arm on every task."""
    tasks, arms = verdict.study.tasks, [arm for arm in verdict.arms if arm.success.episodes]
    if not arms or len(tasks) < 2:
        return None
    values = np.array([[arm.tasks[task].rate for task in tasks] for arm in arms])
    return heat_map(values, [arm.name for arm in arms], tasks, ("", "", "success rate, all seeds"), True, path)


def rollouts(study: Study, arm: str, path: Path) -> Path | None:
    """One filmed episode per task, the same for both: the baseline above, the arm below, a column per task. Green:
    succeeded; red: did not.
    """
    import cv2
    import imageio.v3 as iio

    pair = _filmed_pair(study, arm)
    if pair is None:
        return None
    folders, tasks = pair
    rows, fps, label = [], 10.0, 18
    for name, folder in zip((study.sweep.baseline, arm), folders, strict=True):
        films = []
        for task in tasks:
            file = folder / "videos" / f"{task}.mp4"
            frames = iio.imread(file, plugin="pyav")
            fps = float(iio.immeta(file, plugin="pyav").get("fps", fps))
            films.append(frames[:, :, : frames.shape[1]])  # the tiles are square: the first one
        length = max(map(len, films))
        row = np.concatenate([np.concatenate([film, np.repeat(film[-1:], length - len(film), 0)]) for film in films], 2)
        title = np.full((label, row.shape[2], 3), 255, np.uint8)
        cv2.putText(title, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
        rows.append(np.concatenate([np.repeat(title[None], length, 0), row], 1))
    length = max(map(len, rows))
    frames = np.concatenate([np.concatenate([row, np.repeat(row[-1:], length - len(row), 0)]) for row in rows], 1)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    write_bytes(path, iio.imwrite("<bytes>", frames, plugin="pyav", extension=".mp4", codec="h264", fps=round(fps)))
    return path


def _filmed_pair(study: Study, arm: str) -> tuple[tuple[Path, Path], list[str]] | None:
    """The run folders of the baseline and an arm with the same seed that both filmed, and the tasks that both show."""
    filmed = {(run.job.arm, run.job.seed): run.folder for run in study.completed if (run.folder / "videos").is_dir()}
    for name, seed in filmed:
        if name == arm and (study.sweep.baseline, seed) in filmed:
            folders = filmed[study.sweep.baseline, seed], filmed[arm, seed]
            tasks = [
                task for task in study.tasks if all((folder / "videos" / f"{task}.mp4").is_file() for folder in folders)
            ]
            if tasks:
                return folders, tasks
    return None


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
            drawn = [
                trial for trial in done if key in trial.params
            ]  # a search that was begun without this axis has others
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
