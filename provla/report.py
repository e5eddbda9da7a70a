"""python -m provla.report study=<study>: the verdict of a study, as Markdown, CSV, LaTeX, and one HTML page; or, before
it, its plan.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from provla.command.entry import command
from provla.core.checks import check
from provla.core.files import ROOT
from provla.core.identity import check_study
from provla.core.progress import console
from provla.jobs.sweep import Sweep
from provla.study.elsewhere import load_results
from provla.study.live import follow
from provla.study.lock import deviations, write_lock
from provla.study.plan import plan_sweep
from provla.study.study import Study, check_started, load_study, outputs_of
from provla.study.verdict import judge


@command("report", paths=("folder", "pilot", "from"), studies=True)
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    _check(config)
    if config["from"]:
        _report(config, load_results(Path(config["from"]).expanduser(), config["baseline"]))
        return
    place = Path(config["folder"]) if config["folder"] else outputs_of(config["study"])
    if config["plan"] or config["lock"]:
        sweep, episodes = _plan(config)
        plan_sweep(sweep, place, episodes, Path(config["pilot"]) if config["pilot"] else None)
        if config["lock"]:
            file = write_lock(sweep, place, episodes, config["margin"])
            console.print(f"locked: {file}; commit it, and later reports list what deviates from it")
        return
    check_started(place, config["study"])
    if config["live"]:
        follow(place, config["margin"], config["port"])
        return
    _report(config, load_study(place))


def _check(config: Mapping[str, Any]) -> None:
    for key in ("study", "folder", "pilot", "from", "baseline"):
        if config[key] is not None and not isinstance(config[key], str):
            raise ValueError(f"{key}={config[key]!r}: expected a name")
    for key in ("plan", "lock", "live", "publish"):
        check(bool, config[key], key)
    check(float, config["margin"], "margin")
    check(Annotated[int, Ge(0), Le(65535)], config["port"], "port")
    check_study(config["study"])
    asked = [key for key in ("study", "folder", "from") if config[key]]
    if not asked:
        raise ValueError(
            f"which study? give study=<name> ({', '.join(_studies()) or 'experiments/ holds none'}), folder=<folder of "
            "a sweep>, or from=<results that were not made here>"
        )
    if config["from"] and (
        others := [key for key in (*asked, "plan", "lock", "live") if config[key] and key != "from"]
    ):
        raise ValueError(
            f"from= and {others[0]}=: results that were not made here have no {others[0]}; give one of them"
        )
    if config["baseline"] and not config["from"]:
        raise ValueError("baseline= goes with from=; a study names its own in its YAML, or on the sweep's command line")


def _report(config: Mapping[str, Any], study: Study) -> None:
    from provla.study.forms import publish, write_report
    from provla.study.page import compose_report, draw

    verdict = judge(study, config["margin"])
    if not study.elsewhere:
        episodes = max((len(run.episodes) for run in study.completed), default=None)
        verdict.problems.extend(deviations(study.sweep, episodes, config["margin"]))
    report = compose_report(verdict, shlex.join(["python", "-m", "provla.report", *sys.argv[1:]]))
    target = study.folder / "report"
    draw(verdict, report, target)
    print(write_report(verdict, report, target))
    console.print(
        f"written to {target}: report.html, report.md, report.tex, arms.csv, runs.csv, plots"
        + (", videos" if report.videos else "")
    )
    if config["publish"]:
        if not study.completed:
            raise ValueError(f"nothing to publish: no run of {study.folder} is completed")
        name = study.sweep.study or study.folder.name
        written = publish(verdict, report, Path("experiments"), name)
        console.print("published: " + ", ".join(map(str, written)))


def _plan(config: Mapping[str, Any]) -> tuple[Sweep, int]:
    """What the study's YAML asks for, composed as the sweep would, and the closed-loop episodes of a run."""
    from hydra import compose

    from provla.study.register import plan

    if not config["study"]:
        raise ValueError(f"plan=true and lock=true need study=<name>; experiments/ holds: {', '.join(_studies())}")
    overrides = [f"experiments={config['study']}", *map(str, config["overrides"])]
    return plan(
        compose("train", overrides=[o for o in overrides if not _sweeps(o)], return_hydra_config=True), overrides
    )


def _sweeps(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return bool(OverridesParser.create().parse_override(override).is_sweep_override())


def _studies() -> list[str]:
    return sorted({file.stem for root in (ROOT, Path()) for file in (root / "experiments").glob("*.yaml")})


if __name__ == "__main__":
    main()
