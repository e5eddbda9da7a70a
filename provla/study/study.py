"""A study as its folder holds it: every job with its result, curve and episodes, and what is wrong with any of them."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape

from provla.core.identity import check_study
from provla.core.progress import console
from provla.core.result import Result, Status, read_episodes, read_result
from provla.jobs.sweep import Job, Sweep, find_renamed, load_sweep

Episode = tuple[str, int]  # task, episode seed


@dataclass
class Run:
    """One job of a study. episodes: (task, episode seed) → success, or a score, in that order. endings: how many ended
    how; empty where nobody wrote it down. under: `<factor> <level>` → the same episodes, perturbed. problem: why a run
    that should count does not.
    """

    job: Job
    result: Result
    folder: Path
    episodes: dict[Episode, float] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)
    under: dict[str, dict[Episode, float]] = field(default_factory=dict)
    problem: str = ""

    @property
    def weights(self) -> str:
        """The folder of the run that trained the weights: runs that share it are one training, judged in
        several ways.
        """
        return self.result.trained_by or self.job.folder

    @property
    def status(self) -> str:
        return "damaged" if self.problem else self.result.status

    @property
    def value(self) -> float:
        """The study's objective; nan where there is none."""
        return math.nan if self.problem else self.result.value

    @property
    def metric(self) -> str:
        """The name of what was measured; "" where nothing was."""
        return self.result.objective.name if self.result.objective else ""


@dataclass
class Study:
    """runs in the order they were asked. others: run folders beside them that no sweep asks for. elsewhere: where
    results that were not made here come from, and what is not known of them.
    """

    folder: Path
    sweep: Sweep
    runs: list[Run]
    others: list[str]
    elsewhere: str = ""

    def of(self, arm: str) -> list[Run]:
        return [run for run in self.runs if run.job.arm == arm]

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.status == "completed"]

    @property
    def metric(self) -> str:
        """The name of the objective, as the runs measured it."""
        names = [run.metric for run in self.completed]
        return names[0] if names else self.sweep.objective

    @property
    def simulated(self) -> bool:
        """Whether single episodes in closed loop stand behind the objective."""
        return self.metric.startswith(("success_rate", "score")) and any(run.episodes for run in self.completed)

    @property
    def paired(self) -> bool:
        """Whether all runs met the same episodes."""
        met = [run.episodes.keys() for run in self.completed]
        return all(one == met[0] for one in met)

    @property
    def crossed(self) -> bool:
        """Whether single episodes can be compared: every training met every one."""
        return self.simulated and self.paired

    @property
    def unseen(self) -> bool:
        """Whether it is known that no demonstration starts where a reported episode does: both were drawn here, from
        seeds of their own.
        """
        drawn = {recorded_here(run.folder) for run in self.completed}
        return self.simulated and drawn == {True}

    @property
    def tasks(self) -> list[str]:
        """Those that were simulated, by name."""
        return sorted({task for run in self.completed for task, _ in run.episodes})


def recorded_here(folder: Path) -> bool:
    """Whether a run learned from demonstrations that provla recorded."""
    try:
        target = json.loads((folder / "config.json").read_text())["dataset"]["_target_"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    room, _, name = str(target).rpartition(".")
    return room == "provla.dataset" and name not in ("LeRobotSource", "FakeSource")


def machine_of(run: Run) -> str:
    """What the machine of a run is, as far as it can change a result; empty where the run does not say."""
    found = run.result.made.get("machine")
    return ", ".join(f"{key} {value}" for key, value in sorted(found.items())) if isinstance(found, dict) else ""


def data_of(run: Run) -> str:
    """What a run learned from, in a word."""
    try:
        node = json.loads((run.folder / "config.json").read_text())["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        return "not recorded"
    named = node.get("repo_id") or node.get("root") or str(node.get("_target_", "")).rpartition(".")[2]
    tasks, found = node.get("tasks"), run.result.data or {}
    revision = f" at {found['revision'][:12]}" if found.get("revision") else ""
    if tasks:
        return f"{named}{revision} ({len(tasks)} tasks, {node.get('episodes_per_task')} episodes each)"
    return f"{named}{revision}{f' ({found["episodes"]} episodes)' if found.get('episodes') else ''}"


def outputs_of(study: str) -> Path:
    """Where the jobs of a study lie, if nobody said otherwise."""
    return Path("outputs") / study


def check_started(folder: Path, study: str | None) -> None:
    """`ValueError` where a study's folder is not there."""
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}: the study has not been started here; python -m provla.train -m "
            f"experiments={study or '<study>'} starts it"
        )


def completed_runs(study: str) -> list[Path]:
    """The folders of a study's completed jobs; says which are left out. `ValueError` where it has none."""
    check_study(study)
    folder = outputs_of(study)
    check_started(folder, study)
    found = load_study(folder)
    if not found.completed:
        raise ValueError(f"study={study}: none of its {len(found.runs)} jobs in {folder} is completed")
    left = [f"{run.job.folder} ({run.problem or run.status})" for run in found.runs if run.status != "completed"]
    if left:
        console.print(f"left out of {study}: {escape(', '.join(left))}", soft_wrap=True)
    return [run.folder for run in found.completed]


def load_study(folder: Path) -> Study:
    """`ValueError` where the folder holds no sweep; what is wrong with single runs stands in their `problem`."""
    sweep = load_sweep(folder)
    sweep.jobs = find_renamed(folder, sweep.jobs)
    runs = [_load_run(folder, job) for job in sweep.jobs]
    names = [run.metric for run in runs if run.status == "completed"]
    for run in runs:
        if run.status == "completed" and run.metric != names[0]:
            run.problem = f"its objective is {run.metric}, that of the runs before it {names[0]}"
    asked = {job.folder for job in sweep.jobs}
    others = sorted(
        str(file.parent.relative_to(folder)) for file in folder.glob("*/config.json") if file.parent.name not in asked
    )
    return Study(folder, sweep, runs, others)


def _load_run(folder: Path, job: Job) -> Run:
    result = read_result(folder / job.folder)
    run = Run(job, result, folder / job.folder)
    if result.status == "damaged":
        run.problem = result.error or ""
    if result.status != "completed":
        return run
    if result.config_hash != job.config_hash:
        run.problem = "result.json is of another configuration than the sweep asked for"
    if result.objective is None:
        run.problem = "result.json has no objective"
    if result.success:
        try:
            played = read_episodes(run.folder / "episodes.csv")
            run.episodes = {episode: float(one.success) for episode, one in played.items()}
            run.endings = Counter(one.ending for one in played.values() if one.ending)
            for row in result.perturb or []:
                if "note" not in row:
                    place = run.folder / "perturb" / f"{row['factor']}_{row['level']}"
                    under = read_episodes(place / "episodes.csv").items()
                    run.under[f"{row['factor']} {row['level']}"] = {key: float(one.success) for key, one in under}
            if len(run.episodes) != (counted := result.success["success_rate"]["episodes"]):
                run.problem = f"episodes.csv has {len(run.episodes)} episodes, result.json {counted}"
        except (OSError, KeyError, ValueError, TypeError) as error:
            run.problem = f"episodes.csv cannot be read: {error}"
    return run


def read_curve(folder: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a validation metric from a run's metrics.csv; empty where the run kept none."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            return [
                (int(float(row["step"])), float(row[f"val/{metric}"]))
                for row in csv.DictReader(file)
                if row.get(f"val/{metric}")
            ]
    except (OSError, ValueError, KeyError):
        return []


def check_paired(study: Study) -> None:
    """`ValueError` where runs of a sweep met different episodes: it asked for the same."""
    if study.elsewhere:
        return
    done = sorted(study.completed, key=lambda run: run.job.arm != study.sweep.baseline)
    for run in done[1:]:
        mine, theirs = set(run.episodes), set(done[0].episodes)
        if mine == theirs:
            continue
        task, seed = sorted(mine ^ theirs)[0]
        raise ValueError(
            f"unpaired: {run.job.folder} was evaluated on {len(mine)} episodes and {done[0].job.folder} on "
            f"{len(theirs)}, of which {len(mine & theirs)} are the same (only one of them met {task}, episode seed "
            f"{seed}). A paired comparison needs the same eval_episodes, env.tasks and env.first_seed for all runs: "
            "evaluate them alike, or name another study"
        )


def missing_seeds(study: Study) -> dict[str, list[int]]:
    """Arm → seeds that another arm completed and it did not."""
    done = {arm: {run.job.seed for run in study.of(arm) if run.status == "completed"} for arm in study.sweep.arms}
    every = set().union(*done.values()) if done else set()
    return {arm: sorted(every - seeds) for arm, seeds in done.items() if every - seeds}


def count_states(folder: Path, jobs: Sequence[Job]) -> str:
    """`19 completed, 2 missing`."""
    states = Counter(read_result(folder / job.folder).status for job in jobs)
    order: tuple[Status, ...] = ("completed", "pruned", "failed", "interrupted", "missing", "damaged")
    return ", ".join(f"{states[state]} {state}" for state in order if states[state])


CEILING = 0.95


def ceiling(rate: float) -> str:
    """A warning where a baseline leaves no room to differ."""
    if rate >= CEILING:
        return (
            f"The baseline succeeds in {100 * rate:.0f} % of the episodes: "
            "at this ceiling no arm can be better. Give fewer demonstrations or steps."
        )
    if rate <= 1 - CEILING:
        return (
            f"The baseline succeeds in {100 * rate:.0f} % of the episodes: "
            "on this floor no arm can be worse. Give more demonstrations or steps."
        )
    return ""


def points(difference: float) -> int:
    """A difference of rates in whole points, rounded up: what a design can see for sure."""
    return math.ceil(100 * difference - 1e-9)


def log_end(folder: Path, job: Job) -> None:
    """One line on how a job ended."""
    result = read_result(folder / job.folder)
    found = result.objective
    measured = f"{found.name} {found.value:.4g}" if found and found.value is not None else "nothing measured"
    note = measured if result.status == "completed" else result.stopped or _last_line(result.error or "")
    note = note.removeprefix(f"{result.status}: ")  # said already
    console.print(f"  {result.status}: {escape(f'{job.folder}  {note}')}")


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
