"""The tables of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from provla.core.world import Ending
from provla.study.findings import COSTS, UNKNOWN, Comparison, Rate, Verdict
from provla.study.study import Run, points
from provla.study.trials import Trial, load_trials
from provla.study.words import reason_of, signed

STATES = ("completed", "pruned", "failed", "interrupted", "missing", "damaged")
Cell = tuple[Any, str]  # what it is worth (CSV, sorting), and how it is shown


FEW_TRIALS = 30  # below this, a forest's importances change much from one search to the next


@dataclass
class Table:
    """note: how to read it. folded: shown when asked for. links: its column `folder` names folders of runs."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = True
    links: bool = False


def text(value: Any) -> Cell:
    return value, str(value)


def number(value: Any, form: str) -> Cell:
    return (value, f"{value:{form}}") if value is not None and math.isfinite(value) else (None, "–")


def p_value(value: float) -> Cell:
    return (value, "< 0.001") if value < 0.001 else number(value, ".3f")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval(verdict: Verdict, middle: float, low: float, high: float) -> Cell:
    """`54 % (44 to 63)` or `0.112 (0.101 to 0.124)`."""
    if not math.isfinite(middle):
        return None, "–"
    percent = verdict.percent
    one = f"{100 * middle:.0f} %" if percent else f"{middle:.4g}"
    if not math.isfinite(low):
        return middle, one
    if percent:
        return middle, f"{one} ({100 * max(0.0, low):.0f} to {100 * min(1.0, high):.0f})"
    return middle, f"{one} ({low:.4g} to {high:.4g})"


def _difference(verdict: Verdict, found: Comparison) -> Cell:
    """`+7 (+1 to +13)`, rates in points."""
    if not math.isfinite(found.difference):
        return None, "–"
    one, low, high = (signed(x, verdict.percent) for x in (found.difference, found.low, found.high))
    return found.difference, one if not math.isfinite(found.low) else f"{one} ({low} to {high})"


def _rate(rate: Rate) -> Cell:
    if not rate.episodes:
        return None, "–"
    low, high = rate.interval
    return rate.rate, f"{100 * rate.rate:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def arms_table(verdict: Verdict) -> Table:
    """The one table: every arm with its word, what it reached, how far from the baseline, and what it costs."""
    study, percent = verdict.study, verdict.percent
    costs = {"ms_per_chunk": ("ms per chunk", 1.0, ".0f"), "train_seconds": ("train [min]", 1 / 60, ".1f")}
    costs["trainable"] = "trained [M]", 1e-6, ".2f"
    shown = {key: how for key, how in costs.items() if any(key in arm.costs for arm in verdict.arms)}
    metric = "success" if percent else study.metric.replace("_", " ")
    columns = ["arm", "verdict", f"{metric} (95 %)", f"difference{' [points]' if percent else ''}", "trainings"]
    columns += [title for title, _, _ in shown.values()]
    rows = []
    for arm in verdict.arms:
        found, isbase = arm.comparison, arm.name == study.sweep.baseline
        row = [text(arm.name), text("baseline" if isbase else found.word if found else UNKNOWN)]
        row += [_interval(verdict, arm.mean, arm.low, arm.high)]
        row += [_difference(verdict, found) if found else (None, ""), (len(arm.seeds), str(len(arm.seeds)))]
        for key, (_, scale, form) in shown.items():
            row.append(number(arm.costs[key] * scale, form) if key in arm.costs else (None, "–"))
        rows.append(row)
    note = (
        "Mean over trainings with its interval on these episodes; differences with intervals that hold for all arms at "
        "once, over new trainings" + (" and new episodes." if study.simulated else ".")
    )
    return Table("arms", "Verdict", columns, rows, note, folded=False)


def statistics_table(verdict: Verdict) -> Table:
    """What stands behind each word, and what stands beside the rule."""
    percent, paired = verdict.percent, any(found.wins is not None for _, found in verdict.compared)
    unit = " [points]" if percent else ""
    columns = ["arm", "p", f"standard error{unit}", "degrees of freedom", f"seen at 80 %{unit}", "seeds", "shared"]
    columns += ["permutation p"]
    columns += ["these checkpoints alone: only arm : only baseline", "McNemar p"] if paired else []
    scale = 100 if percent else 1
    rows = []
    for arm, found in verdict.compared:
        seen = found.resolvable
        row = [text(arm.name), p_value(found.p), number(scale * found.error, ".3g"), number(found.df, ".1f")]
        row.append((seen, str(points(seen))) if percent and math.isfinite(seen) else number(seen, ".3g"))
        row += [(len(found.seeds), ", ".join(map(str, found.seeds))), text(found.shared or "nothing")]
        row.append(p_value(found.permutation))
        if paired and found.wins is not None:
            row += [(found.wins, f"{found.wins} : {found.losses}"), p_value(found.mcnemar)]
        elif paired:
            row += [(None, "–"), (None, "–")]
        rows.append(row)
    note = (
        "p: adjusted for all comparisons. Permutation: every arrangement of the runs, a check without any normal "
        "distribution; with three trainings of each arm it cannot fall below 0.1."
    )
    if paired:
        note += " McNemar's test takes the episodes of these checkpoints for all there is: it says nothing of others."
    return Table("statistics", "What stands behind the words", columns, rows, note)


def tasks_table(verdict: Verdict) -> Table:
    tasks = verdict.study.tasks
    rows = [[text(arm.name), *(_rate(arm.tasks[task]) for task in tasks), _rate(arm.success)] for arm in verdict.arms]
    return Table(
        "tasks",
        "Success by task",
        ["arm", *tasks, "all tasks"],
        rows,
        "All trainings together, with Wilson's 95 % interval: what these checkpoints do, no claim about others.",
    )


def endings_table(verdict: Verdict) -> Table | None:
    """How the episodes of all trainings ended; None where no run wrote it down."""
    ended = {arm.name: sum((run.endings for run in verdict.study.of(arm.name)), Counter()) for arm in verdict.arms}
    kinds = [kind for kind in get_args(Ending) if any(kind in own for own in ended.values())]
    if not kinds:
        return None
    rows = [
        [text(name), *((own[kind], f"{own[kind]} ({own[kind] / max(1, own.total()):.0%})") for kind in kinds)]
        for name, own in ended.items()
    ]
    note = (
        "Opposite: what was done is the opposite of what was said. Unsafe: the robot, or the physics, left what it may "
        "do. Timeout: the last allowed control step."
    )
    return Table("endings", "How episodes ended", ["arm", *kinds], rows, note)


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
    return _value(verdict, run)


def _value(verdict: Verdict, run: Run) -> Cell:
    if not math.isfinite(run.value):
        return None, "–"
    return run.value, f"{100 * run.value:.0f} %" if verdict.percent else f"{run.value:.4g}"


def runs_table(verdict: Verdict) -> Table:
    rows: list[list[Cell]] = []
    for run in verdict.study.runs:
        result = run.result.as_json()
        costs = [
            number(result.get(key), form)
            for key, form in (("train_steps", "d"), ("train_seconds", ".0f"), ("ms_per_chunk", ".0f"))
        ]
        rows.append(
            [
                text(run.job.arm),
                text(run.job.seed),
                text(run.status),
                _value(verdict, run),
                *costs,
                text(run.job.folder),
                text(brief(reason_of(run))),
            ]
        )
    columns = [
        "arm",
        "seed",
        "status",
        verdict.study.metric.replace("_", " "),
        "train steps",
        "train seconds",
        "ms per chunk",
        "folder",
        "note",
    ]
    return Table("runs", "Runs", columns, rows, links=True)


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
    return Table("trials", title, ["trial", *keys, value, "status", "train steps"], rows, folded=False)


def _axis(value: str) -> Cell:
    try:
        return float(value), value if value.lstrip("-").isdigit() else f"{float(value):.3g}"
    except ValueError:
        return value, value
