"""A report as Markdown, CSV, LaTeX and one HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provla.core.files import csv_text, write_bytes, write_text
from provla.study.findings import UNKNOWN, Arm, Verdict
from provla.study.page import Report
from provla.study.tables import STATES, Table, brief
from provla.study.words import reason_of


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
    pictures = [
        f"![{caption}]({(places or {}).get(file, file).relative_to(base).as_posix()})\n"
        for caption, file in report.pictures.items()
    ]
    lines += pictures[:1]
    for table in report.tables:
        if not table.folded:
            lines += [f"## {table.title}", "", *_markdown_table(table), "", *([table.note, ""] if table.note else [])]
    lines += pictures[1:]
    for table in report.tables:
        if table.folded:
            lines += [f"<details><summary>{table.title}</summary>", "", *_markdown_table(table), ""]
            lines += [*([table.note, ""] if table.note else []), "</details>", ""]
    if report.notes:
        lines += ["## How it was judged", "", *(f"- {line}" for line in report.notes), ""]
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
            "p": _plain(found.p),
            "error": _plain(found.error),
            "df": _plain(found.df),
            "resolvable": _plain(found.resolvable),
            "shared": found.shared,
            "permutation p": _plain(found.permutation),
            "only arm": found.wins,
            "only baseline": found.losses,
            "mcnemar p": _plain(found.mcnemar),
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
        if "trajectory_mse" in run.result.metrics:
            row["trajectory_mse"] = _plain(run.result.metrics["trajectory_mse"])
        flat = run.result.as_json()
        rows.append(row | {key: flat.get(key) for key in keys})
        rows[-1] |= {"folder": run.job.folder, "note": brief(reason_of(run))}
    return rows


def episode_rows(verdict: Verdict) -> list[dict[str, Any]]:
    """A row per episode of every completed run."""
    return [
        {"arm": run.job.arm, "seed": run.job.seed, "task": task, "episode": number, "success": int(success)}
        for run in verdict.study.completed
        for (task, number), success in run.episodes.items()
    ]


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
        "videos": {
            caption: (f"data:video/mp4;base64,{_encoded(file)}", f"data:image/png;base64,{_poster(file)}")
            for caption, file in report.videos.items()
        },
    }
    return environment.get_template("page.html").render(report=report, script=script, digest=digest, **embedded)


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _poster(video: Path) -> str:
    """The frame in a video's middle, as a still picture."""
    import imageio.v3 as iio

    frames = iio.imread(video, plugin="pyav")
    return base64.b64encode(iio.imwrite("<bytes>", frames[len(frames) // 2], extension=".png")).decode()


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
    """Writes what belongs into version control: `<name>.md`, `<name>.csv`, `<name>_runs.csv`, `<name>_episodes.csv`, by
    which anybody can judge the study again (`report from=`), and the pictures in `<name>/`. Of results from elsewhere,
    the verdict alone.
    """
    places = {file: folder / name / file.name for file in report.pictures.values()}
    for source, target in places.items():
        write_bytes(target, source.read_bytes())
    texts = {f"{name}.md": markdown(report, folder, places), f"{name}.csv": comma_separated(arm_rows(verdict))}
    if not verdict.study.elsewhere:
        texts[f"{name}_runs.csv"] = comma_separated(run_rows(verdict))
        if verdict.study.simulated:
            texts[f"{name}_episodes.csv"] = comma_separated(episode_rows(verdict))
    written = [folder / file for file in texts]
    for path, text in zip(written, texts.values(), strict=True):
        write_text(path, text)
    return [*written, *places.values()]
