"""python -m provla.analyze: what is in a data set, as text and as a picture; with check=true, whether it is what it
says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.command.entry import command


def check(source: Any, name: str) -> None:
    """Reads every file and frame cache again and lists what is wrong; `ValueError` where there is something."""
    from provla.core.progress import console

    if not hasattr(source, "inspect"):
        raise ValueError(f"dataset={name} has no files to check")
    found = source.inspect(fresh=True, thorough=True)
    _list_checked(found)
    for line in found.notes:
        console.print(line)
    if not found.problems and not found.rebuilt:
        console.print("nothing is wrong")
        return
    _list_problems(found)
    raise ValueError(
        f"{len(found.problems) + len(found.rebuilt)} things are wrong with {found.source}, in {len(found.bad)} episodes"
    )


def _list_checked(found: Any) -> None:
    from rich.table import Table

    from provla.core.progress import console
    from provla.dataset.stored import Stored

    table = Table(title=f"{found.source}, checked", title_justify="left")
    for column in ("what", "how much", "against", "wrong"):
        table.add_column(column, justify="right" if column == "wrong" else "left")
    tables, files = [p for p in found.problems if p in found.contents.problems], len(found.sums.wrong)
    rows, cameras = len(found.contents.rows), ", ".join(camera.name for camera in found.cameras)
    origin = found.sums.origin or "nothing: neither recorded here nor fetched from the Hub"
    told = "each other, meta/episodes, meta/stats.json"
    pictures = "their decoder, meta/info.json, meta/episodes"
    caches = sum(not isinstance(one, Stored) for one in found.frames.values())
    for row in (
        ("files", len(found.sums), origin, files),
        ("rows", f"{rows} of {len(found.contents.starts) - 1} episodes", told, len(tables)),
        ("pictures", f"{rows} pictures of {cameras}", pictures, len(found.problems) - len(tables) - files),
        ("frame caches", caches, "their sha256", len(found.rebuilt)),
    ):
        table.add_row(*map(str, row))
    console.print(table)


def _list_problems(found: Any) -> None:
    from rich.table import Table

    from provla.core.progress import console

    table = Table(title="wrong", title_justify="left")
    for column in ("file", "episode", "frame", "what"):
        table.add_column(column, justify="right" if column in ("episode", "frame") else "left", overflow="fold")
    for problem in found.problems:
        where = ("" if at is None else str(at) for at in (problem.episode, problem.frame))
        table.add_row(problem.file, *where, problem.what)
    for cache in found.rebuilt:
        table.add_row("frame cache", "", "", f"{cache}; made again")
    console.print(table)


@command("analyze")
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/analyze.yaml."""
    import numpy as np
    from rich.table import Table

    from provla.core.build import build
    from provla.core.progress import console
    from provla.run.plots import plot_dataset

    source = build(config["dataset"], "dataset")
    if config["check"]:
        check(source, choices["dataset"])
        return
    data = source.load()
    _, val = data.split(source.val_fraction, source.split_seed)
    lengths = np.diff(data.starts)
    console.print(
        f"{data.source}: {len(lengths)} episodes, {len(data.actions)} steps at {data.fps:g} Hz, cameras "
        f"{', '.join(data.frames)} {data.image_size}"
    )
    table = Table(title="tasks", title_justify="left")
    for column in ("instruction", "episodes", "training", "validation", "shortest", "median", "longest"):
        table.add_column(column, justify="left" if column == "instruction" else "right")
    by_task, val_by_task = {}, {}
    for task, text in enumerate(data.instructions):
        mine = lengths[data.task == task]
        held = int((data.task[val] == task).sum())
        by_task[text], val_by_task[text] = mine, held
        table.add_row(
            text, *map(str, (len(mine), len(mine) - held, held, mine.min(), f"{np.median(mine):g}", mine.max()))
        )
    console.print(table)
    for what, values, names in (
        ("actions", data.actions, data.joint_names),
        ("state", data.state, [str(i) for i in range(data.state.shape[1])]),
    ):
        table = Table(title=f"{what}, in the robot's units", title_justify="left")
        for column in ("joint" if what == "actions" else "dimension", "min", "1 %", "mean", "99 %", "max", "std"):
            table.add_column(column, justify="right")
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        for j, name in enumerate(names):
            column = values[:, j]
            table.add_row(
                name, *(f"{x:.3f}" for x in (column.min(), low[j], column.mean(), high[j], column.max(), column.std()))
            )
        console.print(table)
    console.print(
        f"picture: {plot_dataset(by_task, val_by_task, data.actions, data.joint_names, folder / 'dataset.png')}"
    )


if __name__ == "__main__":
    main()
