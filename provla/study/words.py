"""A verdict in words."""

from __future__ import annotations

import math

from provla.statistics.checks import rank_correlation
from provla.statistics.rule import ALPHA, ENOUGH
from provla.study.findings import BETTER, EQUIVALENT, WORSE, Arm, Comparison, Verdict, outcomes_of
from provla.study.study import Run, ceiling, points


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
    if study.elsewhere:
        say(f"Results from elsewhere: {study.elsewhere} How the arms were trained and chosen is not known here.")
    else:
        _explain_weights(verdict)
    if study.simulated:
        _explain_episodes(verdict)
    elif study.sweep.kind == "grid":
        say("No closed-loop episodes stand behind this objective: the runs' values alone are judged.")
    if verdict.compared:
        _explain_rule(verdict)
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
    trainings = len({run.weights for run in done})
    if not study.paired:
        say(
            f"The {trainings} trainings met different episodes, so single episodes cannot be compared: runs' values "
            "alone are judged."
        )
        return
    episodes = len(outcomes_of(study, done[:1])[1])
    say(f"Every run met the same {episodes} episodes; {trainings} training{'s' * (trainings > 1)} in all.")
    baseline = verdict.baseline
    if study.sweep.kind == "grid" and baseline and (warning := ceiling(baseline.mean)):
        say(warning)


def _explain_rule(verdict: Verdict) -> None:
    """What is claimed, what was held fixed, and what the rule is worth here."""
    study, say = verdict.study, verdict.notes.append
    redrawn = any(family.shared == "demonstrations" for family in verdict.families)
    episodes = " and other episodes of the same tasks" if study.simulated else ""
    say(
        f"A word is a claim about other trainings{episodes}"
        + (
            "; demonstrations were drawn anew for each training, the same for all arms."
            if redrawn
            else "; what else was held fixed is not known here."
            if study.elsewhere
            else "; the demonstrations were held fixed, and the claim is for them."
        )
    )
    for family in verdict.families:
        scale, unit = (100, " points") if verdict.percent else (1, "")
        m, others, apart = family.moments, len(family.arms) - 1, family.spread < ALPHA
        by = "each by its own two arms" if apart else "half by its own two arms, half by all together"
        hold = f"for all {others} comparisons at once ({'Bonferroni' if apart else 'Dunnett'}, {1 - family.alpha:.1%})"
        say(
            f"{', '.join(family.arms[1:])}: compared with {family.arms[0]} by Student's t"
            + (f", paired by the {family.shared} that they share" if family.shared else "")
            + (f", {by}" if others > 1 else "")
            + f" (spread of runs in an arm {scale * math.sqrt(float(m.runs)):.3g}{unit}"
            + (f"; equal spreads: p {family.spread:.2f}" if not (family.shared and others == 1) else "")
            + f"). Intervals hold {hold if others > 1 else f'with {1 - family.alpha:.1%}'}."
        )
        if m.episodes and not family.shared:
            say(
                f"True rates differ by {100 * math.sqrt(float(m.training)):.1f} points between trainings of an arm, "
                f"and by {100 * math.sqrt(float(m.interaction)):.1f} between arms on one episode (standard deviations)."
            )
        if trial := family.trial:
            say(
                f"The rule, tried on {trial.studies:,} made-up studies with these components: a word without any "
                f"difference in {trial.false:.1%}, intervals that hold the truth in {trial.covered:.1%}; of arms that "
                f"differ by the margin, {trial.seen:.0%} are called so, and in {trial.equivalent:.1%} of the studies "
                "one of them equivalent."
            )


def signed(value: float, percent: bool) -> str:
    """A difference: `+7`, `−17`, `0`; a rate's in points."""
    shown = f"{100 * value:.0f}" if percent else f"{value:.3g}"
    return "0" if float(shown) == 0 else shown.replace("-", "−") if value < 0 else f"+{shown}"


def headline(verdict: Verdict) -> str:
    """The answer in a sentence."""
    if not verdict.compared:
        only = verdict.arms[0] if len(verdict.arms) == 1 else None
        if only is None or not math.isfinite(only.mean):
            return "Nothing can be compared yet."
        reached = f"{100 * only.mean:.0f} %" if verdict.percent else f"{only.mean:.4g}"
        metric = verdict.study.metric.replace("_", " ")
        return f"One arm alone, nothing to compare it with: {metric} {reached}, mean over {len(only.seeds)} trainings."
    baseline, unit = verdict.study.sweep.baseline, " points" if verdict.percent else ""
    parts = []
    for word in (BETTER, WORSE, EQUIVALENT):
        found = [(arm.name, one.difference) for arm, one in verdict.compared if one.word == word]
        if found:
            found.sort(key=lambda pair: abs(pair[1]), reverse=word != EQUIVALENT)
            names = ", ".join(f"{name} ({signed(difference, verdict.percent)}{unit})" for name, difference in found)
            verb = "is" if len(found) == 1 else "are"
            parts.append(f"{names} {verb} {word} {'to' if word == EQUIVALENT else 'than'} {baseline}")
    left = [arm.name for arm, one in verdict.compared if one.word not in (BETTER, WORSE, EQUIVALENT)]
    if left and not parts:
        which = left[0] if len(left) == 1 else f"any of the {len(left)} other arms"
        return f"This study cannot tell {which} from {baseline}."
    if left:
        parts.append(
            f"{', '.join(left)} cannot be told from it" if len(left) < 3 else f"{len(left)} others cannot be told"
        )
    return "; ".join(parts) + "."


def widest_task(verdict: Verdict) -> str:
    """Where the arms differ most, and how much they do on all tasks together."""
    arms = [arm for arm in verdict.arms if arm.success.episodes]
    if len(arms) < 2 or len(verdict.study.tasks) < 2 or not verdict.percent:
        return ""

    def ends(task: str) -> tuple[Arm, Arm]:
        ordered = sorted(arms, key=lambda arm: arm.tasks[task].rate)
        return ordered[0], ordered[-1]

    task = max(verdict.study.tasks, key=lambda one: ends(one)[1].tasks[one].rate - ends(one)[0].tasks[one].rate)
    low, high = ends(task)
    whole = sorted(arm.success.rate for arm in arms)
    return (
        f"The arms differ most on {task}: {low.name} {100 * low.tasks[task].rate:.0f} %, {high.name} "
        f"{100 * high.tasks[task].rate:.0f} %; on all tasks together they lie between {100 * whole[0]:.0f} and "
        f"{100 * whole[-1]:.0f} %"
    )


def sentence(arm: Arm, found: Comparison, verdict: Verdict) -> str:
    """One arm's verdict in words."""
    baseline, percent = verdict.study.sweep.baseline, verdict.percent
    difference = signed(found.difference, percent) + (" points" if percent else "")
    if math.isfinite(found.low):
        low, high = (signed(x, percent) for x in (found.low, found.high))
        p = "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
        difference += f" (interval {low} to {high}, p {p})"
    if found.word in (BETTER, WORSE):
        return f"{arm.name} is {found.word} than {baseline}: {difference}"
    margin = f"{points(verdict.wanted)} points" if percent else f"{verdict.wanted:.3g}"
    if found.word == EQUIVALENT:
        return f"{arm.name} is equivalent to {baseline} within {margin}: {difference}"
    fewest = min(len(found.seeds), len(verdict.baseline.seeds) if verdict.baseline else 0)
    if fewest < ENOUGH:
        few = ("no", "one training says", "two trainings say")[fewest]
        return f"{arm.name}: unresolved: {difference}; {few} too little of what others would give: {ENOUGH} are needed"
    if not math.isfinite(found.resolvable):
        return f"{arm.name}: unresolved: {difference}"
    seen = f"{points(found.resolvable)} points" if percent else f"{found.resolvable:.3g}"
    return f"{arm.name}: unresolved: {difference}; this design sees differences of {seen} in four of five studies"
