"""python -m provla.report study=<study>: the verdict of a study, as Markdown, CSV, LaTeX, and one HTML page; or, before
it, its plan.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provla.command.entry import command
from provla.core.files import ROOT
from provla.core.identity import check_study
from provla.core.progress import console
from provla.jobs.sweep import Sweep
from provla.study.study import load_study, plan_sweep
from provla.study.verdict import judge


@command("report", paths=("folder", "pilot"), studies=True)
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    for key in ("study", "folder", "pilot"):
        if config[key] is not None and not isinstance(config[key], str):
            raise ValueError(f"{key}={config[key]!r}: expected a name")
    check_study(config["study"])
    if not config["study"] and not config["folder"]:
        raise ValueError(
            f"which study? give study=<name> ({', '.join(_studies()) or 'experiments/ holds none'}) or folder=<folder "
            "of a sweep>"
        )
    place = Path(config["folder"] or Path("outputs") / config["study"])
    if config["plan"]:
        sweep, episodes = _plan(config)
        plan_sweep(sweep, place, episodes, Path(config["pilot"]) if config["pilot"] else None)
        return
    _report(config, place)


def _report(config: Mapping[str, Any], place: Path) -> None:
    from provla.study.forms import publish, write_report
    from provla.study.page import compose_report, draw

    if not place.is_dir():
        raise ValueError(
            f"no folder {place}: the study has not been started here; python -m provla.train -m "
            f"experiments={config['study'] or '<study>'} starts it"
        )
    verdict = judge(load_study(place), config["margin"])
    report = compose_report(verdict, shlex.join(["python", "-m", "provla.report", *sys.argv[1:]]))
    target = place / "report"
    draw(verdict, report, target)
    print(write_report(verdict, report, target))
    console.print(
        f"written to {target}: report.html, report.md, report.tex, arms.csv, runs.csv, plots"
        + (", videos" if report.videos else "")
    )
    if config["publish"]:
        if not verdict.study.completed:
            raise ValueError(f"nothing to publish: no run of {place} is completed")
        name = verdict.study.sweep.study or place.name
        written = publish(verdict, report, Path("experiments"), name)
        console.print("published: " + ", ".join(map(str, written)))


def _plan(config: Mapping[str, Any]) -> tuple[Sweep, int]:
    """What the study's YAML asks for, composed as the sweep would, and the closed-loop episodes of a run."""
    from hydra import compose

    from provla.study.register import plan

    if not config["study"]:
        raise ValueError(f"plan=true needs study=<name>; experiments/ holds: {', '.join(_studies())}")
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
