"""A study as its folder holds it: every job with its result, curve and episodes, and what is wrong with any of them."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from provla.core.progress import console
from provla.core.result import Result, Status, read_result
from provla.jobs.sweep import Job, Sweep, find_renamed, load_sweep
from provla.statistics import smallest_difference, spread_of_seeds

Episode = tuple[str, int]  # task, episode seed


@dataclass
class Run:
    """One job of a study. episodes: (task, episode seed) → success, in that order. problem: why a run that should count
    does not.
    """

    job: Job
    result: Result
    folder: Path
    episodes: dict[Episode, bool] = field(default_factory=dict)
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
    """runs in the order they were asked. others: run folders beside them that no sweep asks for."""

    folder: Path
    sweep: Sweep
    runs: list[Run]
    others: list[str]

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
        """Whether the objective is a rate of successes in closed loop, so that episodes can be paired."""
        return self.metric.startswith("success_rate") and any(run.episodes for run in self.completed)

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
    return str(target).rpartition(".")[2] in ("MetaworldSource", "RecordedSource")


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
            run.episodes = read_episodes(run.folder / "episodes.csv")
            if len(run.episodes) != (counted := result.success["success_rate"]["episodes"]):
                run.problem = f"episodes.csv has {len(run.episodes)} episodes, result.json {counted}"
        except (OSError, KeyError, ValueError, TypeError) as error:
            run.problem = f"episodes.csv cannot be read: {error}"
    return run


def read_episodes(path: Path) -> dict[Episode, bool]:
    """(task, episode seed) → success, sorted, so that no verdict depends on the order of the rows. `ValueError` for an
    episode that stands there twice.
    """
    found: dict[Episode, bool] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            episode = row["task"], int(row["episode_seed"])
            if episode in found:
                raise ValueError(f"{episode[0]}, episode seed {episode[1]} stands there twice")
            found[episode] = row["success"] == "1"
    return dict(sorted(found.items()))


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
    """`ValueError` where runs met different episodes, so that nothing can be paired."""
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


def episodes_of(config: Mapping[str, Any]) -> int:
    """Closed-loop episodes of a run with this configuration; 0 where nothing is simulated."""
    env = config["env"]
    return len(env["tasks"]) * env["episodes_per_task"] if "tasks" in env else 0


def announce(sweep: Sweep, folder: Path, episodes: int | None) -> None:
    """What a sweep is about to do, and what its design can resolve. episodes: of a run; None: not a comparison
    of arms.
    """
    seeds = sorted({job.seed for job in sweep.jobs})
    if sweep.question:
        console.print(f"[bold]{escape(sweep.question)}[/bold]")
    what = (
        f"{len(sweep.jobs)} of {sweep.n_trials} trials"
        if sweep.kind == "search"
        else f"{len(sweep.jobs)} jobs ({len(sweep.arms)} arms, {len(seeds)} seeds)"
    )
    states = f": {count_states(folder, sweep.jobs)}" if sweep.jobs else ""
    console.print(f"{sweep.study or 'sweep'}: {what} in {folder}{states}")
    if episodes and len(sweep.arms) > 1:
        console.print(resolution(len(seeds), episodes, len(sweep.arms) - 1))


def plan_sweep(sweep: Sweep, folder: Path, episodes: int, pilot: Path | None) -> None:
    """Prints what a sweep will do, how long it may take, and what it can resolve; a pilot run, or what `folder` holds,
    makes that sharper.

    `ValueError` where the pilot is no completed run with closed-loop episodes.
    """
    announce(sweep, folder, None if sweep.kind == "search" else episodes)
    done = [result for job in sweep.jobs if (result := read_result(folder / job.folder)).status == "completed"]
    if sweep.kind == "search":
        for axis in sweep.space:
            console.print(f"  {escape(axis)}")
        if episodes:
            console.print(
                f"two trials are told apart from {points(smallest_difference(1, episodes))} points on: 1 seed × "
                f"{episodes} episodes (80 % power)"
            )
    _announce_time(sweep, folder, done)
    if not episodes or (sweep.kind == "search" and pilot is None):
        return
    rates = _pilot_rates(sweep, folder) if pilot is None else [_pilot_rate(pilot)]
    if not rates:
        console.print(
            "no pilot yet: one run of the baseline (pilot=<its folder>) says whether there is room to differ from "
            f"{sweep.baseline or 'it'}"
        )
        return
    rate, seeds = float(np.mean(rates)), max(1, len({job.seed for job in sweep.jobs}))
    console.print(f"pilot: success {100 * rate:.0f} % in {len(rates)} run{'s' * (len(rates) > 1)}")
    console.print(
        resolution(seeds, episodes, max(1, len(sweep.arms) - 1), rate, spread_of_seeds(rates, episodes))
        + " at that rate"
    )
    if warning := ceiling(rate):
        console.print(f"[bold]{escape(warning)}[/bold]")


def _announce_time(sweep: Sweep, folder: Path, done: Sequence[Result]) -> None:
    """What is left takes how long, and which limit suits jobs that hang."""
    seconds = [result.wall_seconds for result in done if result.wall_seconds is not None]
    if seconds and len(done) < len(sweep.jobs):
        left, each = len(sweep.jobs) - len(done), float(np.mean(seconds)) / 60
        console.print(
            f"{left} jobs to do: about {left * each:.0f} minutes one after another, at the {each:.1f} minutes that the "
            "finished ones took"
        )
    here = [read_result(file.parent) for file in folder.glob("*/result.json")]
    if longest := max((result.wall_seconds or 0.0 for result in here if result.status == "completed"), default=0.0):
        limit = max(1, math.ceil(3 * longest / 60))
        console.print(
            f"for jobs that hang: hydra.sweeper.timeout={limit} (minutes), three times what the longest finished run "
            "took"
        )


def _pilot_rates(sweep: Sweep, folder: Path) -> list[float]:
    """Success of the baseline's runs that are there already."""
    here = [read_result(folder / job.folder) for job in sweep.jobs if job.arm == sweep.baseline]
    return [
        result.success["success_rate"]["rate"] for result in here if result.status == "completed" and result.success
    ]


def _pilot_rate(folder: Path) -> float:
    result = read_result(folder)
    if result.status != "completed" or not result.success:
        found = result.status if result.status != "completed" else "without closed-loop episodes"
        raise ValueError(
            f"pilot={str(folder)!r} is {found}; expected the folder of a completed run that was evaluated in simulation"
        )
    return result.success["success_rate"]["rate"]


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


def resolution(seeds: int, episodes: int, comparisons: int, rate: float = 0.5, spread: float = 0.0) -> str:
    """`3 seeds × 100 episodes resolve 12 points`, and with Holm's correction where there are several comparisons."""
    alone = smallest_difference(seeds, episodes, rate, spread)
    text = f"{seeds} seed{'s' * (seeds > 1)} × {episodes} episodes resolve {points(alone)} points"
    if comparisons > 1:
        corrected = points(smallest_difference(seeds, episodes, rate, spread, comparisons))
        text += f", {corrected} with Holm's correction for {comparisons} comparisons"
    return text + " (80 % power)"


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
