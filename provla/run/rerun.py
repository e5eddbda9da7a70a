"""A run again: is its result the same, and if not, what differs between then and now?"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from provla.core.errors import NotRepeated
from provla.core.files import write_json
from provla.core.progress import console
from provla.core.result import Result, read_result
from provla.core.trust import check_stored
from provla.run.train import train

# What may stand beside rerun= on the command line, because it cannot change a result.
BESIDE = ("device", "data_dir", "logger", "trust", "hydra")
TIMES = ("train/steps_per_second", "train/waiting")  # columns of metrics.csv that no two runs share


def rerun(asked: Mapping[str, Any], overrides: Sequence[str], folder: Path) -> float:
    """Runs the configuration that the folder `asked["rerun"]` stores again, in `folder`, and compares.

    asked: the composed configuration, of which the keys of `BESIDE` count where `overrides`, the command line, name
    them. What was found is printed and stands in rerun.json. Returns the objective. `NotRepeated` where the result is
    another; `ValueError` for a folder without a completed run, or for an override that would make it another run.
    """
    source = Path(str(asked["rerun"])).expanduser()
    named = {override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides} - {"rerun"}
    others = [key for key in sorted(named) if key.partition(".")[0].partition("/")[0] not in BESIDE]
    if others:
        raise ValueError(
            f"{others[0]}=… with rerun=…: that is another run; beside rerun= stand only {', '.join(BESIDE)}"
        )
    config, before = _stored(source)
    check_stored(config, source / "config.json", asked.get("trust") or ())
    config |= {"resume": None, "device": asked["device"] if "device" in named else config["device"]}
    if "data_dir" in named:
        config["data_dir"] = asked["data_dir"]
        config["dataset"] |= {"data_dir": asked["data_dir"]} if "data_dir" in config["dataset"] else {}
    if any(key.partition(".")[0] == "logger" for key in named):
        config["logger"] = asked["logger"]
    value = train(config, folder, before.choices or {})
    after = read_result(folder)
    found: dict[str, Any] = {"rerun": str(source), "differs": list(_differences(source, folder, before, after))}
    found |= {"environment": dict(_environments(before, after))}
    write_json(folder / "rerun.json", found | {"same": not found["differs"]})
    _say(source, found)
    if found["differs"]:
        raise NotRepeated(f"the result of {source} did not come out again; see {folder / 'rerun.json'}")
    return value


def _stored(source: Path) -> tuple[dict[str, Any], Result]:
    result = read_result(source)
    if result.status != "completed":
        raise ValueError(f"rerun={str(source)!r} is {result.status}; expected the folder of a completed run")
    try:
        config = json.loads((source / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"rerun={str(source)!r}: its config.json cannot be read ({error})") from error
    if "threads" not in config:
        raise ValueError(f"rerun={str(source)!r} is older than threads=…, so how its sums were rounded is not known")
    return config, result


def _differences(source: Path, folder: Path, before: Result, after: Result) -> Iterator[str]:
    """A line for each part of the result that is not the same."""
    weights = [_digest(place / "policy" / "weights.safetensors") for place in (source, folder)]
    if weights[0] != weights[1]:
        yield f"weights: {weights[0]} → {weights[1]}"
    for key in sorted(before.metrics.keys() | after.metrics.keys()):
        was, now = before.metrics.get(key), after.metrics.get(key)
        if was != now:
            yield f"{key}: {was} → {now}"
    for name, keys in (("metrics.csv", ()), ("episodes.csv", ("task", "episode_seed"))):
        was, now = (_rows(place / name, keys) for place in (source, folder))
        wrong = [n for n, (a, b) in enumerate(zip(was, now, strict=False)) if a != b]
        if wrong or len(was) != len(now):
            first = f", first in row {wrong[0] + 1}" if wrong else ""
            yield f"{name}: {len(wrong)} of {len(was)} rows differ{first}; it has {len(now)} rows now"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "absent"


def _rows(path: Path, keys: Sequence[str]) -> list[dict[str, str]]:
    """Without columns of times; sorted by `keys`, where rows have no order of their own."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: tuple(row.get(key, "") for key in keys))


def _environments(before: Result, after: Result) -> Iterator[tuple[str, list[Any]]]:
    """What the two were made with and on, where that differs: name → then and now."""
    for key in ("commit", "uncommitted", "python"):
        if before.made.get(key) != after.made.get(key):
            yield key, [before.made.get(key), after.made.get(key)]
    for node in ("versions", "machine"):
        was, now = before.made.get(node) or {}, after.made.get(node) or {}
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                yield key, [was.get(key), now.get(key)]


def _say(source: Path, found: Mapping[str, Any]) -> None:
    if not found["differs"]:
        console.print(f"the same: {escape(str(source))} came out again, weights, metrics and episodes, to the last bit")
    else:
        console.print(f"[bold]not the same[/bold] as {escape(str(source))}:")
        for line in found["differs"]:
            console.print(f"  {escape(line)}")
    if found["environment"]:
        table = Table(title="what else differs", title_justify="left")
        for column in ("", "then", "now"):
            table.add_column(column)
        for key, (was, now) in found["environment"].items():
            table.add_row(key, str(was), str(now))
        console.print(table)
    elif found["differs"]:
        console.print(
            "Nothing that was recorded of code, versions and machine differs. On a GPU, trainer.deterministic=true "
            "repeats;"
        )
        console.print("a budget of minutes (trainer.max_minutes) does not.")
