"""A verdict as people read it: Markdown, CSV, LaTeX and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provla.core.files import csv_text, write_bytes, write_text
from provla.study import pictures
from provla.study.study import Run, points
from provla.study.trials import Trial, load_trials
from provla.study.verdict import (
    BETTER,
    COSTS,
    NO_DIFFERENCE,
    NOT_RESOLVABLE,
    UNKNOWN,
    WORSE,
    Arm,
    Rate,
    Verdict,
    reason_of,
    sentence,
)

Cell = tuple[Any, str]  # what it is worth (CSV, sorting), and how it is shown
FEW_TRIALS = 30  # below this, a forest's importances change much from one search to the next
STATES = ("completed", "pruned", "failed", "interrupted", "missing", "damaged")


@dataclass
class Table:
    """note: how to read it."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass
class Report:
    """What a study found, in the order in which it is read. pictures, videos: caption → file."""

    title: str
    question: str
    answer: list[str]
    tables: list[Table]
    problems: list[str]
    notes: list[str]
    facts: dict[str, str]
    pictures: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)


def compose_report(verdict: Verdict, command: str) -> Report:
    """Tables and sentences of a verdict. command: the report's own, as it was typed."""
    study = verdict.study
    searching = study.sweep.kind == "search"
    trials, shares = _search(verdict) if searching else ([], {})
    tables = [_search_table(verdict, trials)] if searching else [_arms_table(verdict)]
    if searching and shares:
        rows: list[list[Cell]] = [[_text(key), _number(share, ".0%")] for key, share in shares.items()]
        done = sum(trial.state == "complete" for trial in trials)
        few = " With so few, it is a hint at most." if done < FEW_TRIALS else ""
        note = f"Mean decrease of impurity of a random forest on {done} complete trials.{few}"
        tables.append(Table("importance", "What mattered", ["parameter", "importance"], rows, note))
    if study.tasks and not searching:
        tables.append(_tasks_table(verdict))
    if verdict.effects:
        rows = [
            [
                _text(row["effect"]),
                _number(row["df"], "d"),
                _number(row["F"], ".2f"),
                _p(row["p"]),
                _number(row["eta_squared"], ".2f"),
            ]
            for row in verdict.effects
        ]
        note = "Analysis of variance, type II, seeds as blocks; p is not corrected."
        tables.append(
            Table("effects", "Main effects and interactions", ["effect", "df", "F", "p", "partial η²"], rows, note)
        )
    if not searching:
        tables += [_costs_table(verdict), _cells_table(verdict)]
    tables.append(_runs_table(verdict))
    commits = sorted({str(run.result.get("commit")) for run in study.completed})
    facts = {
        "sweep": study.sweep.command,
        "report": command,
        "commit": ", ".join(commits) or "none",
        "folder": str(study.folder),
    }
    return Report(
        study.sweep.study or study.folder.name,
        study.sweep.question or "",
        _answer(verdict),
        tables,
        verdict.problems,
        verdict.notes,
        facts,
    )


def draw(verdict: Verdict, report: Report, folder: Path) -> None:
    """Makes the pictures and videos of a verdict in `folder`, and enters them into the report."""
    study, plots = verdict.study, folder / "plots"

    def enter(caption: str, file: Path | None) -> None:
        if file is not None:
            report.pictures[caption] = file

    metric = study.metric.replace("_", " ")
    if study.sweep.kind == "search":
        try:
            trials, shares = _stored(verdict)
        except ValueError:  # stands among the problems already
            trials, shares = [], {}
        enter(
            "Optimisation history",
            pictures.history(trials, verdict.higher_is_better, study.metric, plots / "history.png"),
        )
        enter("Importance of the parameters", pictures.importance(shares, plots / "importance.png"))
        enter(f"Each parameter against {metric}", pictures.slices(trials, study.metric, plots / "slices.png"))
        enter(
            f"Each pair of parameters; the colour is {metric}",
            pictures.pairs(trials, study.metric, plots / "pairs.png"),
        )
        enter(
            "Parallel coordinates",
            pictures.parallel_coordinates(trials, study.metric, plots / "parallel_coordinates.png"),
        )
        enter("Learning curves", pictures.learning_curves(study, plots / "learning_curves.png"))
        return
    enter("Paired differences from the baseline", pictures.forest(verdict, plots / "forest.png"))
    enter("Learning curves, with the band over seeds", pictures.learning_curves(study, plots / "learning_curves.png"))
    enter(
        f"{metric.capitalize()} against the time of a chunk",
        pictures.success_against_time(verdict, plots / "success_against_time.png"),
    )
    enter(
        f"{metric.capitalize()} against sampler steps",
        pictures.quality_against_steps(study, plots / "sampler_steps.png"),
    )
    enter(f"{metric.capitalize()}, by both axes", pictures.two_way(study, plots / "two_way.png"))
    enter("Success by task", pictures.by_task(verdict, plots / "tasks.png"))
    for number, (arm, _) in enumerate(verdict.compared):
        file = pictures.rollouts(study, arm.name, folder / "videos" / f"{number}.mp4")
        if file is not None:
            report.videos[f"{study.sweep.baseline} above, {arm.name} below: the same episode of each task"] = file


# Sentences and tables.


def _answer(verdict: Verdict) -> list[str]:
    study = verdict.study
    if study.sweep.kind == "search":
        best = study.sweep.best
        if not best:
            return ["No trial is completed yet."]
        chosen = ", ".join(f"{key}={_short(value)}" for key, value in best["params"].items())
        return [
            (
                f"Best: trial {best['trial']}, {study.metric} {best['value']:.4g}, with {chosen}; its folder: "
                f"{best['folder']}"
            )
        ]
    if not verdict.compared:
        return ["Nothing can be compared yet."]
    order = (BETTER, WORSE, NO_DIFFERENCE, NOT_RESOLVABLE, UNKNOWN)
    ranked = sorted(verdict.compared, key=lambda pair: (order.index(pair[1].word), -pair[1].difference))
    counts = ", ".join(f"{n} {word}" for word in order if (n := sum(found.word == word for _, found in ranked)))
    head = f"Against {study.sweep.baseline}: {counts}, of {len(ranked)}."
    return [head, *(sentence(arm, found, study.sweep.baseline, verdict.higher_is_better) for arm, found in ranked)]


def _text(value: Any) -> Cell:
    return value, str(value)


def _number(value: Any, form: str) -> Cell:
    return (value, f"{value:{form}}") if value is not None and math.isfinite(value) else (None, "–")


def _p(value: float) -> Cell:
    return (value, "< 0.001") if value < 0.001 else _number(value, ".3f")


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


def _arms_table(verdict: Verdict) -> Table:
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
            _text(arm.name),
            _text("baseline" if isbase else found.word if found else UNKNOWN),
            _interval(verdict, arm.mean, arm.low, arm.high),
        ]
        row += [_rate(arm.success)] if any(other.success.episodes for other in verdict.arms) else []
        if found is None:
            row += [(None, "")] * (5 if paired else 4)
        else:
            row.append(_interval(verdict, found.difference, found.low, found.high, "+"))
            row += [(found.wins, f"{found.wins} : {found.losses}")] if paired else []
            row += [_p(found.p), _p(found.p_holm)]
            resolvable = found.resolvable
            row.append(
                (resolvable, str(points(resolvable)))
                if percent and math.isfinite(resolvable)
                else _number(resolvable, ".3g")
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


def _tasks_table(verdict: Verdict) -> Table:
    tasks = verdict.study.tasks
    rows = [[_text(arm.name), *(_rate(arm.tasks[task]) for task in tasks), _rate(arm.success)] for arm in verdict.arms]
    return Table(
        "tasks",
        "Success by task",
        ["arm", *tasks, "all tasks"],
        rows,
        "All seeds together, with Wilson's 95 % interval.",
    )


def _costs_table(verdict: Verdict) -> Table:
    shown = {
        "trainable": (1e-6, ".2f", " [M]"),
        "total": (1e-6, ".2f", " [M]"),
        "flops_per_sample": (1e-6, ".1f", " [M]"),
    }
    keys = [key for key in COSTS if any(key in arm.costs for arm in verdict.arms)]
    columns = ["arm", *(COSTS[key] + shown.get(key, (1, "", ""))[2] for key in keys)]
    rows: list[list[Cell]] = []
    for arm in verdict.arms:
        row = [_text(arm.name)]
        for key in keys:
            scale, form, _ = shown.get(key, (1.0, ".0f", ""))
            row.append(_number(arm.costs[key] * scale, form) if key in arm.costs else (None, "–"))
        rows.append(row)
    return Table("costs", "Cost", columns, rows, "Means over completed runs, on the machine that ran them.")


def _cells_table(verdict: Verdict) -> Table:
    seeds = sorted({job.seed for job in verdict.study.sweep.jobs})
    rows = []
    for arm in verdict.arms:
        status = {run.job.seed: run for run in verdict.study.of(arm.name)}
        cells = [_cell(verdict, status[seed]) if seed in status else (None, "not asked") for seed in seeds]
        rows.append(
            [
                _text(arm.name),
                *cells,
                _text(", ".join(f"{arm.states[state]} {state}" for state in STATES if arm.states[state])),
            ]
        )
    total = verdict.study.runs
    count = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.status == state for run in total)))
    return Table("cells", f"Every cell: {count}", ["arm", *(f"seed {seed}" for seed in seeds), "in all"], rows)


def _cell(verdict: Verdict, run: Run) -> Cell:
    if run.status != "completed":
        return run.status, run.status
    return _number(
        100 * run.value if verdict.higher_is_better else run.value, ".0f" if verdict.higher_is_better else ".4g"
    )


def _runs_table(verdict: Verdict) -> Table:
    rows: list[list[Cell]] = []
    for run in verdict.study.runs:
        result = run.result
        costs = [
            _number(result.get(key), form)
            for key, form in (("train_steps", "d"), ("train_seconds", ".0f"), ("ms_per_chunk", ".0f"))
        ]
        value = _number(run.value, ".4g")
        rows.append(
            [
                _text(run.job.arm),
                _text(run.job.seed),
                _text(run.status),
                value,
                *costs,
                _text(run.job.folder),
                _text(_brief(reason_of(run))),
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


def _brief(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}…"


def _stored(verdict: Verdict) -> tuple[list[Trial], dict[str, float]]:
    path, name = verdict.study.sweep.storage or ("", "")
    return load_trials(verdict.study.folder / path, name)


def _search(verdict: Verdict) -> tuple[list[Trial], dict[str, float]]:
    try:
        return _stored(verdict)
    except ValueError as error:
        verdict.problems.append(f"{error}")
        return [], {}


def _search_table(verdict: Verdict, trials: Sequence[Trial]) -> Table:
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
        cell = run.result.get("success", {}).get("success_rate", {}) if study.metric == "success_rate" else {}
        low, high = cell.get("low", math.nan), cell.get("high", math.nan)
        steps = _number(run.result.get("train_steps"), "d")
        rows.append(
            [
                _number(numbers.get(run.job.folder, run.job.trial), "d"),
                *(_axis(run.job.axes.get(key, "")) for key in keys),
                _interval(verdict, run.value, low, high),
                _text(run.status),
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


# Forms.


def markdown(report: Report, base: Path, places: dict[Path, Path] | None = None) -> str:
    """The report as Markdown. base: the folder it will lie in; places: where its pictures will lie, if elsewhere than
    now.
    """
    lines = [f"# {report.title}", ""]
    lines += [f"**{report.question}**", ""] if report.question else []
    lines += [
        f"- {line}" if number else f"{line}" + ("\n" if len(report.answer) > 1 else "")
        for number, line in enumerate(report.answer)
    ] + [""]
    if report.problems:
        lines += ["## Problems", "", *(f"- {line}" for line in report.problems), ""]
    for table in report.tables:
        lines += [f"## {table.title}", "", *_markdown_table(table), "", *([table.note, ""] if table.note else [])]
    if report.notes:
        lines += ["## How it was judged", "", *(f"- {line}" for line in report.notes), ""]
    for caption, file in report.pictures.items():
        shown = (places or {}).get(file, file)
        lines += [f"![{caption}]({shown.relative_to(base).as_posix()})", ""]
    lines += [
        f"- {key}: `{value}`" if value.startswith("python") else f"- {key}: {value}"
        for key, value in report.facts.items()
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    cells = [
        [column.replace("|", "\\|") for column in table.columns],
        *([shown.replace("|", "\\|") for _, shown in row] for row in table.rows),
    ]
    widths = [max(len(row[c]) for row in cells) for c in range(len(table.columns))]
    rows = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]


def latex(table: Table) -> str:
    """A table for booktabs."""
    import pandas as pd

    frame = pd.DataFrame([[shown for _, shown in row] for row in table.rows], columns=table.columns)
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text = style.to_latex(
        hrules=True,
        caption=table.title.replace("%", r"\%"),
        label=f"tab:{table.name}",
        column_format="l" * len(table.columns),
        position_float="centering",
    )
    return str(text).replace("−", "$-$").replace("η²", r"$\eta^2$")


def comma_separated(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV, with every column that any of them has; numbers as they are."""
    return csv_text(rows, end="\n")


def arm_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """A row of plain numbers per arm: all that the verdict knows of it."""
    return [_arm_row(verdict, arm) for arm in verdict.arms]


def _arm_row(verdict: Verdict, arm: Arm) -> dict[str, Any]:
    found, isbase = arm.comparison, arm.name == verdict.study.sweep.baseline
    row: dict[str, Any] = {
        "arm": arm.name,
        "verdict": "baseline" if isbase else found.word if found else UNKNOWN,
        "metric": verdict.study.metric,
    }
    row |= {"seeds": len(arm.seeds), "mean": _plain(arm.mean), "low": _plain(arm.low), "high": _plain(arm.high)}
    for name, rate in [("all tasks", arm.success), *arm.tasks.items()]:
        if rate.episodes:
            low, high = rate.interval
            row |= {
                f"{name}: successes": rate.successes,
                f"{name}: episodes": rate.episodes,
                f"{name}: low": _plain(low),
                f"{name}: high": _plain(high),
            }
    if found:
        row |= {
            "difference": _plain(found.difference),
            "difference low": _plain(found.low),
            "difference high": _plain(found.high),
        }
        row |= {
            "only arm": found.wins,
            "only baseline": found.losses,
            "p": _plain(found.p),
            "holm p": _plain(found.p_holm),
            "resolvable": _plain(found.resolvable),
        }
    row |= {key: _plain(value) for key, value in arm.costs.items()}
    return row | {state: arm.states[state] for state in STATES}


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def run_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """A row of plain numbers per run: what it was asked, and what it gave."""
    keys = (
        "train_steps",
        "train_seconds",
        "wall_seconds",
        "flops_per_sample",
        "ms_per_chunk",
        "peak_memory_mb",
        "commit",
        "config_hash",
    )
    rows = []
    for run in verdict.study.runs:
        row: dict[str, Any] = {
            "arm": run.job.arm,
            "seed": run.job.seed,
            **run.job.axes,
            "status": run.status,
            verdict.study.metric: _plain(run.value),
        }
        if "trajectory_mse" in run.result.get("metrics", {}):
            row["trajectory_mse"] = _plain(run.result["metrics"]["trajectory_mse"])
        rows.append(
            row
            | {key: run.result.get(key) for key in keys}
            | {"folder": run.job.folder, "note": _brief(reason_of(run))}
        )
    return rows


def html(report: Report) -> str:
    """One page with everything in it; its policy (CSP) forbids every request."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = (Path(__file__).parent / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    embedded = {
        "pictures": {caption: f"data:image/png;base64,{_encoded(file)}" for caption, file in report.pictures.items()},
        "videos": {caption: f"data:video/mp4;base64,{_encoded(file)}" for caption, file in report.videos.items()},
    }
    return environment.get_template("page.html").render(report=report, script=script, digest=digest, **embedded)


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def write_report(verdict: Verdict, report: Report, folder: Path) -> str:
    """Writes every form into `folder`; returns the Markdown."""
    text = markdown(report, folder)
    write_text(folder / "report.md", text)
    write_text(folder / "arms.csv", comma_separated(arm_rows(verdict)))
    write_text(folder / "runs.csv", comma_separated(run_rows(verdict)))
    write_text(
        folder / "report.tex", "\n".join(latex(table) for table in report.tables if table.rows and table.name != "runs")
    )
    write_text(folder / "report.html", html(report))
    return text


def publish(verdict: Verdict, report: Report, folder: Path, name: str) -> list[Path]:
    """Writes what belongs into version control: `<name>.md`, `<name>.csv`, `<name>_runs.csv` and the pictures in
    `<name>/`.
    """
    places = {file: folder / name / file.name for file in report.pictures.values()}
    for source, target in places.items():
        write_bytes(target, source.read_bytes())
    written = [folder / f"{name}.md", folder / f"{name}.csv", folder / f"{name}_runs.csv"]
    for path, text in zip(
        written,
        (markdown(report, folder, places), comma_separated(arm_rows(verdict)), comma_separated(run_rows(verdict))),
        strict=True,
    ):
        write_text(path, text)
    return [*written, *places.values()]
