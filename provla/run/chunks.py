"""Predicted chunks against demonstrated ones: every panel on one canvas, in inches.

Matplotlib's own axes take 20 to 40 ms each to be made, laid out and drawn, and there are thirty of them; a short run
trained for less.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, TransformedBbox

from provla.run.plots import BLUE, MOST_JOINTS, ORANGE, Array, write_picture

MOST_CAMERAS, ACROSS = 4, 7
CELL = 1.9, 1.6  # inches of a panel with what stands beside it
LEFT, BELOW, PANEL = 0.42, 0.24, (1.42, 1.08)  # where the panel itself lies in it
FOOT, HEAD, LINE, TICK = 0.5, 0.3, 0.13, 0.03


class Scale(NamedTuple):
    """Of one axis of a panel: its ends, and where it has ticks."""

    low: float
    high: float
    ticks: Array

    @property
    def labels(self) -> list[str]:
        step = float(self.ticks[1] - self.ticks[0]) if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-6))
        short = decimals <= 4 and abs(self.ticks).max() < 1e5
        found = [f"{0.0 if abs(v) < step / 1e3 else v:{f'.{decimals}f' if short else '.3g'}}" for v in self.ticks]
        return [label.replace("-", "−") for label in found]

    def at(self, values: Array, start: float, length: float) -> Array:
        """Inches of values, where the axis begins at `start`."""
        found: Array = start + length * (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)
        return found


def scale(low: float, high: float, ticks: int, whole: bool = False) -> Scale:
    found = np.asarray(MaxNLocator(ticks, integer=whole).tick_values(low, high))
    return Scale(low, high, found[(found >= low) & (found <= high)])


def plot_chunks(
    predicted: Array,
    actions: Array,
    is_pad: Array,
    images: Sequence[Array],
    titles: Sequence[str],
    joints: Sequence[str],
    cameras: Sequence[str],
    path: Path,
) -> Path:
    """Predicted chunks (P samples each) against demonstrated ones: per observation its cameras' images on the left, and
    a panel per joint.

    predicted (R,P,H,A), actions (R,H,A), is_pad (R,H), images of each camera (R,h,w,3).
    """
    rows, shown, seen = len(actions), list(joints)[:MOST_JOINTS], list(cameras)[:MOST_CAMERAS]
    across = min(ACROSS, len(shown))
    lines, views = -(-len(shown) // across), len(seen)
    size = CELL[0] * (views + across), FOOT + CELL[1] * rows * lines + HEAD
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]), frameon=False)
    axes.set_axis_off()
    time, scales = scale(-0.5, actions.shape[1] - 0.5, 4, whole=True), _scales(actions)
    frame = _Frame(axes)
    for r in range(rows):
        top = FOOT + CELL[1] * (rows - r) * lines
        said = textwrap.wrap(titles[r], 22)
        height = CELL[1] * lines - LINE * (len(said) + (views > 1))  # left of a row for its pictures
        for k, camera in enumerate(seen):
            caption = [*(said if k == 0 else ()), *([camera] if views > 1 else ())]
            _draw_picture(axes, images[k][r], caption, (k * CELL[0], top - CELL[1] * lines), height)
        for j, joint in enumerate(shown):
            corner = CELL[0] * (views + j % across) + LEFT, top - CELL[1] * (1 + j // across) + BELOW
            last = r == rows - 1 and j // across == lines - 1
            frame.add(corner, time, scales[j], last, joint if r == 0 else "")
            _draw_joint(axes, predicted[r, ..., j], actions[r, ~is_pad[r], j], corner, time, scales[j])
    frame.draw()
    _draw_legend(axes, size[0])
    left_out = [
        f"{count} of {len(names)} {what}"
        for what, names, count in (("joints", joints, len(shown)), ("cameras", cameras, views))
        if len(names) > count
    ]
    if left_out:
        note = f"shown: the first {' and '.join(left_out)}"
        axes.text(size[0] / 2, size[1] - 0.12, note, fontsize=8, ha="center", va="center")
    return write_picture(figure, path)


def _scales(actions: Array) -> list[Scale]:
    """One scale per joint, for all observations: a wiggle of a thousandth is none."""
    found = []
    for values in np.moveaxis(actions, -1, 0)[:MOST_JOINTS]:
        low, high = float(values.min()), float(values.max())
        room = 0.15 * (high - low) + 1e-3
        found.append(scale(low - room, high + room, 4))
    return found


def _draw_picture(axes: Axes, image: Array, caption: list[str], corner: tuple[float, float], height: float) -> None:
    """As large as its place lets it be, with its caption above."""
    shrink = min((CELL[0] - 0.15) / image.shape[1], (height - 0.15) / image.shape[0])
    width, tall = shrink * image.shape[1], shrink * image.shape[0]
    x, y = corner[0] + (CELL[0] - width) / 2, corner[1] + (height - tall) / 2
    axes.imshow(image, extent=(x, x + width, y, y + tall), aspect="auto")
    axes.text(x + width / 2, y + tall + 0.05, "\n".join(caption), fontsize=7, ha="center", va="bottom")


def _draw_joint(
    axes: Axes, predicted: Array, actions: Array, corner: tuple[float, float], time: Scale, values: Scale
) -> None:
    """One joint of one observation: predicted (P,H), and the demonstrated steps that are no padding."""

    def line(series: Array) -> Array:
        x, y = time.at(np.arange(len(series)), corner[0], PANEL[0]), values.at(series, corner[1], PANEL[1])
        return np.stack([x, y], 1)

    lines = [line(series) for series in predicted] + [line(actions)] * (len(actions) > 0)
    colours = [to_rgba(BLUE, 0.6)] * len(predicted) + [to_rgba(ORANGE)]
    drawn = LineCollection(lines, colors=colours, linewidths=[0.9] * len(predicted) + [1.8], capstyle="projecting")
    axes.add_collection(drawn, autolim=False)
    drawn.set_clip_box(TransformedBbox(Bbox.from_bounds(*corner, *PANEL), axes.transData))


class _Frame:
    """What stands around the lines of all panels, drawn at once."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._edges: list[Any] = []
        self._grid: list[Any] = []

    def add(self, corner: tuple[float, float], time: Scale, values: Scale, numbered: bool, title: str) -> None:
        (x, y), (width, height), say = corner, PANEL, self._axes.text
        self._edges += [[(x, y + height), (x, y), (x + width, y)]]
        for at, label in zip(time.at(time.ticks, x, width), time.labels, strict=True):
            self._edges.append([(at, y), (at, y - TICK)])
            self._grid.append([(at, y), (at, y + height)])
            if numbered:
                say(at, y - 2 * TICK, label, fontsize=6, ha="center", va="top")
        for at, label in zip(values.at(values.ticks, y, height), values.labels, strict=True):
            self._edges.append([(x, at), (x - TICK, at)])
            self._grid.append([(x, at), (x + width, at)])
            say(x - 2 * TICK, at, label, fontsize=6, ha="right", va="center")
        if title:
            say(x + width / 2, y + height + 0.06, title, fontsize=8, ha="center", va="bottom")

    def draw(self) -> None:
        for lines, look in ((self._grid, {"colors": "#b0b0b0", "alpha": 0.25}), (self._edges, {"colors": "black"})):
            self._axes.add_collection(LineCollection(lines, linewidths=0.8, zorder=1, **look), autolim=False)


def _draw_legend(axes: Axes, width: float) -> None:
    for x, colour, name in ((-1.3, BLUE, "predicted"), (0.1, ORANGE, "demonstrated")):
        start = width / 2 + x
        axes.add_collection(LineCollection([[(start, 0.15), (start + 0.25, 0.15)]], colors=[colour]), autolim=False)
        axes.text(start + 0.32, 0.15, name, fontsize=9, ha="left", va="center_baseline")
