"""Sweeps whose jobs kill their process, hang, or are asked for twice: the study ends, and every healthy job has one
result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small import FAKE, ROOT

DAMAGE = '''
import ctypes, os, time
from provla.augmentation import NoAugmentation

class Damage(NoAugmentation):
    """Does at the first training step what it is told to."""

    def __init__(self, how: str, number: int) -> None:
        super().__init__()
        self.how = how

    def forward(self, *given):
        if self.how == "kill":
            os.kill(os.getpid(), 9)
        if self.how == "sleep":
            time.sleep(10000)
        if self.how == "native":
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)
        if self.how == "slow":
            time.sleep(2)
        return super().forward(*given)
'''


def start(place: Path, *asked: str) -> subprocess.Popen[bytes]:
    """The sweep's command in a process of its own; its folder is place/s."""
    option = place / "mine" / "augmentation" / "damage.yaml"
    option.parent.mkdir(parents=True, exist_ok=True)
    option.write_text("_target_: damage.Damage\nhow: none\nnumber: 0\n")
    (place / "damage.py").write_text(DAMAGE)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{place}",
        "PROVLA_DATA": str(place / "data"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "provla.train",
        "--config-dir",
        str(place / "mine"),
        "-m",
        *FAKE,
        f"hydra.sweep.dir={place / 's'}",
        *asked,
    ]
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def until_done(place: Path, *asked: str, at_most: int = 6) -> int:
    """Starts the sweep until it ends of its own, as people do; returns how often."""
    for number in range(1, at_most + 1):
        process = start(place, *asked)
        try:
            if process.wait(timeout=1200) >= 0:
                return number
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    raise TimeoutError(f"not done after {at_most} starts")


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
    """kill -9 of the process and its children as soon as the condition holds; False where it ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def results(place: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted((place / "s").glob("*/result.json")):
        config = json.loads((file.parent / "config.json").read_text())
        found.append(
            json.loads(file.read_text())
            | {"how": config["augmentation"].get("how"), "number": config["augmentation"].get("number")}
        )
    return found


def count(place: Path, healthy: int) -> tuple[int, int]:
    """Jobs tried, and those that survived: healthy ones completed, each once; damaged ones failed."""
    found = results(place)
    bad = ("kill", "sleep", "native")
    good = {run["number"] for run in found if run["how"] not in bad and run["status"] == "completed"}
    asked = json.loads((place / "s" / "sweep.json").read_text())["jobs"]
    once = len(good) == healthy == sum(run["how"] not in bad for run in found)
    return len(asked), (
        sum(run["status"] == ("failed" if run["how"] in bad else "completed") for run in found) if once else 0
    )


def fault_killed_in_a_serial_grid(place: Path) -> tuple[int, int, str]:
    """A job of a grid, one after another, kills its process (SIGKILL), at every restart"""
    asked = ["augmentation=damage", "augmentation.how=kill,none", "augmentation.number=0"]
    starts = until_done(place, *asked)
    tried, survived = count(place, 1)
    return tried, survived, f"done at start {starts}; the job is failed: {reason(place, 'kill')}"


def fault_killed_in_a_pool(place: Path) -> tuple[int, int, str]:
    """A job kills its worker (SIGKILL) in a grid under joblib, beside slow siblings"""
    asked = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "augmentation=damage"]
    starts = until_done(place, *asked, "augmentation.how=slow,kill", "augmentation.number=0,1")
    tried, survived = count(place, 2)
    blamed = [run["number"] for run in results(place) if run["how"] == "slow" and run.get("attempts")]
    return tried, survived - len(blamed), f"done at start {starts}; siblings blamed: {len(blamed)}"


def fault_hanging(place: Path) -> tuple[int, int, str]:
    """Jobs of a grid hang for ever, in Python and in native code, under hydra.sweeper.timeout"""
    begun = time.monotonic()
    asked = [
        "augmentation=damage",
        "augmentation.how=sleep,native,none",
        "augmentation.number=0",
        "hydra.sweeper.timeout=0.5",
    ]
    starts = until_done(place, *asked, at_most=1)
    tried, survived = count(place, 1)
    survived -= sum("timeout" not in run.get("error", "") for run in results(place) if run["status"] == "failed")
    return tried, survived, f"{starts} start, over after {time.monotonic() - begun:.0f} s: {reason(place, 'native')}"


def fault_redundant_override(place: Path) -> tuple[int, int, str]:
    """A finished grid is asked again with redundant overrides, in another order, with a folder renamed"""
    until_done(place, "augmentation=damage", "augmentation.number=0,1")
    before = {file.stat().st_mtime_ns for file in (place / "s").glob("*/result.json")}
    next((place / "s").glob("*number=0*")).rename(place / "s" / "renamed")
    until_done(place, "augmentation.number=1,0", "trainer.max_steps=4", "augmentation=damage", "horizon=8")
    after = {file.stat().st_mtime_ns for file in (place / "s").glob("*/result.json")}
    tried, survived = count(place, 2)
    return (
        tried,
        survived if after == before else 0,
        "nothing was trained again" if after == before else "trained again",
    )


def fault_search_killed(place: Path) -> tuple[int, int, str]:
    """A search is killed (SIGKILL) in its second trial, while it trains, and started again"""
    asked = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=0", "augmentation=damage"]
    asked += ["augmentation.how=slow", "trainer.lr=tag(log, interval(1e-4, 1e-2))"]
    sweep = place / "s"

    def second_trains() -> bool:
        return len(results(place)) == 1 and len({file.parents[1] for file in sweep.glob("*/checkpoints/step_*")}) == 2

    killed = kill_when(start(place, *asked), second_trains)
    first = {file.stat().st_mtime_ns for file in sweep.glob("*/result.json")}
    until_done(place, *asked)
    found = results(place)
    kept = first <= {file.stat().st_mtime_ns for file in sweep.glob("*/result.json")}
    done = sum(run["status"] == "completed" for run in found)
    return (
        3,
        done if kept and killed and len(found) == 3 else 0,
        f"killed: {killed}; trials: {len(found)}, completed: {done}",
    )


def reason(place: Path, how: str) -> str:
    errors = [run["error"].strip().splitlines()[-1] for run in results(place) if run["how"] == how and run.get("error")]
    return errors[0].partition(";")[0] if errors else "no error"
