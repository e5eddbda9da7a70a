"""A verdict in words."""

from __future__ import annotations

import math

from provla.statistics import (
    rank_correlation,
    smallest_difference,
    spread_of_seeds,
)
from provla.study.findings import BETTER, NO_DIFFERENCE, WORSE, Arm, Comparison, Verdict, outcomes_of
from provla.study.study import Run, ceiling


def reason_of(run: Run) -> str:
    """Why a run has no result: the last line of its error."""
    if run.problem:
        return run.problem
    lines = (run.result.error or run.result.stopped or "").strip().splitlines()
    return lines[-1] if lines and run.status != "completed" else ""


def explain(verdict: Verdict) -> None:
    """Notes on what was judged, by what, and how far that reaches."""
    study, say = verdict.study, verdict.notes.append
    if not study.completed:
        say("No run is completed yet, so there is nothing to judge.")
        return
    _explain_weights(verdict)
    if study.simulated:
        _explain_episodes(verdict)
    elif study.sweep.kind == "grid":
        say("No closed-loop episodes stand behind this objective; arms are paired on seeds, by Student's t.")
    if study.sweep.kind == "search":
        say(
            "Trials are compared on one run each: the best of many is partly luck. Confirm it against a baseline over "
            "several seeds before believing its value."
        )
    offline = [run for run in study.completed if run.episodes and "trajectory_mse" in run.result.metrics]
    if study.simulated and len(offline) > 2:
        errors = [run.result.metrics["trajectory_mse"] for run in offline]
        rank = rank_correlation(errors, [run.value for run in offline])
        if math.isfinite(rank):
            say(
                f"Held-out trajectory MSE and success correlate with {rank:+.2f} over the runs (Spearman; −1 would "
                "make it a perfect stand-in)."
            )


def _explain_weights(verdict: Verdict) -> None:
    study, say, done = verdict.study, verdict.notes.append, verdict.study.completed
    kept = {run.result.judged or "latest" for run in done}
    steps = sorted({run.result.train_steps for run in done if run.result.train_steps is not None})
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
        + (" The reported episodes start from states that no demonstration contains." if study.unseen else "")
    )
    if shared := [run for run in done if run.weights != run.job.folder]:
        say(
            f"{len(shared)} of {len(done)} runs took their weights from another run's training, from which theirs "
            "differs in nothing that training reads; trainings behind these runs: "
            f"{len({run.weights for run in done})}. Train seconds are those of the training, wherever it was done."
        )


def _explain_episodes(verdict: Verdict) -> None:
    study, say, done = verdict.study, verdict.notes.append, verdict.study.completed
    episodes, seeds = len(outcomes_of(study, done[:1])[1]), len({run.job.seed for run in done})
    say(f"Every run met the same {episodes} episodes; {seeds} training seed{'s' * (seeds > 1)}.")
    baseline = verdict.baseline
    if study.sweep.kind == "grid" and baseline and len(verdict.arms) > 1 and math.isfinite(baseline.mean):
        spread = spread_of_seeds([run.value for run in study.of(baseline.name) if run.status == "completed"], episodes)
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
