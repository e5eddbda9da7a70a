"""python -m provla.analyze: what is in a data set, as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.command import command


@command("analyze")
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/analyze.yaml."""
    import numpy as np
    from rich.table import Table

    from provla.build import build
    from provla.plots import plot_dataset
    from provla.progress import console

    source = build(config["dataset"], "dataset")
    data = source.load()
    _, val = data.split(source.val_fraction, source.split_seed)
    lengths = np.diff(data.starts)
    console.print(f"{data.source}: {len(lengths)} episodes, {len(data.actions)} steps at {data.fps:g} Hz, cameras {', '.join(data.frames)} {data.image_size}")
    table = Table(title="tasks", title_justify="left")
    for column in ("instruction", "episodes", "training", "validation", "shortest", "median", "longest"):
        table.add_column(column, justify="left" if column == "instruction" else "right")
    by_task, val_by_task = {}, {}
    for task, text in enumerate(data.instructions):
        mine = lengths[data.task == task]
        held = int((data.task[val] == task).sum())
        by_task[text], val_by_task[text] = mine, held
        table.add_row(text, *map(str, (len(mine), len(mine) - held, held, mine.min(), f"{np.median(mine):g}", mine.max())))
    console.print(table)
    for what, values, names in (("actions", data.actions, data.joint_names), ("state", data.state, [str(i) for i in range(data.state.shape[1])])):
        table = Table(title=f"{what}, in the robot's units", title_justify="left")
        for column in ("joint" if what == "actions" else "dimension", "min", "1 %", "mean", "99 %", "max", "std"):
            table.add_column(column, justify="right")
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        for j, name in enumerate(names):
            column = values[:, j]
            table.add_row(name, *(f"{x:.3f}" for x in (column.min(), low[j], column.mean(), high[j], column.max(), column.std())))
        console.print(table)
    console.print(f"picture: {plot_dataset(by_task, val_by_task, data.actions, data.joint_names, folder / 'dataset.png')}")


if __name__ == "__main__":
    main()
