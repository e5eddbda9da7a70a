"""A plan, written down before the runs: what was asked, by which rule. A report lists what deviates from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from provla.core.files import ROOT, write_json
from provla.core.result import read_result
from provla.jobs.sweep import Sweep
from provla.statistics import rule

KEYS = ("question", "baseline", "objective", "margin", "alpha", "episodes", "rule")


def lock_file(study: str) -> Path:
    """Where a study's lock is, or would be: beside its YAML in the working folder, else beside the shipped one."""
    own, shipped = (root / "experiments" / f"{study}_lock.json" for root in (Path(), ROOT))
    return shipped if shipped.is_file() and not own.is_file() else own


def write_lock(sweep: Sweep, folder: Path, episodes: int, margin: float) -> Path:
    """Writes a study's plan. `ValueError` where it is locked already, or where it is a search."""
    from provla.core.machine import commit  # which brings torch: a second that no other report needs

    if sweep.kind != "grid":
        raise ValueError(
            f"{sweep.study} is a search: it explores, and has no plan to hold it to; lock what confirms it"
        )
    file = lock_file(sweep.study or "")
    if file.is_file():
        raise ValueError(f"{sweep.study} is locked already, at {_read(file)['time']}: {file}; delete it to plan anew")
    done = sum(read_result(folder / job.folder).status == "completed" for job in sweep.jobs)
    plan = _plan(sweep, episodes, margin)
    plan |= {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "completed_before": done}
    target = Path("experiments") / file.name
    write_json(target, plan | {"commit": commit()["commit"]})
    return target


def deviations(sweep: Sweep, episodes: int | None, margin: float) -> Iterator[str]:
    """What a study does otherwise than its lock says; nothing where it has none. episodes: that its runs met; None:
    none has yet. `ValueError` where the lock cannot be read, or is another study's.
    """
    if not sweep.study or not (file := lock_file(sweep.study)).is_file():
        return
    plan = _read(file)
    now = _plan(sweep, plan["episodes"] if episodes is None else episodes, margin)
    if plan["study"] != sweep.study:
        raise ValueError(f"{file} is the lock of {plan['study']!r}, not of {sweep.study!r}; move it away")
    since = f"the plan locked at {plan['time']}"
    if plan["completed_before"]:
        yield f"{since} was locked when {plan['completed_before']} runs were completed already"
    for key in KEYS:
        if plan[key] != now[key]:
            yield f"{since} says {key} {plan[key]!r}, this report {now[key]!r}"
    for arm in plan["arms"].keys() - now["arms"].keys():
        yield f"{since} has an arm {arm}, which this study has not"
    for arm, jobs in now["arms"].items():
        if arm not in plan["arms"]:
            yield f"the arm {arm} is not in {since}"
            continue
        locked = plan["arms"][arm]
        if lost := sorted(locked.keys() - jobs.keys(), key=int):
            yield f"{arm}: {since} has seeds {', '.join(lost)}, which this study has not"
        if more := sorted(jobs.keys() - locked.keys(), key=int):
            yield f"{arm}: the seeds {', '.join(more)} are not in {since}"
        if changed := [seed for seed in jobs if seed in locked and jobs[seed] != locked[seed]]:
            yield f"{arm}: another configuration than {since} (seed {', '.join(changed)})"


def _plan(sweep: Sweep, episodes: int, margin: float) -> dict[str, Any]:
    arms: dict[str, dict[str, str]] = {}
    for job in sweep.jobs:
        arms.setdefault(job.arm, {})[str(job.seed)] = job.config_hash
    return {
        "study": sweep.study,
        "question": sweep.question,
        "baseline": sweep.baseline,
        "objective": sweep.objective,
        "margin": margin,
        "alpha": rule.ALPHA,
        "episodes": episodes,
        "rule": rule.NAME,
        "arms": arms,  # arm → seed → hash of the configuration
    }


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict) or not {*KEYS, "study", "arms", "time", "completed_before"} <= found.keys():
            raise ValueError("something is missing")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no lock: {error}; restore it, or delete it") from error
    return found
