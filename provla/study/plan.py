"""What a study will do, how long that takes, and what it can see: before it, from a pilot, and while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from provla.core.build import build
from provla.core.files import SWEEP
from provla.core.progress import console
from provla.core.result import Result, read_result
from provla.jobs.sweep import Sweep
from provla.statistics.power import Components, Design, best_episodes, resolvable
from provla.statistics.rule import ENOUGH
from provla.study.compare import counted, moments_of
from provla.study.study import Study, ceiling, count_states, load_study, points

ASSUMED = 0.05  # spread of true rates between trainings, where nothing is known of it
UNKNOWN = Components.of_rate(0.5, ASSUMED)
TRAININGS, EPISODES = (3, 5, 8, 12), (50, 100, 200, 500)


@dataclass
class Pilot:
    """What is known before a study. rate: of the baseline. components: of results. training, episode: seconds of each;
    nan where unknown. known: whether the spread between trainings was measured, or is assumed. source: in words.
    """

    rate: float = 0.5
    components: Components = UNKNOWN
    training: float = math.nan
    episode: float = math.nan
    known: bool = False
    source: str = "no pilot"


def episodes_of(config: Mapping[str, Any]) -> int:
    """Closed-loop episodes of a run with this configuration, in whatever world; 0 where nothing is simulated."""
    return len(getattr(build(config["env"], "env"), "episodes", ()))


def announce(sweep: Sweep, folder: Path, episodes: int | None) -> None:
    """What a sweep is about to do, and what its design can see. episodes: of a run; None: not a comparison of arms."""
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
        console.print(_sight(len(sweep.arms), len(seeds), episodes, Pilot()))


def _sight(arms: int, trainings: int, episodes: int, pilot: Pilot) -> str:
    """`3 trainings × 100 episodes among 7 arms see 26 points`."""
    design = f"{trainings} training{'s' * (trainings > 1)} × {episodes} episodes among {arms} arms"
    if trainings < ENOUGH:
        return f"{design} give no word: a word needs {ENOUGH} trainings of each arm"
    seen = seen_at(pilot.rate, pilot.components, arms, trainings, episodes)
    spread = 100 * math.sqrt(pilot.components.training)
    how = "" if pilot.known else f", if trainings differ by {spread:.0f} points (pilot=<a finished study> says it)"
    return f"{design} see {points(seen)} points in four of five studies{how}"


def seen_at(rate: float, components: Components, arms: int, trainings: int, episodes: int) -> float:
    """The smallest difference from a baseline of this rate that the rule finds with 80 % power. What outcomes vary by
    is that of both arms' rates: further from the baseline's, towards the middle, they vary more.
    """
    found = 0.0
    for _ in range(4):
        other = rate + found if rate <= 0.5 else rate - found
        both = (rate * (1 - rate) + other * (1 - other)) / 2
        scale = both / max(1e-9, rate * (1 - rate))
        likely = Components(components.training, components.rest * scale, components.interaction)
        found = min(resolvable(likely, Design((trainings,) * arms, episodes)), 1.0)
    return found


def plan_sweep(sweep: Sweep, folder: Path, episodes: int, pilot: Path | None) -> None:
    """Prints what a sweep will do, how long it may take, and what it can see; a pilot, or what `folder` holds, makes
    that sharper. `ValueError` where the pilot is neither a completed run with closed-loop episodes nor a study of some.
    """
    announce(sweep, folder, None)
    known = _pilot(sweep, folder, pilot)
    if sweep.kind == "search":
        for axis in sweep.space:
            console.print(f"  {escape(axis)}")
        if episodes:
            console.print(
                f"a trial is one training: {episodes} episodes leave its rate uncertain by "
                f"{196 * math.sqrt(known.rate * (1 - known.rate) / episodes):.0f} points either way, and another "
                "training would add to that: confirm the best by a study of its own"
            )
    _announce_time(sweep, folder)
    if not episodes or sweep.kind == "search":
        return
    spread = 100 * math.sqrt(known.components.training)
    console.print(
        f"{known.source}: success {100 * known.rate:.0f} %, which differs by {spread:.1f} points between trainings"
        + ("" if known.known else " (assumed)")
    )
    _show_designs(sweep, episodes, known)
    if warning := ceiling(known.rate):
        console.print(f"[bold]{escape(warning)}[/bold]")


def _show_designs(sweep: Sweep, episodes: int, pilot: Pilot) -> None:
    """What other numbers of trainings and episodes would see, and how to divide a budget."""
    arms, asked = len(sweep.arms), len({job.seed for job in sweep.jobs})
    if arms < 2:
        return
    console.print(f"[bold]{_sight(arms, asked, episodes, pilot)}[/bold]")
    table = Table(title="points seen in four of five studies (and hours)", title_justify="left")
    table.add_column("trainings of each arm", justify="right")
    columns = sorted({*EPISODES, episodes})
    for count in columns:
        table.add_column(f"{count} episodes", justify="right")
    for trainings in sorted({*TRAININGS, *([asked] if asked >= ENOUGH else [])}):
        row = [str(trainings)]
        for count in columns:
            seen = points(seen_at(pilot.rate, pilot.components, arms, trainings, count))
            hours = arms * trainings * (pilot.training + count * pilot.episode) / 3600
            cell = f"{seen}" + (f" ({hours:.1f} h)" if math.isfinite(hours) else "")
            row.append(f"[bold]{cell}[/bold]" if (trainings, count) == (asked, episodes) else cell)
        table.add_row(*row)
    console.print(table)
    if math.isfinite(pilot.training) and pilot.episode > 0:
        best = best_episodes(pilot.components, pilot.training, pilot.episode)
        console.print(
            f"a training took {pilot.training:.0f} s, an episode {pilot.episode:.2f} s: "
            + (
                "trainings do not differ here, so more episodes say as much as more trainings, and cost less"
                if math.isinf(best)
                else f"a budget sees most with about {max(1, round(best))} episodes per training, and more trainings"
            )
        )


def _announce_time(sweep: Sweep, folder: Path) -> None:
    """What is left takes how long, and which limit suits jobs that hang."""
    here = [read_result(file.parent) for file in folder.glob("*/result.json")]
    done = [result for job in sweep.jobs if (result := read_result(folder / job.folder)).status == "completed"]
    seconds = [result.wall_seconds for result in done if result.wall_seconds is not None]
    if seconds and len(done) < len(sweep.jobs):
        left, each = len(sweep.jobs) - len(done), float(np.mean(seconds)) / 60
        console.print(
            f"{left} jobs to do: about {left * each:.0f} minutes one after another, at the {each:.1f} minutes that the "
            "finished ones took"
        )
    if longest := max((result.wall_seconds or 0.0 for result in here if result.status == "completed"), default=0.0):
        limit = max(1, math.ceil(3 * longest / 60))
        console.print(
            f"for jobs that hang: hydra.sweeper.timeout={limit} (minutes), three times what the longest finished run "
            "took"
        )


def _pilot(sweep: Sweep, folder: Path, pilot: Path | None) -> Pilot:
    """From a run's folder, a study's, or what the study's own folder holds."""
    if pilot is not None and not (pilot / SWEEP).is_file():
        return _of_runs([_pilot_run(pilot)], f"pilot {pilot}")
    if pilot is None and not (folder / SWEEP).is_file():
        return Pilot(source="no pilot (pilot=<the folder of a run, or of a study>)")
    study = load_study(pilot or folder)
    baseline = [run.result for run in counted(study, study.sweep.baseline) if run.result.success]
    if pilot is not None and not baseline:
        raise ValueError(f"pilot={str(pilot)!r}: its baseline has no completed run that was evaluated in simulation")
    if not baseline:
        return Pilot(source="no pilot yet: the baseline has no completed run")
    found = _of_runs(baseline, f"{'pilot' if pilot else 'so far'}: {len(baseline)} of the baseline's runs")
    return _with_spread(found, study)


def _pilot_run(folder: Path) -> Result:
    result = read_result(folder)
    if result.status != "completed" or not result.success:
        found = result.status if result.status != "completed" else "without closed-loop episodes"
        raise ValueError(
            f"pilot={str(folder)!r} is {found}; expected the folder of a completed run that was evaluated in "
            "simulation, or of a study of such runs"
        )
    return result


def _of_runs(runs: Sequence[Result], source: str) -> Pilot:
    cells = [run.success["success_rate"] for run in runs]
    rate, episodes = float(np.mean([cell["rate"] for cell in cells])), cells[0]["episodes"]
    trained = [run.train_seconds for run in runs if run.train_seconds is not None]
    judged = [
        (run.wall_seconds - run.train_seconds) / episodes for run in runs if run.wall_seconds and run.train_seconds
    ]
    training = float(np.mean(trained)) if trained else math.nan
    each = float(np.mean(judged)) if judged else math.nan
    return Pilot(rate, Components.of_rate(rate, ASSUMED), training, each, False, source)


def _with_spread(pilot: Pilot, study: Study) -> Pilot:
    """With the components of all arms that have several trainings."""
    runs = {arm: own for arm in study.sweep.arms if len(own := counted(study, arm)) > 1}
    if not (runs and study.crossed):
        return pilot
    return replace(pilot, components=Components.of(moments_of(study, runs)), known=True)
