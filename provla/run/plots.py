"""Pictures of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from provla.core.files import write_bytes

Array = NDArray[Any]
BLUE, ORANGE, GREY = "#2f6db5", "#d9822b", "#8a8f98"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure of pyplot's as PNG, cut to what is drawn, and closes it."""
    try:
        return write_picture(figure, path, bbox_inches="tight")
    finally:
        plt.close(figure)


def write_picture(figure: Figure, path: Path, **how: Any) -> Path:
    """Writes a figure as PNG, atomically."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, **how)
    write_bytes(path, picture.getvalue())
    return path


class _Plain(LogFormatter):
    """0.3 on a logarithmic axis, where the default has 3 × 10⁻¹."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plot_losses(history: Sequence[dict[str, float]], path: Path) -> Path:
    """Training and validation loss and the learning rate over the steps."""
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2))
        margins = {"left": 0.09, "right": 0.985, "bottom": 0.16, "top": 0.97, "wspace": 0.25}
        left, right = figure.subplots(1, 2, gridspec_kw=margins)
        for axes, series in (
            (left, (("train/loss", "training", BLUE), ("val/loss", "validation, averaged weights", ORANGE))),
            (right, (("val/trajectory_mse", "trajectory MSE of sampled chunks", ORANGE),)),
        ):
            for key, label, colour in series:
                rows = [(row["step"], row[key]) for row in history if key in row]
                if rows:
                    steps, values = zip(*rows, strict=True)
                    axes.plot(
                        steps,
                        values,
                        color=colour,
                        label=label,
                        lw=1.4,
                        marker="o" if key.startswith("val") else None,
                        ms=3,
                    )
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_Plain())
            axes.yaxis.set_minor_formatter(_Plain(minor_thresholds=(1, 0.4)))
            axes.set_xlabel("step")
            if axes.lines:
                axes.legend()
        left.set_ylabel("objective's loss")
        right.set_ylabel("validation, robot's units²")
        return write_picture(figure, path)


MOST_JOINTS = 28  # a picture shows so many, and says where there are more


def plot_steps(rows: Sequence[dict[str, Any]], quality: str, path: Path) -> Path:
    """A quality, with its interval where it has one, and the time of a chunk against the number of sampler steps."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), gridspec_kw={"wspace": 0.25})
        steps = [row["num_inference_steps"] for row in rows]
        left.plot(steps, [row[quality] for row in rows], color=BLUE, marker="o", ms=4)
        if all("low" in row for row in rows):
            left.fill_between(
                steps,
                [row["low"] for row in rows],
                [row["high"] for row in rows],
                color=BLUE,
                alpha=0.15,
                label="95 % Wilson interval",
            )
            left.legend()
        left.set_ylabel(quality.replace("_", " "))
        right.plot(steps, [row["ms_per_chunk"] for row in rows], color=ORANGE, marker="o", ms=4)
        right.set_ylabel("ms per action chunk")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [str(s) for s in steps])
            axes.set_xlabel("sampler steps")
        return save(figure, path)


def plot_dataset(
    lengths: dict[str, Array], val: dict[str, int], actions: Array, names: Sequence[str], path: Path
) -> Path:
    """Episode lengths per task, episodes per split, and the distribution of every action dimension."""
    with plt.rc_context(STYLE):
        shown = list(names)[:MOST_JOINTS]
        columns = 4
        lines = -(-len(shown) // columns)
        figure = plt.figure(figsize=(11, 3.4 + 1.7 * lines), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[3.4, 1.7 * lines])
        left, right = top.subplots(1, 2)
        tasks = list(lengths)
        left.boxplot(
            [lengths[t] for t in tasks], orientation="horizontal", tick_labels=tasks, medianprops={"color": ORANGE}
        )
        left.set_xlabel("episode length [control steps]")
        train = [len(lengths[t]) - val[t] for t in tasks]
        right.barh(tasks, train, color=BLUE, label="training")
        right.barh(tasks, [val[t] for t in tasks], left=train, color=ORANGE, label="validation")
        right.set_xlabel("episodes")
        right.set_yticklabels([])
        right.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)
        grid = bottom.subplots(lines, columns, squeeze=False)
        for j, axes in enumerate(grid.flat):
            if j >= len(shown):
                axes.set_axis_off()
                continue
            axes.hist(actions[:, j], bins=60, color=BLUE)
            axes.set_title(f"action: {shown[j]}", fontsize=8)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)
        if len(names) > len(shown):
            bottom.suptitle(f"shown: the first {len(shown)} of {len(names)} joints", fontsize=8)
        return save(figure, path)


def plot_profile(stages: Mapping[str, float], path: Path) -> Path:
    """Seconds of each stage, the first at the top, with its share of them all."""
    whole = sum(stages.values()) or 1.0
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.28 * max(3, len(stages))))
        bars = axes.barh(list(stages), list(stages.values()), color=[GREY if k == "other" else BLUE for k in stages])
        axes.bar_label(bars, [f" {value / whole:.0%}" for value in stages.values()], fontsize=8)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("seconds")
        axes.margins(x=0.1)
        return save(figure, path)


def plot_survival(rows: Sequence[Mapping[str, Any]], plain: float, path: Path) -> Path:
    """Success under each factor with its 95 % interval, and the share that did the opposite; without any, a dashed
    line.
    """
    found = sorted((row for row in rows if "success" in row), key=lambda row: row["success"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.28 * max(3, len(found))))
        for y, row in enumerate(found):
            axes.plot([row["low"], row["high"]], [y, y], color=BLUE, lw=1.4)
            axes.plot([row["success"]], [y], "o", color=BLUE, ms=5)
            axes.plot([row["opposite"] / row["episodes"]], [y], "x", color=ORANGE, ms=5)
        axes.axvline(plain, color=GREY, ls="--", lw=1)
        axes.plot([], [], "o", color=BLUE, label="success")
        axes.plot([], [], "x", color=ORANGE, label="the opposite")
        axes.plot([], [], ls="--", color=GREY, label="success, unperturbed")
        axes.set_yticks(range(len(found)), [f"{row['factor']} {row['level']}" for row in found])
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("share of episodes")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return save(figure, path)


def plot_gallery(seen: Mapping[str, Array], path: Path) -> Path:
    """Pictures with their captions, five in a row."""
    columns = 5
    rows = -(-len(seen) // columns)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, grid = plt.subplots(rows, columns, figsize=(1.7 * columns, 1.95 * rows), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, (caption, picture) in zip(grid.flat, seen.items(), strict=False):
            axes.imshow(picture)
            axes.set_title(caption, fontsize=8)
        return save(figure, path)
