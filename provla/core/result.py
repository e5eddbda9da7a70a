"""What a run came to: the object that passes between rooms, and result.json on disk."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from provla.core.checks import check_values, shown, value_in
from provla.core.files import write_json

FILE = "result.json"
# missing: nothing was begun there; interrupted: it goes on from its checkpoint; damaged: result.json says nothing.
Status = Literal["completed", "pruned", "failed", "interrupted", "missing", "damaged"]
ENDED = ("completed", "pruned")
ATTEMPTS = 2  # a failed run is tried once more


@dataclass(frozen=True)
class Objective:
    """What a sweep compares. value: None where nothing measured it."""

    name: str
    value: float | None


@dataclass
class Result:
    """A run, or a policy judged again. What is None is not known, or is no matter of this one."""

    status: Status = "missing"
    config_hash: str | None = None
    choices: dict[str, str] | None = None  # group → option
    seed: int | None = None

    error: str | None = None  # of a run that failed or was interrupted: a traceback
    attempts: int | None = None  # failures so far

    # Of the policy, before any training.
    parameters: dict[str, Any] | None = None  # trainable, total, bytes; parts: the same of each
    flops_per_sample: int | None = None
    precision: str | None = None  # in which it is judged
    quantization: dict[str, Any] | None = None  # part → its report
    judged: str | None = None  # latest or best
    data: dict[str, Any] | None = None  # revision on the Hub (None: none is known), episodes, held_out, frames
    skipped_episodes: list[str] | None = None  # and what is wrong with each

    # Of the training.
    train_seconds: float | None = None
    train_steps: int | None = None
    stopped: str | None = None  # why
    best_step: int | None = None
    skipped_steps: list[int] | None = None
    trained_by: str | None = None  # the folder of the run whose weights these are, where it is not this one

    # Of the judgement.
    objective: Objective | None = None
    metrics: dict[str, Any] = field(default_factory=dict)  # name → number; NaN where it has no meaning
    success: dict[str, dict[str, float]] = field(default_factory=dict)  # task, or success_rate → rate, low, high, …
    faults: int | None = None  # failures that were no failing at the task
    ms_per_chunk: float | None = None
    ms_per_chunk_p99: float | None = None
    execution: dict[str, Any] | None = None  # how chunks were executed
    sampler_steps: list[dict[str, Any]] | None = None  # quality and time for each number of steps
    perturb: list[dict[str, Any]] | None = None  # what is left of success under each factor

    # Of `evaluate`.
    checkpoint: str | None = None
    steps: list[dict[str, Any]] | None = None

    wall_seconds: float | None = None
    made: dict[str, Any] = field(default_factory=dict)  # `machine.environment`: where, and with what

    @property
    def value(self) -> float:
        """What it is worth to a sweep; NaN where it did not end, was pruned, or nothing measured it."""
        found = self.objective.value if self.status == "completed" and self.objective else None
        return math.nan if found is None else float(found)

    @property
    def succeeded(self) -> bool:
        """Pruned, or completed with an objective that is no NaN; one that nothing measures is none."""
        unmeasured = self.objective is None or self.objective.value is None
        return self.status == "pruned" or (self.status == "completed" and (unmeasured or math.isfinite(self.value)))

    def is_over(self, pruning: bool) -> bool:
        """Completed, failed as often as it is tried, or pruned by a sweep that prunes; without a pruner, a pruned job
        goes on.
        """
        if self.status == "pruned":
            return pruning
        return self.status == "completed" or (self.status == "failed" and (self.attempts or 1) >= ATTEMPTS)

    def as_json(self) -> dict[str, Any]:
        """What result.json holds: flat, without what is not known, but for what a training can end without."""
        null: set[str] = set()
        if self.train_steps is not None:
            null = {"completed": {"best_step", "trained_by"}, "pruned": {"best_step", "objective"}}.get(
                self.status, null
            )
        left_out = {"made"} | (set() if self.status in ENDED else {"metrics", "success"})
        found = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {key: value for key, value in found.items() if value is not None or key in null} | self.made

    def write(self, folder: Path) -> None:
        """Atomically, and no secret with it."""
        write_json(folder / FILE, self.as_json())


def read_result(folder: Path) -> Result:
    """The result that a folder holds; what is wrong with its file stands in `error`."""
    try:
        found = json.loads((folder / FILE).read_text())
        if not isinstance(found, dict) or "status" not in found:
            raise ValueError("no status")
        known = {one.name for one in fields(Result)} - {"made"}
        stored = {key: value for key, value in found.items() if key in known and value is not None}
        check_values(Result, {key: value for key, value in stored.items() if key != "objective"}, "")
        if "objective" in stored:
            stored["objective"] = _objective(stored["objective"])
        return Result(**stored, made={key: value for key, value in found.items() if key not in known})
    except FileNotFoundError:
        return Result("interrupted" if (folder / "config.json").is_file() else "missing")
    except (ValueError, UnicodeDecodeError) as error:
        return Result("damaged", error=f"{FILE} cannot be read: {error}")


def _objective(found: Any) -> Objective:
    name, value = value_in(found, "name"), value_in(found, "value")
    if not isinstance(name, str) or not isinstance(value, int | float | None):
        raise ValueError(f"objective={shown(found)}: expected a name and a number")
    return Objective(name, value)


class Played(NamedTuple):
    """What became of an episode. ending: one of `world.Ending`; empty where an earlier version wrote none."""

    success: bool
    ending: str


def read_episodes(path: Path) -> dict[tuple[str, int], Played]:
    """(task, episode seed) → what became of it, of an episodes.csv, sorted, so that nothing depends on the order of the
    rows. `ValueError` for an episode that stands there twice.
    """
    found: dict[tuple[str, int], Played] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            episode = row["task"], int(row["episode_seed"])
            if episode in found:
                raise ValueError(f"{episode[0]}, episode seed {episode[1]} stands there twice")
            found[episode] = Played(row["success"] == "1", row.get("ending") or "")
    return dict(sorted(found.items()))
