"""Pictures and videos of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from provla.core.files import write_bytes
from provla.run.plots import BLUE, GREY, STYLE, save
from provla.study.findings import BETTER, EQUIVALENT, WORSE, Verdict, is_rate
from provla.study.study import Study, read_curve
from provla.study.trials import Trial
from provla.study.verdict import axes_of

GREEN, RED = "#2e8b57", "#c23b3b"


Curves = dict[str, list[list[tuple[int, float]]]]


# Linear or log; the names of options, if it has any; where a trial lies.
Scale = tuple[str, list[str], Callable[[Trial], Any]]


def forest(verdict: Verdict, path: Path) -> Path | None:
    """Every arm's difference from the baseline with its simultaneous interval; grey: the margin, within which a
    difference would not matter.
    """
    rows = [(arm, found) for arm, found in verdict.compared if math.isfinite(found.low)]
    if not rows:
        return None
    scale = 100 if verdict.percent else 1
    colours = {BETTER: GREEN, WORSE: RED, EQUIVALENT: BLUE}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 1.1 + 0.42 * len(rows)))
        axes.axvspan(-scale * verdict.wanted, scale * verdict.wanted, color=GREY, alpha=0.12, lw=0)
        for y, (_, found) in enumerate(reversed(rows)):
            colour = colours.get(found.word, GREY)
            axes.plot([scale * found.low, scale * found.high], [y, y], color=colour, lw=2)
            axes.plot([scale * found.difference], [y], "o", color=colour, ms=6)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_yticks(range(len(rows)), [f"{arm.name}\n{found.word}" for arm, found in reversed(rows)], fontsize=8)
        axes.grid(axis="y", visible=False)
        unit = "points of success" if scale == 100 else verdict.study.metric.replace("_", " ")
        axes.set_xlabel(
            f"difference from {verdict.study.sweep.baseline} [{unit}]: intervals that hold for all arms at once\n"
            f"grey: the margin of {scale * verdict.wanted:.3g}"
        )
        return save(figure, path)


def _grouped(study: Study, metric: str) -> Curves:
    found: Curves = {}
    for run in study.runs:
        if curve := read_curve(run.folder, metric):
            found.setdefault(run.job.arm, []).append(curve)
    return found


def learning_curves(study: Study, path: Path, metric: str = "trajectory_mse") -> Path | None:
    """A validation metric over the steps: a panel per arm, mean over trainings and a band from the lowest to the
    highest, the baseline dashed; in a search a line per trial.
    """
    curves = _grouped(study, metric)
    if not curves:
        return None
    if study.sweep.kind == "search":
        return _curves_of_trials(study, path, metric)
    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    tables = {arm: _table(trainings) for arm, trainings in curves.items()}
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(max(4.0, 2.4 * columns), 0.6 + 2.0 * rows), sharex=True, sharey=True, squeeze=False
        )
        for axes, (arm, (steps, table)) in zip(grid.flat, tables.items(), strict=False):
            if study.sweep.baseline in tables and arm != study.sweep.baseline:
                base, own = tables[study.sweep.baseline]
                axes.plot(base, own.mean(0), color="black", ls="--", lw=1)
            axes.plot(steps, table.mean(0), color=BLUE, lw=1.6)
            axes.fill_between(steps, table.min(0), table.max(0), color=BLUE, alpha=0.2, lw=0)
            axes.set_yscale("log")
            axes.set_title(f"{arm} (baseline)" if arm == study.sweep.baseline else arm, fontsize=8)
        for axes in grid.flat[len(tables) :]:
            axes.set_visible(False)
        figure.supxlabel("training step", fontsize=8)
        figure.supylabel(f"validation {metric.replace('_', ' ')}", fontsize=8)
        return save(figure, path)


def _table(curves: Sequence[list[tuple[int, float]]]) -> tuple[list[int], NDArray[Any]]:
    """The steps that all trainings were validated at, and the values (S,N)."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    return steps, np.array([[dict(curve)[step] for step in steps] for curve in curves])


def _curves_of_trials(study: Study, path: Path, metric: str) -> Path:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4))
        for run in study.runs:
            if curve := read_curve(run.folder, metric):
                pruned = run.status == "pruned"
                colour, marker = (GREY, "x") if pruned else (BLUE, None)
                axes.plot(*zip(*curve, strict=True), color=colour, lw=1, alpha=0.8, marker=marker, markevery=[-1], ms=6)
        axes.plot([], [], color=BLUE, label="completed")
        axes.plot([], [], color=GREY, marker="x", label="pruned")
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
            low, high = arm.low, arm.high
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
        for row in run.result.sampler_steps or []:
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
