"""What a study found: per arm its means, its paired difference from the baseline, its costs, and one word.

Where the objective is a success rate, arms are paired on seeds and episodes; else on seeds. The word is

    better, worse        the interval of the paired difference excludes 0, Holm's p is below 0.05, and there are two
    seeds at least no difference found  neither, and the design would have seen a difference of the margin in four of
    five studies not resolvable       neither, and it would not have
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from provla.statistics import (
    Array,
    detectable,
    factorial,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_t,
    rank_correlation,
    smallest_difference,
    spread_of_seeds,
    wilson,
)
from provla.study.study import Episode, Run, Study, ceiling, check_paired, missing_seeds

ALPHA = 0.05
BETTER, WORSE, NO_DIFFERENCE, NOT_RESOLVABLE, UNKNOWN = (
    "better",
    "worse",
    "no difference found",
    "not resolvable",
    "no result",
)
COSTS = {
    "trainable": "trainable parameters",
    "total": "parameters",
    "flops_per_sample": "FLOPs per sample",
    "train_seconds": "train seconds",
    "ms_per_chunk": "ms per chunk",
    "peak_memory_mb": "peak memory [MB]",
    "peak_gpu_memory_mb": "peak GPU memory [MB]",
}


@dataclass(frozen=True)
class Rate:
    """A success rate over all episodes of all seeds, with its Wilson interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)


@dataclass
class Comparison:
    """An arm against the baseline, on the seeds that both completed; differences are arm − baseline, in the objective's
    units.

    wins, losses: pairs of episodes that only the arm, only the baseline, succeeded in. resolvable: the smallest true
    difference that this comparison finds with 80 % power under Holm's correction.
    """

    seeds: list[int]
    difference: float
    low: float
    high: float
    p: float
    resolvable: float
    wins: int | None = None
    losses: int | None = None
    p_holm: float = math.nan
    word: str = UNKNOWN


@dataclass
class Arm:
    """One row of the verdict. mean, low, high: the objective over seeds, with its interval by Student's t."""

    name: str
    seeds: list[int]
    mean: float
    low: float
    high: float
    states: Counter[str]
    success: Rate
    tasks: dict[str, Rate]
    costs: dict[str, float]
    comparison: Comparison | None = None


@dataclass
class Verdict:
    """effects: of a factorial grid, per axis and pair of axes. problems: what is wrong with the study. notes: what a
    reader should know.
    """

    study: Study
    margin: float
    arms: list[Arm]
    effects: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def higher_is_better(self) -> bool:
        return is_rate(self.study.metric)

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == self.study.sweep.baseline), None)

    @property
    def compared(self) -> list[tuple[Arm, Comparison]]:
        return [(arm, arm.comparison) for arm in self.arms if arm.comparison]


def is_rate(metric: str) -> bool:
    """Whether a metric is a success rate (higher is better); the others are errors (lower is better)."""
    return metric.startswith("success_rate")


def judge(study: Study, margin: float) -> Verdict:
    """The verdict of a study, from what its folder holds. margin: a difference that would matter, as a rate, or as a
    share of the baseline's value where the objective is no rate. `ValueError` where runs met different episodes.
    """
    if not 0 < margin < 1:
        raise ValueError(
            f"margin={margin}: expected a difference between 0 and 1, such as 0.1 for ten points of success"
        )
    check_paired(study)
    verdict = Verdict(study, margin, [_arm(study, name) for name in study.sweep.arms])
    if study.sweep.kind == "grid":
        _compare(verdict)
        _factorial(verdict)
    _look_for_problems(verdict)
    _explain(verdict)
    return verdict


def _arm(study: Study, name: str) -> Arm:
    runs = study.of(name)
    done = [run for run in runs if run.status == "completed"]
    values = [run.value for run in done if math.isfinite(run.value)]
    mean, low, high = mean_interval(values) if values else (math.nan,) * 3
    if is_rate(study.metric):
        low, high = (max(0.0, low), min(1.0, high)) if math.isfinite(low) else (low, high)
    outcomes: list[tuple[Episode, bool]] = [pair for run in done for pair in run.episodes.items()]
    tasks = {task: _rate([success for (t, _), success in outcomes if t == task]) for task in study.tasks}
    return Arm(
        name,
        [run.job.seed for run in done],
        mean,
        low,
        high,
        Counter(run.status for run in runs),
        _rate([s for _, s in outcomes]),
        tasks,
        _costs(done),
    )


def _rate(outcomes: Sequence[bool]) -> Rate:
    return Rate(sum(outcomes), len(outcomes))


def _costs(runs: Sequence[Run]) -> dict[str, float]:
    """Means over the runs of whatever they measured."""
    found: dict[str, float] = {}
    for key in COSTS:
        values = [
            value
            for run in runs
            if isinstance(value := run.result.get("parameters", {}).get(key, run.result.get(key)), int | float)
        ]
        if values:
            found[key] = float(np.mean(values))
    return found


def outcomes_of(study: Study, runs: Sequence[Run]) -> tuple[Array, list[Episode]]:
    """Successes (S,E) of the runs on the episodes that the objective counts, and those episodes, by task and episode
    seed.
    """
    task = study.metric.partition("/")[2]
    episodes = sorted(episode for episode in runs[0].episodes if not task or episode[0] == task)
    return np.array([[run.episodes[episode] for episode in episodes] for run in runs], dtype=float), episodes


def _compare(verdict: Verdict) -> None:
    study = verdict.study
    baseline = {run.job.seed: run for run in study.of(study.sweep.baseline) if run.status == "completed"}
    for arm in verdict.arms:
        runs = {run.job.seed: run for run in study.of(arm.name) if run.status == "completed"}
        seeds = sorted(runs.keys() & baseline.keys())
        if arm.name == study.sweep.baseline or not seeds:
            continue
        mine, theirs = [runs[seed] for seed in seeds], [baseline[seed] for seed in seeds]
        arm.comparison = (
            _paired_episodes(study, seeds, mine, theirs) if study.simulated else _paired_seeds(seeds, mine, theirs)
        )
    found = [comparison for _, comparison in verdict.compared]
    for comparison, p in zip(found, holm([c.p for c in found]), strict=True):
        comparison.p_holm = p
        comparison.resolvable *= detectable(1.0, len(found)) / detectable(1.0)
        comparison.word = _word(verdict, comparison)


def _paired_episodes(study: Study, seeds: list[int], mine: Sequence[Run], theirs: Sequence[Run]) -> Comparison:
    arm, episodes = outcomes_of(study, mine)
    other, _ = outcomes_of(study, theirs)
    low, high, error = paired_bootstrap(arm - other, [task for task, _ in episodes])
    wins, losses, p = mcnemar(arm, other)
    error = max(error, 1 / arm.size)  # arms that never differed may still do so in one pair more
    return Comparison(seeds, float((arm - other).mean()), low, high, p, detectable(error), wins, losses)


def _paired_seeds(seeds: list[int], mine: Sequence[Run], theirs: Sequence[Run]) -> Comparison:
    a, b = [run.value for run in mine], [run.value for run in theirs]
    difference, low, high, p = paired_t(a, b)
    error = float(np.std(np.subtract(a, b), ddof=1) / math.sqrt(len(a))) if len(a) > 1 else math.nan
    return Comparison(seeds, difference, low, high, p, detectable(error))


def _word(verdict: Verdict, found: Comparison) -> str:
    if not math.isfinite(found.difference):
        return UNKNOWN
    if len(found.seeds) < 2:  # what another training would give is unknown
        return NOT_RESOLVABLE
    if found.p_holm < ALPHA and (found.low > 0 or found.high < 0):
        return BETTER if (found.difference > 0) == verdict.higher_is_better else WORSE
    scale = 1.0 if verdict.higher_is_better else abs(verdict.baseline.mean) if verdict.baseline else math.nan
    return NO_DIFFERENCE if found.resolvable <= verdict.margin * scale else NOT_RESOLVABLE


def axes_of(study: Study) -> dict[str, list[str]]:
    """The axes of a grid that vary, each with its values in the order they were asked."""
    keys = list(dict.fromkeys(key for job in study.sweep.jobs for key in job.axes if key != "seed"))
    values = {key: list(dict.fromkeys(job.axes[key] for job in study.sweep.jobs if key in job.axes)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _factorial(verdict: Verdict) -> None:
    levels = axes_of(verdict.study)
    axes = list(levels)
    rows = [
        {"value": run.value, "seed": run.job.seed, **run.job.axes}
        for run in verdict.study.completed
        if math.isfinite(run.value)
    ]
    if len(axes) < 2 or any(key not in row for row in rows for key in axes):
        return
    cells = {tuple(row[key] for key in axes) for row in rows}
    wanted = set(itertools.product(*levels.values()))
    if {tuple(job.axes.get(key) for key in axes) for job in verdict.study.sweep.jobs} != wanted:
        return  # named arms that cross nothing
    if cells != wanted:
        verdict.notes.append(
            f"Main effects and interactions need every cell of the grid; {len(wanted - cells)} of {len(wanted)} have "
            "no completed run."
        )
        return
    verdict.effects = factorial(rows, axes)
    if not verdict.effects:
        verdict.notes.append(
            "Main effects and interactions need more runs than the grid has cells: give several seeds."
        )


def _look_for_problems(verdict: Verdict) -> None:
    study, add = verdict.study, verdict.problems.append
    for status in ("missing", "interrupted"):
        if found := [run for run in study.runs if run.status == status]:
            seeds = {
                arm: ", ".join(str(run.job.seed) for run in found if run.job.arm == arm)
                for arm in dict.fromkeys(run.job.arm for run in found)
            }
            what = "not started yet" if status == "missing" else "not at its end; the sweep's command goes on with it"
            add(f"{len(found)} {status} ({what}): {'; '.join(f'{arm} with seed {own}' for arm, own in seeds.items())}")
    for run in study.runs:
        if run.status in ("failed", "damaged"):
            add(f"{run.job.folder}: {run.status} ({reason_of(run)})")
        elif run.status == "completed" and not math.isfinite(run.value):
            add(f"{run.job.folder}: its {study.metric} is {run.value}; it counts nowhere")
    if study.sweep.kind == "grid":
        for arm, lacking in missing_seeds(study).items():
            if not any(run.status == "completed" for run in study.of(arm)):
                continue
            add(
                f"{arm} has no completed run with seed {', '.join(map(str, lacking))}, which other arms have; it is "
                "compared on the seeds that both have"
            )
        if not any(run.status == "completed" for run in study.of(study.sweep.baseline)):
            add(f"the baseline {study.sweep.baseline} has no completed run, so nothing is compared")
    if study.others:
        add(f"folders that this sweep did not ask for, and that count nowhere: {', '.join(study.others)}")
    commits = {str(run.result.get("commit")) for run in study.completed}
    if len(commits) > 1:
        add(f"the runs were made by {len(commits)} versions of the code: {', '.join(sorted(commits))}")
    machines = {machine for run in study.completed if (machine := _machine(run))}
    if len(machines) > 1:
        add(
            f"the runs were made on {len(machines)} kinds of machine: {'; '.join(sorted(machines))}; a seed's run is "
            "equal on one machine only, so a difference between arms may be one between machines"
        )


def _machine(run: Run) -> str:
    """What the machine of a run is, as far as it can change a result; empty where the run does not say."""
    found = run.result.get("machine")
    return ", ".join(f"{key} {value}" for key, value in sorted(found.items())) if isinstance(found, dict) else ""


def reason_of(run: Run) -> str:
    """Why a run has no result: the last line of its error."""
    if run.problem:
        return run.problem
    lines = str(run.result.get("error") or run.result.get("stopped") or "").strip().splitlines()
    return lines[-1] if lines and run.status != "completed" else ""


def _explain(verdict: Verdict) -> None:
    study, say = verdict.study, verdict.notes.append
    done = study.completed
    if not done:
        say("No run is completed yet, so there is nothing to judge.")
        return
    kept = {str(run.result.get("judged", "latest")) for run in done}
    steps = sorted({int(run.result["train_steps"]) for run in done if "train_steps" in run.result})
    which = {
        "latest": "the averaged weights at the end of training",
        "best": "the averaged weights of the best validation",
    }
    say(
        f"Judged: {' and '.join(which.get(one, one) for one in sorted(kept))}"
        + (f" (step {steps[0]:,}{f' to {steps[-1]:,}' if len(steps) > 1 else ''})" if steps else "")
        + (
            ", a choice made on held-out demonstrations."
            if "best" in kept
            else ", a choice made before training; no episode that is reported here took part in it."
        )
        + (" The reported episodes start from states that no demonstration contains." if study.simulated else "")
    )
    if shared := [run for run in done if run.weights != run.job.folder]:
        say(
            f"{len(shared)} of {len(done)} runs took their weights from another run's training, from which theirs "
            "differs in nothing that training reads; trainings behind these runs: "
            f"{len({run.weights for run in done})}. Train seconds are those of the training, wherever it was done."
        )
    if study.simulated:
        episodes, seeds = len(outcomes_of(study, done[:1])[1]), len({run.job.seed for run in done})
        say(f"Every run met the same {episodes} episodes; {seeds} training seed{'s' * (seeds > 1)}.")
        baseline = verdict.baseline
        if study.sweep.kind == "grid" and baseline and len(verdict.arms) > 1 and math.isfinite(baseline.mean):
            spread = spread_of_seeds(
                [run.value for run in study.of(baseline.name) if run.status == "completed"], episodes
            )
            comparisons = max(1, len(verdict.arms) - 1)
            resolved = 100 * smallest_difference(seeds, episodes, baseline.mean, spread, comparisons)
            say(
                f"Before any pairing, {seeds} seeds × {episodes} episodes at the baseline's {100 * baseline.mean:.0f} "
                f"% resolve {resolved:.0f} points (80 % power, Holm over {comparisons} comparisons)."
            )
            if warning := ceiling(baseline.mean):
                say(warning)
            say(
                "The paired interval resamples seeds and episodes, both; McNemar's test takes each pair of episodes "
                "as a draw of its own. A verdict of better or worse needs both. With few seeds, the resampled "
                "interval is somewhat too narrow."
            )
    elif study.sweep.kind == "grid":
        say("No closed-loop episodes stand behind this objective; arms are paired on seeds, by Student's t.")
    if study.sweep.kind == "search":
        say(
            "Trials are compared on one run each: the best of many is partly luck. Confirm it against a baseline over "
            "several seeds before believing its value."
        )
    offline = [run for run in done if run.episodes and "trajectory_mse" in run.result.get("metrics", {})]
    if study.simulated and len(offline) > 2:
        rank = rank_correlation(
            [run.result["metrics"]["trajectory_mse"] for run in offline], [run.value for run in offline]
        )
        if math.isfinite(rank):
            say(
                f"Held-out trajectory MSE and success correlate with {rank:+.2f} over the runs (Spearman; −1 would "
                "make it a perfect stand-in)."
            )


def sentence(arm: Arm, found: Comparison, baseline: str, percent: bool) -> str:
    """One arm's verdict in words."""
    difference = f"{100 * found.difference:+.0f} points" if percent else f"{found.difference:+.3g}"
    interval = (
        f"{100 * found.low:+.0f} to {100 * found.high:+.0f}" if percent else f"{found.low:+.3g} to {found.high:+.3g}"
    )
    seen = f"{math.ceil(100 * found.resolvable - 1e-9)} points" if percent else f"{found.resolvable:.3g}"
    measured = (
        f"{difference} (95 % interval {interval}, Holm p "
        f"{'< 0.001' if found.p_holm < 0.001 else f'{found.p_holm:.3f}'})"
        if math.isfinite(found.p_holm)
        else f"{difference} (one seed: no interval)"
    )
    if found.word in (BETTER, WORSE):
        return f"{arm.name} is {found.word} than {baseline}: {measured}"
    if found.word == NO_DIFFERENCE:
        return f"{arm.name}: no difference from {baseline} found: {measured}; {seen} would have been seen"
    if len(found.seeds) < 2:
        return f"{arm.name}: not resolvable: {measured}; one seed says nothing of what another training would give"
    return f"{arm.name}: not resolvable: {measured}; the design sees differences of {seen} or more"
