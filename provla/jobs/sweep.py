"""The jobs of a sweep as its folder holds them: what was asked (`sweep.json`), what is done, what goes on,
what failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from provla.core.claims import HERE, Claim, Taken
from provla.core.files import SWEEP, fingerprint, write_json, writing
from provla.core.identity import differences, essence, identity
from provla.core.ranks import cores
from provla.core.result import ATTEMPTS, ENDED, Result, read_result
from provla.jobs import attempts


@dataclass(frozen=True)
class Job:
    """One job. overrides: key, as it was typed (`+` included) → value, axes and fixed ones alike. axes: those that tell
    it from its siblings, without the seed. trial: its number in a search. name: of its named arm. cell: hash of its
    configuration without the seed. training: of what its training reads; jobs that share it share their weights.
    """

    folder: str
    overrides: dict[str, str]
    axes: dict[str, str]
    seed: int
    config_hash: str
    arm: str
    trial: int | None = None
    name: str | None = None
    cell: str = ""
    training: str = ""


@dataclass
class Sweep:
    """What a sweep asks, over all its starts. others: jobs of another base configuration, such as another budget; they
    count nowhere. baseline: an arm's name. kind: grid or search. command: as it was typed. storage: of a search, its
    SQLite file and the study's name in it. space: of a search, its axes."""

    study: str | None
    question: str | None
    kind: str
    baseline: str
    objective: str
    command: str
    jobs: list[Job] = field(default_factory=list)
    n_trials: int | None = None
    best: dict[str, Any] | None = None
    storage: list[str] | None = None
    space: list[str] = field(default_factory=list)
    others: list[Job] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(job.arm for job in self.jobs))


def load_sweep(folder: Path) -> Sweep:
    """`ValueError` where the folder holds no sweep, or a damaged one."""
    path = folder / SWEEP
    try:
        stored = json.loads(path.read_text())
        jobs, others = ([Job(**job) for job in stored.get(key, [])] for key in ("jobs", "others"))
        sweep = Sweep(**{**stored, "jobs": jobs, "others": others})
        places = [Path(job.folder) for job in [*jobs, *others]]
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no sweep (no {SWEEP}); start it with python -m provla.train -m experiments=<study>"
        ) from error
    except (json.JSONDecodeError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); starting the sweep again writes it anew and keeps every finished job"
        ) from error
    if outside := [place for place in places if place.is_absolute() or ".." in place.parts]:
        raise ValueError(
            f"{path} names {str(outside[0])!r} as a job's folder, which leads out of the sweep's own; start the sweep "
            "again in another folder"
        )
    return sweep


def save_sweep(folder: Path, sweep: Sweep) -> None:
    write_json(folder / SWEEP, asdict(sweep))


def find_runs(folder: Path) -> dict[str, str]:
    """Identity of a configuration → the folder in a sweep's that holds its run, whatever its name; of several, the one
    that got furthest.
    """
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*/config.json")):
        try:
            digest = identity(json.loads(file.read_text()))
        except (OSError, ValueError, AttributeError):  # said where somebody asks for it
            continue
        name = file.parent.name
        if digest not in found or _progress(file.parent) > _progress(folder / found[digest]):
            found[digest] = name
    return found


def find_renamed(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each with the folder that holds its run now: one that was renamed is found by its configuration."""
    lost = [job for job in jobs if not (folder / job.folder / "config.json").is_file()]
    held = find_runs(folder) if lost else {}
    return [replace(job, folder=held.get(job.config_hash, job.folder)) if job in lost else job for job in jobs]


def _progress(folder: Path) -> tuple[int, str]:
    order = ("missing", "damaged", "failed", "interrupted", "pruned", "completed")
    return order.index(read_result(folder).status), max(
        (path.name for path in folder.glob("checkpoints/step_*")), default=""
    )


def give_up_on_killed(folder: Path, job: Job) -> None:
    """Makes a job failed whose process was killed as often as a job is tried, a failure before included; so it holds up
    no other.
    """
    result = read_result(folder / job.folder)
    kills = attempts.killed(folder / job.folder)
    tried = kills + (result.attempts or 0)
    if not kills or tried < ATTEMPTS or result.status in ENDED or attempts.busy(folder / job.folder):
        return
    error = (
        f"its process was killed {kills} time{'s' * (kills > 1)} without getting further, as for lack of memory; "
        f"delete {folder / job.folder / 'result.json'} to try again"
    )
    lost = Result("failed", job.config_hash, seed=job.seed, error=error, attempts=ATTEMPTS)
    lost.write(folder / job.folder)
    (folder / job.folder / attempts.MARK).unlink(missing_ok=True)


def check_config(folder: Path, config: Mapping[str, Any]) -> bool:
    """`ValueError` where a folder holds a run of another configuration; nothing is changed. True where that one was
    refused (see `refused`), so that this one may have its folder.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        stored = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {folder} to run it anew") from error
    if identity(stored) == identity(config):
        return False
    if not refused(folder):
        other = "; ".join(differences(config, stored)[:4])
        raise ValueError(
            f"{folder} holds a run of another configuration ({other}); nothing was changed. Choose another "
            "hydra.run.dir or study, or delete it."
        )
    return True


def refused(folder: Path) -> bool:
    """Whether the run of a folder failed before its training began, and left nothing but word of that."""
    begun = ("checkpoints", "policy", "metrics.csv", "wandb")
    return read_result(folder).status == "failed" and not any((folder / name).exists() for name in begun)


def name_arms(points: Sequence[Mapping[str, str]], names: Sequence[str | None]) -> list[str]:
    """A short name per job: that of its named arm, and its values on the axes that vary beside it; `key=` only where
    several do.
    """
    found = []
    for point, name in zip(points, names, strict=True):
        siblings = [other for other, owner in zip(points, names, strict=True) if owner == name]
        keys = list(dict.fromkeys(key for other in siblings for key in other))
        varied = [key for key in keys if len({other.get(key) for other in siblings}) > 1] or ([] if name else keys)
        values = [
            point[key] if len(varied) == 1 and name is None else f"{key}={point[key]}" for key in varied if key in point
        ]
        found.append(", ".join([*([name] if name else []), *values]) or "all")
    return found


def cell_of(config: Mapping[str, Any]) -> str:
    """Hash of a configuration without its seed: what an arm is."""
    return fingerprint({key: node for key, node in essence(config).items() if key != "seed"}, 16)


def join_jobs(asked: Sequence[Job], earlier: Sequence[Job]) -> list[Job]:
    """The jobs of all starts of a grid, each once, the earlier ones in their places, with the arms of them all named
    anew.

    Jobs whose configurations differ in the seed alone are of one arm, however they were asked for.
    """
    mine = {job.config_hash: job for job in asked}
    joined = {job.config_hash: mine.get(job.config_hash, job) for job in [*earlier, *asked]}
    arms: dict[str, Job] = {}
    for job in [*asked, *earlier]:
        arms.setdefault(job.cell, job)
    same = [arms[job.cell] for job in joined.values()]
    names = name_arms([arm.axes for arm in same], [arm.name for arm in same])
    return [
        replace(job, axes=arm.axes, name=arm.name, arm=name)
        for job, arm, name in zip(joined.values(), same, names, strict=True)
    ]


def find_baseline(wanted: str | Mapping[str, Any] | None, arms: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the baseline arm. wanted: a name, or the values that tell it; None: the first. `ValueError` where it
    is no arm.
    """
    if wanted is None:
        return next(iter(arms))
    if isinstance(wanted, Mapping):
        asked = {str(key): spelled(value) for key, value in wanted.items()}
        fits = [name for name, axes in arms.items() if all(axes.get(key) == value for key, value in asked.items())]
        shown = ", ".join(f"{key}={value}" for key, value in asked.items())
    else:
        shown = str(wanted)
        fits = [
            name
            for name in arms
            if name == shown or shown in [*arms[name].values(), *(f"{k}={v}" for k, v in arms[name].items())]
        ]
    if len(fits) == 1:
        return fits[0]
    problem = "is not among the arms" if not fits else f"fits {len(fits)} arms"
    raise ValueError(f"baseline={shown!r} {problem}; the arms are: {'; '.join(arms)}")


def spelled(value: Any) -> str:
    """A value as Hydra's command line has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The sweep's folder, for one sweep at a time. `ValueError` where another process runs it."""
    from provla.core.progress import console

    claim = Claim(folder / ".sweep.claim")
    try:
        with writing(folder):
            claim.take(0, lambda who: console.print(f"this sweep was begun by {who}"))
    except Taken as error:
        raise ValueError(
            f"another process is running the sweep in {folder} ({error.who}); wait for it or stop it, or choose "
            "another study= or hydra.sweep.dir="
        ) from error
    try:
        yield
    finally:
        claim.release()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A run's folder, for one process at a time. Where another one is at work (a worker that outlived its killed
    sweep), this waits for its end.
    """
    from provla.core.progress import console

    said = "another process is at work in this run's folder ({}); waiting for its end"
    claim = Claim(folder / attempts.CLAIM)
    with writing(folder):
        claim.take(waiting=lambda who: console.print(said.format(who)))
    try:
        yield
    finally:
        claim.release()


@contextmanager
def slot(folder: Path, count: int) -> Iterator[int]:
    """One of `count` places in which a sweep's jobs run at the same time: it says which cores' share and which GPU a
    job has.

    A place is a claim, so a killed job gives it back; each host has its own.
    """
    import time

    claims = [Claim(folder / ".slots" / HERE.name / str(number)) for number in range(count)]
    while True:
        for claim in claims:
            with suppress(Taken):
                claim.take(0)
                break
        else:
            time.sleep(0.2)
            continue
        try:
            yield int(claim.path.name)
        finally:
            claim.release()
        return


def gpus() -> int:
    """GPUs this process may use."""
    import torch

    return torch.cuda.device_count()


def places(threads: int, jobs_per_gpu: Any = 1) -> int:
    """How many jobs of so many threads run at the same time: `jobs_per_gpu` on each GPU, or as many as there are cores
    for where there is none. `ValueError` for what is no such number.
    """
    if not isinstance(jobs_per_gpu, int) or isinstance(jobs_per_gpu, bool) or jobs_per_gpu < 1:
        raise ValueError(f"hydra.launcher.jobs_per_gpu={jobs_per_gpu!r}: expected a whole number from 1")
    return gpus() * jobs_per_gpu or max(1, cores() // threads)


def crowded(threads: int, jobs: int, what: str = "jobs") -> str:
    """A sentence for jobs, or ranks, at the same time that want more cores than there are; empty where each thread has
    its own.
    """
    if gpus() or jobs == 1 or jobs * threads <= cores():
        return ""
    return (
        f"{jobs} {what} of {threads} threads share {cores()} cores; fewer at a time, or "
        f"threads={max(1, cores() // jobs)}, are faster (another number of threads is another run: it rounds sums "
        "otherwise)"
    )


def share(number: int, device: str) -> str:
    """The device of the job at place `number`: a GPU of its own where GPUs are chosen automatically."""
    found = gpus() if device == "auto" else 0
    return f"cuda:{number % found}" if found else device
