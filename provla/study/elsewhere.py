"""Results that were not made here: any lab's, as a CSV file or as LeRobot's eval_info.json, judged by the same rule."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from provla.core.checks import did_you_mean
from provla.core.result import Objective, Result
from provla.jobs.sweep import Job, Sweep
from provla.study.findings import SCORE
from provla.study.study import Episode, Run, Study

COLUMNS = ("arm", "seed", "task", "episode", "success", "score", "successes", "episodes")
YES, NO = ("1", "true", "1.0"), ("0", "false", "0.0")
EXAMPLE = "arm,seed,task,episode,success"


@dataclass
class Training:
    """One arm's one training: its episodes, or counts alone."""

    episodes: dict[Episode, float] = field(default_factory=dict)
    successes: int = 0
    count: int = 0
    known: float | None = None  # its value, where nothing else is known

    @property
    def value(self) -> float:
        if self.known is not None:
            return self.known
        return float(np.mean(list(self.episodes.values()))) if self.episodes else self.successes / max(1, self.count)


Trainings = dict[tuple[str, int], Training]


def load_results(path: Path, baseline: str | None) -> Study:
    """The results in a CSV file, or in a folder of `<arm>/<seed>/eval_info.json`, as a study. baseline: an arm; null:
    the first one.

    The file's columns: arm, seed; success (0 or 1) or score of a row's episode, with its task and its number where they
    are known; or successes and episodes, counts of a whole training; or those of a `<study>_runs.csv` that provla
    published, whose runs' values are judged. `ValueError` with file, line and way out.
    """
    if not path.exists():
        raise ValueError(f"from={str(path)!r}: no such file or folder")
    found, metric, note = _from_folder(path) if path.is_dir() else _from_csv(path)
    arms = list(dict.fromkeys(arm for arm, _ in found))
    if len(arms) < 2:
        raise ValueError(f"{path} holds one arm only, {arms[0]!r}: a verdict compares at least two")
    if baseline is not None and baseline not in arms:
        raise ValueError(f"baseline={baseline!r} is not among the arms of {path}: {', '.join(arms)}")
    _check_tasks(path, found)
    jobs, runs = [], []
    for (arm, seed), training in found.items():
        job = Job(f"{arm}, seed {seed}", {"arm": arm, "seed": str(seed)}, {"arm": arm}, seed, "", arm)
        result = Result("completed", seed=seed, objective=Objective(metric, training.value))
        jobs.append(job)
        runs.append(Run(job, result, path, dict(sorted(training.episodes.items()))))
    sweep = Sweep(name_of(path), None, "grid", baseline or arms[0], metric, f"results from {path}", jobs)
    return Study(path.with_suffix("") if path.is_file() else path, sweep, runs, [], note)


def name_of(path: Path) -> str:
    """What results are called: their file's name, without what provla adds to it."""
    return path.stem.removesuffix("_runs").removesuffix("_episodes")


def _check_tasks(path: Path, found: Trainings) -> None:
    tasks = {key: {task for task, _ in training.episodes} for key, training in found.items()}
    first, *others = tasks
    for key in others:
        if tasks[key] != tasks[first]:
            differ = ", ".join(sorted(tasks[key] ^ tasks[first])[:4]) or "none"
            raise ValueError(
                f"{path}: {key[0]}, seed {key[1]} and {first[0]}, seed {first[1]} met different tasks (only one of "
                f"them {differ}): rates on different tasks say nothing of the arms; leave those tasks out"
            )


def _from_csv(path: Path) -> tuple[Trainings, str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"from={str(path)!r} cannot be read as CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows under its head")
    if {"arm", "seed", "status", "config_hash"} <= set(columns):
        return _published(path, columns, rows)
    kind = _kind(path, columns)
    found: Trainings = {}
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        arm = (row["arm"] or "").strip()
        if not arm:
            raise ValueError(f"{where}: no arm")
        training = found.setdefault((arm, _whole(row, "seed", where)), Training())
        if kind == "successes":
            _count(training, row, where)
        else:
            _result(training, row, kind, where)
    counted = " Only counts of successes are known." if kind == "successes" else ""
    unnamed = "" if "episode" in columns or counted else " Episodes have no numbers, and are taken in their order."
    return found, SCORE if kind == "score" else "success_rate", f"{path}.{counted}{unnamed}"


def _published(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[Trainings, str, str]:
    """The table of runs that `publish=true` wrote: the objective stands after the status."""
    metric = next((one for one in columns if one.startswith("success_rate")), None) or (
        "trajectory_mse" if "trajectory_mse" in columns else columns[columns.index("status") + 1]
    )
    found: Trainings = {}
    for line, row in enumerate(rows, 2):
        if row["status"] == "completed" and row[metric]:
            try:
                found[row["arm"], int(row["seed"])] = Training(known=float(row[metric]))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no completed run")
    return found, metric, f"{path}, the runs of a published study: single episodes are not known."


def _kind(path: Path, columns: Sequence[str]) -> str:
    for needed in ("arm", "seed"):
        if needed not in columns:
            why = ": without them nothing is known of other trainings" if needed == "seed" else ""
            raise ValueError(
                f"{path} has no column {needed!r}{why}; it has {', '.join(columns) or 'none'}"
                f"{did_you_mean(needed, columns)}. Expected: {EXAMPLE}"
            )
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ValueError(f"{path}: nothing reads its column {unknown[0]!r}; valid: {', '.join(COLUMNS)}")
    kinds = [kind for kind in ("success", "score", "successes") if kind in columns]
    if len(kinds) != 1 or (kinds == ["successes"]) != ("episodes" in columns):
        raise ValueError(
            f"{path} has the columns {', '.join(columns)}; expected one of: success (0 or 1), score, or successes with "
            f"episodes (counts of a training). Such as: {EXAMPLE}"
        )
    return kinds[0]


def _whole(row: Mapping[str, Any], column: str, where: str) -> int:
    text = (row[column] or "").strip()
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{where}: {column}={text!r}; expected a whole number")
    return int(text)


def _count(training: Training, row: Mapping[str, Any], where: str) -> None:
    successes, episodes = _whole(row, "successes", where), _whole(row, "episodes", where)
    if not 0 <= successes <= episodes or not episodes:
        raise ValueError(f"{where}: {successes} successes in {episodes} episodes")
    training.successes += successes
    training.count += episodes


def _result(training: Training, row: Mapping[str, Any], kind: str, where: str) -> None:
    text = (row[kind] or "").strip().lower()
    if kind == "success":
        if text not in (*YES, *NO):
            raise ValueError(
                f"{where}: success={text!r}; expected 0 or 1 (a number between them is a score: column score)"
            )
        value = float(text in YES)
    else:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(f"{where}: score={text!r}; expected a number") from error
        if not np.isfinite(value):
            raise ValueError(f"{where}: score={text!r}; expected a finite number")
    task = (row.get("task") or "all").strip()
    number = _whole(row, "episode", where) if row.get("episode") else sum(t == task for t, _ in training.episodes)
    if (task, number) in training.episodes:
        raise ValueError(f"{where}: episode {number} of {task} stands there twice for this arm and seed")
    training.episodes[task, number] = value


def _from_folder(folder: Path) -> tuple[Trainings, str, str]:
    """LeRobot's results, an eval_info.json per arm and seed."""
    files = sorted(folder.rglob("eval_info.json"))
    if not files:
        raise ValueError(
            f"from={str(folder)!r} holds no eval_info.json; expected <arm>/<seed>/eval_info.json, as lerobot-eval "
            "writes it, or give a CSV file"
        )
    found: Trainings = {}
    for file in files:
        arm, *rest = file.relative_to(folder).parts[:-1] or ("",)
        seed = next((one[0] for part in reversed(rest) if (one := re.findall(r"\d+$", part))), None)
        if not arm or seed is None:
            raise ValueError(
                f"{file}: which arm and seed? Expected {folder}/<arm>/<seed>/eval_info.json, the seed a number or a "
                "name that ends in one, such as film/seed_1"
            )
        if (arm, int(seed)) in found:
            raise ValueError(f"{file}: {arm} with seed {seed} is there twice")
        found[arm, int(seed)] = Training(_episodes(file))
    note = (
        f"LeRobot's eval_info.json in {folder}. Episodes without a seed there are taken by their number in their task, "
        "as lerobot-eval plays the same ones from one seed."
    )
    return found, "success_rate", note


def _episodes(file: Path) -> dict[Episode, float]:
    try:
        info = json.loads(file.read_text())
        if "per_episode" in info:
            episodes = info["per_episode"]
            return {("all", int(one.get("seed") or n)): float(bool(one["success"])) for n, one in enumerate(episodes)}
        return {
            (f"{task['task_group']}/{task['task_id']}", n): float(bool(success))
            for task in info["per_task"]
            for n, success in enumerate(task["metrics"]["successes"])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no eval_info.json of LeRobot: neither per_episode nor per_task with successes ({error})"
        ) from error
