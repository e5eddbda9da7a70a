"""Studies whose truth is known, as provla.train leaves them; what tests of the verdict share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from provla.core.files import write_json
from provla.jobs.sweep import Job, Sweep, save_sweep
from provla.study.findings import Verdict

Command = Callable[..., tuple[int, str, str]]
TASKS = ("drawer-open", "window-close")


def outcomes(rate: float, seed: int, arm: int, episodes: int = 50) -> dict[tuple[str, int], bool]:
    """Successes at a rate: an episode is as hard for all runs, the rest is each run's own luck."""
    hard, own = np.random.default_rng(99), np.random.default_rng([seed, arm])
    draws = 0.6 * hard.standard_normal((2, episodes)) + 0.8 * own.standard_normal((2, episodes))
    level = stats.norm.ppf(rate)
    return {(task, 100_000 + i): bool(draws[t, i] < level) for t, task in enumerate(TASKS) for i in range(episodes)}


def write_run(
    folder: Path,
    config_hash: str,
    seed: int,
    successes: Mapping[tuple[str, int], bool],
    mse: float = 0.1,
    **changes: Any,
) -> None:
    """A completed run as provla.train leaves it, with these episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    rate = sum(successes.values()) / len(successes) if successes else math.nan
    result = {
        "status": "completed",
        "config_hash": config_hash,
        "seed": seed,
        "objective": {"name": "success_rate", "value": rate} if successes else {"name": "trajectory_mse", "value": mse},
        "metrics": {"trajectory_mse": mse, "success_rate": rate},
        "success": {
            "success_rate": {
                "rate": rate,
                "low": 0.0,
                "high": 1.0,
                "episodes": len(successes),
                "successes": sum(successes.values()),
            }
        }
        if successes
        else {},
        "parameters": {"trainable": 1_000_000, "total": 2_000_000},
        "flops_per_sample": 50_000_000,
        "train_seconds": 100.0 + seed,
        "train_steps": 800,
        "wall_seconds": 180.0,
        "ms_per_chunk": 40.0,
        "peak_memory_mb": 2000.0,
        "judged": "latest",
        "commit": "abc",
    }
    write_json(folder / "config.json", {})
    write_json(folder / "result.json", result | changes)
    lines = [
        "task,instruction,episode_seed,success,steps",
        *(f"{task},x,{number},{int(won)},50" for (task, number), won in successes.items()),
    ]
    (folder / "episodes.csv").write_text("\n".join(lines) + "\n")
    (folder / "metrics.csv").write_text("step,train/loss,val/trajectory_mse\n400,0.5,0.3\n600,0.4,\n800,0.3,0.2\n")


def make_study(
    folder: Path, rates: Mapping[str, float], seeds: Sequence[int] = (0, 1, 2), episodes: int = 50, **changes: Any
) -> Path:
    """A finished study over `fusion`: arm → the rate at which it succeeds."""
    jobs = []
    for number, (arm, rate) in enumerate(rates.items()):
        for seed in seeds:
            name = f"fusion={arm},seed={seed}"
            jobs.append(Job(name, {"fusion": arm, "seed": str(seed)}, {"fusion": arm}, seed, f"{arm}{seed}", arm))
            write_run(folder / name, f"{arm}{seed}", seed, outcomes(rate, seed, number, episodes))
    asked = {
        "study": "probe",
        "question": "Which one?",
        "kind": "grid",
        "baseline": next(iter(rates)),
        "objective": "success_rate",
        "command": "python -m provla.train -m",
    }
    save_sweep(folder, Sweep(**{**asked, "jobs": jobs, **changes}))
    return folder


def words(verdict: Verdict) -> dict[str, str]:
    return {arm.name: found.word for arm, found in verdict.compared}
