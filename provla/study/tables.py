"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from provla.study.findings import COSTS, UNKNOWN, Rate, Verdict
from provla.study.study import Run, points
from provla.study.trials import Trial, load_trials
from provla.study.words import reason_of

STATES = ("completed", "pruned", "failed", "interrupted", "missing", "damaged")
Cell = tuple[Any, str]  # what it is worth (CSV, sorting), and how it is shown


FEW_TRIALS = 30  # below this, a forest's importances change much from one search to the next


@dataclass
class Table:
    """note: how to read it."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


def text(value: Any) -> Cell:
    return value, str(value)


def number(value: Any, form: str) -> Cell:
    return (value, f"{value:{form}}") if value is not None and math.isfinite(value) else (None, "–")


def p_value(value: float) -> Cell:
    return (value, "< 0.001") if value < 0.001 else number(value, ".3f")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval(verdict: Verdict, middle: float, low: float, high: float, sign: str = "") -> Cell:
    """`54 % (44 – 63)` or `0.112 (0.101 – 0.124)`; differences of rates in points."""
    if not math.isfinite(middle):
        return None, "–"
    percent = verdict.higher_is_better
    unit = ("" if sign else " %") if percent else ""
    one = f"{100 * middle:{sign}.0f}{unit}" if percent else f"{middle:{sign}.4g}"
    if not math.isfinite(low):
        return middle, one
    ends = f"{100 * low:{sign}.0f} – {100 * high:{sign}.0f}" if percent else f"{low:{sign}.4g} – {high:{sign}.4g}"
    return middle, f"{one} ({ends})"


def _rate(rate: Rate) -> Cell:
    if not rate.episodes:
        return None, "–"
    low, high = rate.interval
    return rate.rate, f"{100 * rate.rate:.0f} % ({100 * low:.0f} – {100 * high:.0f})"


def arms_table(verdict: Verdict) -> Table:
    study, percent = verdict.study, verdict.higher_is_better
    paired = study.simulated
    columns = ["arm", "verdict", f"{study.metric.replace('_', ' ')}, mean over seeds (95 %)"]
    columns += ["all episodes (95 % Wilson)"] if any(arm.success.episodes for arm in verdict.arms) else []
    columns += [
        f"difference{' [points]' if percent else ''} (95 %, paired)",
        *(["only arm : only baseline", "McNemar p"] if paired else ["p"]),
        "Holm p",
    ]
    columns += [f"resolvable{' [points]' if percent else ''}", "seeds"]
    rows = []
    for arm in verdict.arms:
        found, isbase = arm.comparison, arm.name == study.sweep.baseline
        row = [
            text(arm.name),
            text("baseline" if isbase else found.word if found else UNKNOWN),
            _interval(verdict, arm.mean, arm.low, arm.high),
        ]
        row += [_rate(arm.success)] if any(other.success.episodes for other in verdict.arms) else []
        if found is None:
            row += [(None, "")] * (5 if paired else 4)
        else:
            row.append(_interval(verdict, found.difference, found.low, found.high, "+"))
            row += [(found.wins, f"{found.wins} : {found.losses}")] if paired else []
            row += [p_value(found.p), p_value(found.p_holm)]
            resolvable = found.resolvable
            row.append(
                (resolvable, str(points(resolvable)))
                if percent and math.isfinite(resolvable)
                else number(resolvable, ".3g")
            )
        rows.append([*row, (len(arm.seeds), ", ".join(map(str, arm.seeds)) or "–")])
    note = (
        "Means over seeds with Student's t; differences with a bootstrap over seeds and episodes; resolvable: the "
        "smallest true difference seen (80 % power)."
        if paired
        else "Means and paired differences over seeds with Student's t; "
        "resolvable: the smallest true difference seen (80 % power)."
    )
    return Table("arms", "Verdict", columns, rows, note)


def tasks_table(verdict: Verdict) -> Table:
    tasks = verdict.study.tasks
    rows = [[text(arm.name), *(_rate(arm.tasks[task]) for task in tasks), _rate(arm.success)] for arm in verdict.arms]
    return Table(
        "tasks",
        "Success by task",
        ["arm", *tasks, "all tasks"],
        rows,
        "All seeds together, with Wilson's 95 % interval.",
    )


def costs_table(verdict: Verdict) -> Table:
    shown = {
        "trainable": (1e-6, ".2f", " [M]"),
        "total": (1e-6, ".2f", " [M]"),
        "flops_per_sample": (1e-6, ".1f", " [M]"),
    }
    keys = [key for key in COSTS if any(key in arm.costs for arm in verdict.arms)]
    columns = ["arm", *(COSTS[key] + shown.get(key, (1, "", ""))[2] for key in keys)]
    rows: list[list[Cell]] = []
    for arm in verdict.arms:
        row = [text(arm.name)]
        for key in keys:
            scale, form, _ = shown.get(key, (1.0, ".0f", ""))
            row.append(number(arm.costs[key] * scale, form) if key in arm.costs else (None, "–"))
        rows.append(row)
    return Table("costs", "Cost", columns, rows, "Means over completed runs, on the machine that ran them.")


def cells_table(verdict: Verdict) -> Table:
    seeds = sorted({job.seed for job in verdict.study.sweep.jobs})
    rows = []
    for arm in verdict.arms:
        status = {run.job.seed: run for run in verdict.study.of(arm.name)}
        cells = [_cell(verdict, status[seed]) if seed in status else (None, "not asked") for seed in seeds]
        rows.append(
            [
                text(arm.name),
                *cells,
                text(", ".join(f"{arm.states[state]} {state}" for state in STATES if arm.states[state])),
            ]
        )
    total = verdict.study.runs
    count = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.status == state for run in total)))
    return Table("cells", f"Every cell: {count}", ["arm", *(f"seed {seed}" for seed in seeds), "in all"], rows)


def _cell(verdict: Verdict, run: Run) -> Cell:
    if run.status != "completed":
        return run.status, run.status
    return number(
        100 * run.value if verdict.higher_is_better else run.value, ".0f" if verdict.higher_is_better else ".4g"
    )


def runs_table(verdict: Verdict) -> Table:
    rows: list[list[Cell]] = []
    for run in verdict.study.runs:
        result = run.result.as_json()
        costs = [
            number(result.get(key), form)
            for key, form in (("train_steps", "d"), ("train_seconds", ".0f"), ("ms_per_chunk", ".0f"))
        ]
        value = number(run.value, ".4g")
        rows.append(
            [
                text(run.job.arm),
                text(run.job.seed),
                text(run.status),
                value,
                *costs,
                text(run.job.folder),
                text(brief(reason_of(run))),
            ]
        )
    columns = [
        "arm",
        "seed",
        "status",
        verdict.study.metric,
        "train steps",
        "train seconds",
        "ms per chunk",
        "folder",
        "note",
    ]
    return Table("runs", "Runs", columns, rows)


def brief(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}…"


def stored(verdict: Verdict) -> tuple[list[Trial], dict[str, float]]:
    path, name = verdict.study.sweep.storage or ("", "")
    return load_trials(verdict.study.folder / path, name)


def search_table(verdict: Verdict, trials: Sequence[Trial]) -> Table:
    """The trials, the best first; from the storage, or from the folders alone where it cannot be read."""
    study = verdict.study
    numbers = {trial.folder: trial.number for trial in trials}
    keys = list(dict.fromkeys(key for job in study.sweep.jobs for key in job.axes))
    sign = -1 if verdict.higher_is_better else 1
    ordered = sorted(
        study.runs, key=lambda run: (not math.isfinite(run.value), sign * run.value if math.isfinite(run.value) else 0)
    )
    rows: list[list[Cell]] = []
    for run in ordered:
        cell = run.result.success.get("success_rate", {}) if study.metric == "success_rate" else {}
        low, high = cell.get("low", math.nan), cell.get("high", math.nan)
        steps = number(run.result.train_steps, "d")
        rows.append(
            [
                number(numbers.get(run.job.folder, run.job.trial), "d"),
                *(_axis(run.job.axes.get(key, "")) for key in keys),
                _interval(verdict, run.value, low, high),
                text(run.status),
                steps,
            ]
        )
    count = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.status == state for run in study.runs)))
    title = f"Trials: {count}, of {study.sweep.n_trials}"
    value = f"{study.metric.replace('_', ' ')}{' (95 % Wilson)' if study.metric == 'success_rate' else ''}"
    return Table("trials", title, ["trial", *keys, value, "status", "train steps"], rows)


def _axis(value: str) -> Cell:
    try:
        return float(value), value if value.lstrip("-").isdigit() else f"{float(value):.3g}"
    except ValueError:
        return value, value
