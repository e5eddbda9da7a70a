"""Pictures of what data lack, and of what an augmentation makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from provla.augmentation import CameraAugmentation, NoAugmentation
from provla.core.cameras import apart
from provla.core.types import Batch
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.lacks import KINDS, Lack, Survey, signals
from provla.dataset.sampler import Sampler
from provla.run.plots import BLUE, GREY, ORANGE, STYLE, save

EACH = 3  # findings of a kind that are drawn
SAMPLES = 4  # rows of a sheet


def plot_lacks(data: Demonstrations, survey: Survey, times: dict[int, Any], path: Path) -> Path:
    """The first findings of each kind, a picture each. times: of the episodes whose clock jumps, by number [s]."""
    shown = [lack for kind in KINDS for lack in [one for one in survey.lacks if one.kind == kind][:EACH]]
    columns = min(2, len(shown))
    with plt.rc_context(STYLE):
        rows = -(-len(shown) // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(5.2 * columns, 2.4 * rows), squeeze=False)
        figure.set_layout_engine("constrained")
        for axes in list(grid.flat)[len(shown) :]:
            axes.axis("off")
        for axes, lack in zip(grid.flat, shown, strict=False):
            where = f"episode {survey.number(lack)}: " if lack.episode is not None else ""
            axes.set_title(_wrapped(where + lack.what), fontsize=8)
            axes.tick_params(labelsize=7)
            DRAW[lack.kind](axes, data, survey, times, lack)
        return save(figure, path)


def _wrapped(text: str, width: int = 62) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _time(axes: Any, data: Demonstrations, survey: Survey, times: dict[int, Any], lack: Lack) -> None:
    assert lack.episode is not None
    clock = times[lack.episode]
    axes.plot(clock, color=BLUE, lw=1.2)
    axes.plot(clock[0] + np.arange(len(clock)) / data.fps, color=GREY, ls="--", lw=1)
    axes.plot([lack.first, lack.last], clock[[lack.first, lack.last]], "o", color=ORANGE, ms=4)
    axes.set_xlabel("step", fontsize=7)
    axes.set_ylabel("time stamp [s]", fontsize=7)


def _camera(axes: Any, data: Demonstrations, survey: Survey, times: dict[int, Any], lack: Lack) -> None:
    """From before the camera stands still until after."""
    assert lack.episode is not None
    assert lack.first is not None
    assert lack.last is not None
    begin, last = int(data.starts[lack.episode]), int(data.starts[lack.episode + 1]) - 1
    steps = np.array([lack.first - 1, lack.first, (lack.first + lack.last) // 2, lack.last, lack.last + 1])
    steps = steps[(steps >= 0) & (steps <= last - begin)]
    pictures = np.asarray(data.frames[lack.name][begin + steps]).transpose(0, 2, 3, 1)
    axes.imshow(np.concatenate(list(pictures), 1))
    w = pictures.shape[2]
    axes.set_xticks((np.arange(len(steps)) + 0.5) * w, [f"{step / data.fps:.1f} s" for step in steps])
    axes.set_yticks([])
    axes.grid(False)
    still = (steps >= lack.first) & (steps <= lack.last)
    for i in np.flatnonzero(still):
        axes.add_patch(plt.Rectangle((i * w, 0), w - 1, pictures.shape[1] - 1, fill=False, color=ORANGE, lw=2))


def _joint(axes: Any, data: Demonstrations, survey: Survey, times: dict[int, Any], lack: Lack) -> None:
    values, (low, high) = signals(data, lack)
    x = np.arange(len(values)) / (1 if lack.episode is None else data.fps)
    axes.plot(x, values, color=BLUE, lw=1)
    if lack.first is not None:
        axes.axhspan(low, high, color=GREY, alpha=0.2)
        axes.plot(x[lack.first], values[lack.first], "o", color=ORANGE, ms=4)
    axes.set_xlabel("step of all episodes" if lack.episode is None else "seconds", fontsize=7)


def _copy(axes: Any, data: Demonstrations, survey: Survey, times: dict[int, Any], lack: Lack) -> None:
    assert lack.episode is not None
    assert lack.other is not None
    for e, style in ((lack.other, {"color": BLUE, "lw": 2.5}), (lack.episode, {"color": ORANGE, "lw": 1, "ls": "--"})):
        rows = slice(data.starts[e], data.starts[e + 1])
        j = int(np.ptp(data.actions[slice(data.starts[lack.other], data.starts[lack.other + 1])], 0).argmax())
        values = data.actions[rows, j]
        axes.plot(np.arange(len(values)) / data.fps, values, label=f"episode {survey.numbers[e]}", **style)
    axes.set_xlabel(f"seconds; action {data.joint_names[j]}", fontsize=7)
    axes.legend(fontsize=7)


def _task(axes: Any, data: Demonstrations, survey: Survey, times: dict[int, Any], lack: Lack) -> None:
    counts = np.bincount(data.task, minlength=len(data.instructions))
    order = counts.argsort()[:8]
    names = [data.instructions[i] for i in order]
    colours = [ORANGE if name == lack.name else BLUE for name in names]
    axes.barh([name if len(name) < 32 else f"{name[:29]}…" for name in names], counts[order], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("episodes", fontsize=7)


DRAW = {"time": _time, "camera": _camera, "joint": _joint, "range": _joint, "copy": _copy, "task": _task}


def plot_augmentation(data: Demonstrations, augmentation: Any, cameras: Sequence[str], path: Path) -> Path | None:
    """Pictures as they are, beside what an augmentation makes of them: each of its parts alone, at its strength, where
    it says which those are (`alone`), and three times all of it. Under each column by how many grey levels pictures
    change in the mean. None where there is none.
    """
    if isinstance(augmentation, NoAugmentation):
        return None
    sampler = Sampler(data, np.arange(len(data.task)), cameras, 1, 1)
    size = min(SAMPLES, len(data.actions))
    batch = sampler.step(0, 0, size)
    columns: dict[str, Any] = {"as recorded": NoAugmentation()}
    if isinstance(augmentation, CameraAugmentation):
        columns |= augmentation.alone()
    drawn = dict.fromkeys(columns, batch)
    for again in range(3):
        name = f"all of it, {again + 1}"
        columns[name], drawn[name] = augmentation, sampler.step(1 + again, 0, size)
    with plt.rc_context(STYLE | {"axes.grid": False}), torch.no_grad():
        wide = len(columns)
        figure, grid = plt.subplots(size, wide, figsize=(1.35 * wide, 1.4 * size + 0.4), squeeze=False)
        for x, (name, change) in enumerate(columns.items()):
            seen, plain = (apart(one, 2) for one in (change(_with(drawn[name], batch)), batch.observation.images))
            changes = [(mine.float() - was.float()).abs() for mine, was in zip(seen, plain, strict=True)]
            levels = torch.cat([one.flatten() for one in changes]).mean().item()
            for y in range(size):
                axes = grid[y, x]
                axes.imshow(seen[y % len(cameras)][y, -1].permute(1, 2, 0).numpy())
                axes.set_xticks([])
                axes.set_yticks([])
            grid[0, x].set_title(_wrapped(name, 16), fontsize=8)
            grid[-1, x].set_xlabel("" if x == 0 else f"{levels:.1f} grey levels", fontsize=7)
        return save(figure, path)


def _with(draws: Batch, batch: Batch) -> Batch:
    """A batch with another's draws."""
    from dataclasses import replace

    return replace(batch, crop=draws.crop, color=draws.color, key=draws.key)
