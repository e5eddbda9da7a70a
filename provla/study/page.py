"""A report: what a study found, in the order in which it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from provla.study import pictures, search_pictures
from provla.study.findings import WORDS, Verdict
from provla.study.study import data_of, machine_of
from provla.study.survival import survival_table
from provla.study.tables import (
    FEW_TRIALS,
    Cell,
    Table,
    _short,
    arms_table,
    cells_table,
    costs_table,
    endings_table,
    number,
    p_value,
    runs_table,
    search_table,
    statistics_table,
    stored,
    tasks_table,
    text,
)
from provla.study.trials import Trial
from provla.study.words import headline, sentence, widest_task


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
    tables = [search_table(verdict, trials)] if searching else [arms_table(verdict)]
    if searching and shares:
        rows: list[list[Cell]] = [[text(key), number(share, ".0%")] for key, share in shares.items()]
        done = sum(trial.state == "complete" for trial in trials)
        few = " With so few, it is a hint at most." if done < FEW_TRIALS else ""
        note = f"Mean decrease of impurity of a random forest on {done} complete trials.{few}"
        tables.append(Table("importance", "What mattered", ["parameter", "importance"], rows, note))
    if study.tasks and not searching:
        tables.append(tasks_table(verdict))
        tables += [table for table in (endings_table(verdict), survival_table(verdict)) if table]
    if verdict.effects:
        rows = [
            [
                text(row["effect"]),
                number(row["df"], "d"),
                number(row["F"], ".2f"),
                p_value(row["p"]),
                number(row["eta_squared"], ".2f"),
            ]
            for row in verdict.effects
        ]
        note = "Analysis of variance, type II, of run values; p is not corrected."
        tables.append(
            Table("effects", "Main effects and interactions", ["effect", "df", "F", "p", "partial η²"], rows, note)
        )
    if not searching:
        tables += [costs_table(verdict), cells_table(verdict)]
    tables.append(runs_table(verdict))
    if verdict.compared:
        tables.insert(1, statistics_table(verdict))
    return Report(
        study.sweep.study or study.folder.name,
        study.sweep.question or "",
        _answer(verdict),
        tables,
        verdict.problems,
        verdict.notes,
        facts_of(verdict, command),
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
            trials, shares = stored(verdict)
        except ValueError:  # stands among the problems already
            trials, shares = [], {}
        enter(
            "Optimisation history",
            search_pictures.history(trials, verdict.higher_is_better, study.metric, plots / "history.png"),
        )
        enter("Importance of the parameters", search_pictures.importance(shares, plots / "importance.png"))
        enter(f"Each parameter against {metric}", search_pictures.slices(trials, study.metric, plots / "slices.png"))
        enter(
            f"Each pair of parameters; the colour is {metric}",
            search_pictures.pairs(trials, study.metric, plots / "pairs.png"),
        )
        enter(
            "Parallel coordinates",
            search_pictures.parallel_coordinates(trials, study.metric, plots / "parallel_coordinates.png"),
        )
        enter("Learning curves", pictures.learning_curves(study, plots / "learning_curves.png"))
        return
    enter("Differences from the baseline", pictures.forest(verdict, plots / "forest.png"))
    enter("Success by task", pictures.by_task(verdict, plots / "tasks.png"))
    enter(
        "Learning curves, each arm against the baseline", pictures.learning_curves(study, plots / "learning_curves.png")
    )
    enter(
        f"{metric.capitalize()} against the time of a chunk",
        pictures.success_against_time(verdict, plots / "success_against_time.png"),
    )
    enter(
        f"{metric.capitalize()} against sampler steps",
        pictures.quality_against_steps(study, plots / "sampler_steps.png"),
    )
    enter(f"{metric.capitalize()}, by both axes", pictures.two_way(study, plots / "two_way.png"))
    for rank, (arm, _) in enumerate(verdict.compared):
        file = pictures.rollouts(study, arm.name, folder / "videos" / f"{rank}.mp4")
        if file is not None:
            report.videos[f"{study.sweep.baseline} above, {arm.name} below: the same episode of each task"] = file


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
    ranked = sorted(verdict.compared, key=lambda pair: (WORDS.index(pair[1].word), -pair[1].difference))
    lines = [headline(verdict), *(sentence(arm, found, verdict) for arm, found in ranked)]
    return [*lines, *([widest] if (widest := widest_task(verdict)) else [])]


def facts_of(verdict: Verdict, command: str) -> dict[str, str]:
    """Where a report comes from: what a reader asks before believing it."""
    study, done = verdict.study, verdict.study.completed
    commits = sorted({str(run.result.made.get("commit")) for run in done})
    machines = sorted({machine for run in done if (machine := machine_of(run))})
    steps = sorted({run.result.train_steps for run in done if run.result.train_steps is not None})
    hours = sum(run.result.wall_seconds or 0.0 for run in done) / 3600
    facts = {"date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"), "sweep": study.sweep.command}
    facts |= {"report": command, "commit": ", ".join(commits) or "none"}
    facts["machine"] = "; ".join(machines) or "not recorded"
    facts["budget"] = (
        f"{' to '.join(f'{step:,}' for step in dict.fromkeys((steps[0], steps[-1])))} training steps a run, "
        if steps
        else ""
    ) + f"{hours:.1f} hours for {len(done)} runs"
    facts["data set"] = "; ".join(sorted({data_of(run) for run in done})) or "none"
    return facts | {"folder": str(study.folder)}


def _search(verdict: Verdict) -> tuple[list[Trial], dict[str, float]]:
    try:
        return stored(verdict)
    except ValueError as error:
        verdict.problems.append(f"{error}")
        return [], {}
