"""What judging measures: rates with their intervals, episodes as rows, milliseconds, the objective."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from provla.core.device import settle
from provla.core.errors import NotFinite
from provla.core.files import csv_text, write_text
from provla.core.result import Objective, Result
from provla.core.types import Spec, fake_observation
from provla.env.rollout import Outcome, rollout, write_videos
from provla.env.suite import option
from provla.execution import Execution
from provla.statistics.checks import wilson


def summarize(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Per task and over all (`success_rate`): rate, its 95 % Wilson interval (low, high), episodes, successes, and how
    many failures ended how (`ended/<ending>`).
    """
    cells: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault(outcome.episode.task, []).append(outcome)
        cells.setdefault("success_rate", []).append(outcome)
    found = {}
    for name, played in cells.items():
        wins = sum(outcome.success for outcome in played)
        low, high = wilson(wins, len(played))
        found[name] = {"rate": wins / len(played), "low": low, "high": high, "episodes": len(played), "successes": wins}
        found[name] |= Counter(f"ended/{o.ending}" for o in played if not o.success)
    return found


def rates(success: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of `summarize`'s cells: success_rate, and success_rate/<task>."""
    return {name if name == "success_rate" else f"success_rate/{name}": cell["rate"] for name, cell in success.items()}


@dataclass
class Judgement:
    """What judging a policy found. metrics: offline, and success rates. episodes: as they were played."""

    metrics: dict[str, float] = field(default_factory=dict)
    episodes: list[Outcome] = field(default_factory=list)
    execution: dict[str, Any] | None = None  # how chunks were executed, with the delay in control steps
    videos: list[Path] = field(default_factory=list)

    @property
    def success(self) -> dict[str, dict[str, float]]:
        return summarize(self.episodes)

    @property
    def faults(self) -> int:
        """Failures that were no failing at the task."""
        return sum(bool(outcome.reason) for outcome in self.episodes)

    def play(
        self, policy: Any, suite: Any, spec: Spec, seed: int, device: torch.device, folder: Path, how: Execution
    ) -> None:
        """All of the suite's episodes, into episodes.csv and videos/. how: chunks are executed."""
        outcomes: list[Outcome] = []
        if suite.episodes:
            how = self.settle(policy, spec, device, how)
            outcomes = rollout(policy, suite, spec, seed, device, how)
        self.take(outcomes, suite, spec, folder)

    def settle(self, policy: Any, spec: Spec, device: torch.device, how: Execution) -> Execution:
        """How chunks are executed, with a delay that is measured now where that was asked for."""
        if how.delay == "measured":
            how = how.settled(spec, latency(policy, spec, device).median)
        self.execution = {"kind": type(how).__name__, **asdict(how)}
        return how

    def take(self, outcomes: list[Outcome], suite: Any, spec: Spec, folder: Path) -> None:
        """Episodes that were played, into episodes.csv and videos/."""
        if outcomes:
            self.episodes = outcomes
            self.metrics |= rates(self.success)
            self.videos = write_videos(self.episodes, folder / "videos", spec.fps / option(suite, "video_stride"))
        write_episodes(self.episodes, folder / "episodes.csv")

    def conclude(
        self,
        result: Result,
        objective: str,
        policy: Any,
        spec: Spec,
        device: torch.device,
        trained: float = math.inf,
    ) -> None:
        """Into a result: what was found, and how long a robot would wait for a chunk. trained: see `latency`."""
        result.objective, result.metrics = objective_of(objective, self.metrics), self.metrics
        result.success, result.faults, result.execution = self.success, self.faults, self.execution
        result.ms_per_chunk, result.ms_per_chunk_p99 = latency(policy, spec, device, trained)


EPISODE = ("task", "instruction", "episode_seed", "success", "steps", "ending", "reason")


def episode_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per episode; task and episode_seed identify it across runs. reason: of a failure that was a fault. score:
    the best that was reached, and rule/<name>: whether another rule of success was met, where the world has such.
    """
    found = (
        (o.episode.task, o.episode.instruction, o.episode.seed, int(o.success), o.steps, o.ending, o.reason)
        for o in outcomes
    )
    rows: list[dict[str, Any]] = [dict(zip(EPISODE, values, strict=True)) for values in found]
    more = ["score"] if any(o.score is not None for o in outcomes) else []
    more += [f"rule/{name}" for name in dict.fromkeys(name for o in outcomes for name in o.rules)]
    for row, o in zip(rows, outcomes, strict=True):
        told = {f"rule/{name}": int(kept) for name, kept in o.rules.items()} | {"score": o.score}
        row |= {key: told.get(key, "") for key in more}
    return rows


def write_episodes(outcomes: Sequence[Outcome], path: Path) -> None:
    """episodes.csv."""
    rows = episode_rows(outcomes)
    write_text(path, csv_text(rows, list(rows[0]) if rows else EPISODE))


WARM, CALLS, FEW, LONG = 3, 100, 10, 3.0  # calls before, calls; once they take so many seconds, fewer will do
SHARE, LEAST = 0.05, 5  # of a training's seconds that they may take, where that is less; then fewer yet will do


class Latency(NamedTuple):
    """Milliseconds that a robot would wait for a chunk: the median, and what 99 of a hundred calls stay below."""

    median: float
    p99: float


def latency(policy: Any, spec: Spec, device: torch.device, trained: float = math.inf) -> Latency:
    """Of `act` on one observation, until its actions are on the host. trained: seconds of the policy's training; after
    a minute or more of it there is time for all calls.
    """
    policy.eval()
    enough = min(LONG, SHARE * trained)
    few = FEW if enough == LONG else LEAST
    observation = fake_observation(spec, 1).to(device)
    times: list[float] = []
    for number in range(WARM + CALLS):
        settle(device)
        begun = time.perf_counter()
        policy.act(observation, torch.Generator().manual_seed(0)).cpu()
        if number >= WARM:
            times.append(time.perf_counter() - begun)
        if len(times) >= few and sum(times) > enough:
            break
    median, p99 = 1000 * np.percentile(times, [50, 99])
    return Latency(float(median), float(p99))


def objective_of(name: str, metrics: Mapping[str, float]) -> Objective:
    """`NotFinite` for a number that is none."""
    if name == "auto":
        name = next((name for name in ("success_rate", "trajectory_mse") if name in metrics), "train/loss")
    value = metrics.get(name)
    if value is not None and not math.isfinite(value):
        raise NotFinite(
            f"the objective {name} is {value}: this run has no result; lower trainer.lr, or look at the data's ranges "
            "(python -m provla.analyze)"
        )
    return Objective(name, value)
