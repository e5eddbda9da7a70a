"""python -m provla.analyze: what is in a data set and what it lacks, as text and in pictures; with check=true, whether
it is what it says, and an exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provla.command.entry import command
from provla.core.checks import Count, Natural

COLUMNS = ("kind", "episode", "time", "what", "what to do")
SHOWN = 10  # findings of a kind in the table; lacks.csv has them all


@dataclass(frozen=True)
class Asked:
    """The values at the root of conf/analyze.yaml."""

    check: bool
    min_episodes: Natural
    look_frames: Count


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


def _list_lacks(found: Any, fps: float, whole: int) -> None:
    from rich.table import Table

    from provla.core.progress import console

    if found.looked < whole:
        console.print(f"pictures of {found.looked} of {whole} episodes were looked at (look_frames=… for more)")
    if not found.lacks:
        console.print("nothing is lacking: clocks, cameras, joints, ranges, copies and tasks are as they should be")
        return
    table = Table(title=f"lacking: {len(found.lacks)}, the first {SHOWN} of each kind", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("episode", "time") else "left", overflow="fold")
    shown: dict[str, int] = {}
    for lack in found.lacks:
        shown[lack.kind] = shown.get(lack.kind, 0) + 1
        if shown[lack.kind] <= SHOWN:
            table.add_row(lack.kind, found.number(lack) or "all", lack.time(fps), lack.what, lack.remedy)
    console.print(table)


def _write_lacks(found: Any, fps: float, path: Path) -> None:
    from provla.core.files import csv_text, write_text

    rows = [(x.kind, found.number(x), x.time(fps), x.what, x.remedy) for x in found.lacks]
    write_text(path, csv_text([dict(zip(COLUMNS, row, strict=True)) for row in rows]))


def _inspect(source: Any, config: dict[str, Any]) -> tuple[Any, Any]:
    """What was found in the files, None where a source has none, and the episodes that are left, None where none are.
    Lists what is wrong.
    """
    from provla.core.progress import console

    if not hasattr(source, "inspect"):
        if config["check"]:
            console.print("this source has no files to check")
        return None, source.load()
    found = source.inspect(fresh=config["check"], thorough=True)
    if config["check"]:
        _list_checked(found)
    for line in found.notes:
        console.print(line)
    if found.problems or found.rebuilt:
        _list_problems(found)
    elif config["check"]:
        console.print("nothing is wrong")
    unread = any(problem.episode is None for problem in found.problems) or found.bad.intersection(found.episodes)
    if unread or not found.episodes:
        console.print("what is lacking is looked for where this is put right, or with dataset.bad_episodes=skip")
        return found, None
    return found, source.demonstrations(found)


def _lacks(source: Any, found: Any, data: Any, config: dict[str, Any], folder: Path) -> Any:
    """Looks for what the data lack, lists and draws it."""
    import numpy as np

    from provla.core.progress import console
    from provla.dataset.lacks import Survey, jumps, survey

    clocks = [] if found is None else jumps(found.contents)
    numbers = range(len(data.task)) if found is None else found.episodes
    names = [f"state{i}" for i in range(data.state.shape[1])]
    if found is not None:
        info = found.contents.info
        names = [name for key in source.state_keys for name in info.names(key)[0]]
    seen = survey(data, numbers, config["min_episodes"], config["look_frames"], names)
    seen = Survey([*clocks, *seen.lacks], seen.looked, seen.numbers)
    _list_lacks(seen, data.fps, len(data.task))
    if seen.lacks:
        from provla.run.survey import plot_lacks

        times: dict[int, Any] = {}
        for e in [lack.episode for lack in clocks if lack.episode is not None]:
            rows = slice(*found.contents.starts[e : e + 2])
            times[e] = np.asarray(found.contents.rows.numbers("timestamp")[rows])
        _write_lacks(seen, data.fps, folder / "lacks.csv")
        console.print(f"picture: {plot_lacks(data, seen, times, folder / 'lacks.png')}")
    return seen


def _describe(source: Any, data: Any, folder: Path) -> None:
    import numpy as np
    from rich.table import Table

    from provla.core.cameras import in_words
    from provla.core.progress import console
    from provla.run.plots import plot_dataset

    _, val = data.split(source.val_fraction, source.split_seed)
    lengths = np.diff(data.starts)
    one = f"{', '.join(data.frames)} {data.image_size}"
    cameras = in_words(data.sizes) if isinstance(data.image_size, dict) else one
    console.print(
        f"{data.source}: {len(lengths)} episodes, {len(data.actions)} steps at {data.fps:g} Hz, cameras {cameras}"
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


def _examine(source: Any, config: dict[str, Any], folder: Path, name: str = "") -> tuple[Any, str]:
    """Describes a data set, or a mix's source of that name. Its demonstrations, None where there are none, and what an
    exit code is to say: what is wrong and, where that was asked for, lacking; empty where nothing is.
    """
    from provla.core.progress import console
    from provla.dataset.inspection import report

    if name:
        console.rule(f"source {name}", align="left")
        folder.mkdir(parents=True, exist_ok=True)
    found, data = _inspect(source, config)
    problems = [] if found is None else [*found.problems, *found.rebuilt]
    lacks = []
    if data is not None:
        _describe(source, data, folder)
        lacks = _lacks(source, found, data, config, folder).lacks
    if config["check"] and (problems or lacks):
        wrong = (
            f"{len(problems)} things are wrong with {found.source}, in {len(found.bad)} episodes" if problems else ""
        )
        lacking = f"{len(lacks)} things are lacking" if lacks else ""
        return data, "; ".join(filter(None, (wrong, lacking)))
    if found is not None and found.problems and (data is None or source.bad_episodes == "fail"):
        return data, report(found, [])
    return data, ""


def _examine_each(mix: Any, config: dict[str, Any], folder: Path) -> tuple[Any, str]:
    """`_examine` of each source of a mix, in its own folder, and of what they are together."""
    from provla.core.progress import console

    wrong = {}
    for name, source in mix.each().items():
        try:
            _, wrong[name] = _examine(source, config, folder / name, name)
        except ValueError as error:  # is no reason not to look at the others
            wrong[name] = str(error)
    console.rule("the mix", align="left")
    data = None
    try:
        data = mix.load()
        _describe(mix, data, folder)
    except ValueError as error:
        if not any(wrong.values()):
            wrong["the mix"] = str(error)
        console.print("what the sources are together is shown once each can be read, and goes with the others")
    return data, "; ".join(f"{name}: {said}" for name, said in wrong.items() if said)


@command("analyze")
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/analyze.yaml."""
    from torch import nn

    from provla.core.build import build
    from provla.core.checks import check_values
    from provla.core.progress import console

    check_values(Asked, {key: config[key] for key in Asked.__annotations__}, "")
    augmentation = build(config["augmentation"], "augmentation", nn.Module)
    source = build(config["dataset"], "dataset")
    data, wrong = (_examine_each if hasattr(source, "each") else _examine)(source, config, folder)
    if data is not None and choices.get("augmentation", "none") != "none":
        from provla.run.survey import plot_augmentation

        sheet = plot_augmentation(data, augmentation, list(data.frames), folder / "augmentation.png")
        console.print(f"picture: {sheet}")
    if wrong:
        raise ValueError(wrong)


if __name__ == "__main__":
    main()
