"""Faults of a tracker: services that do not answer, and runs that are killed while their record is uploaded."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from servers import Broken, Wandb, closed, serving, silent  # noqa: E402
from tiny import TINY  # noqa: E402

ONLINE = [*TINY, "env=none", "logger=wandb", "logger.mode=online", "trainer.log_every=1", "trainer.val_every=10"]
# Runs a command and says when its first training step was taken, seconds after the tracker was started.
TIMED = """
import sys, time
from provla.logger import wandb as logger
from provla.trainer import loop
start, step, begun = logger.WandbLogger.start, loop.Loop._step, []
def started(*arguments, **options):
    begun.append(time.monotonic())
    return start(*arguments, **options)
def stepped(*arguments, **options):
    found = step(*arguments, **options)
    if begun:
        print(f"FIRST {time.monotonic() - begun.pop():.2f}", flush=True)
    return found
logger.WandbLogger.start, loop.Loop._step = started, stepped
from provla.train import main
sys.argv[0] = "provla.train"
main()
"""


def command(folder: Path, url: str, steps: int) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    environment |= {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": "0123456789" * 4,
        "PROVLA_DATA": str(folder / "data"),
        "WANDB_DATA_DIR": str(folder / "wandb_data"),
    }
    environment["PYTHONPATH"] = str(ROOT)
    asked = [*ONLINE, f"trainer.max_steps={steps}", f"hydra.run.dir={folder / 'run'}"]
    return subprocess.Popen(
        [sys.executable, "-c", TIMED, *asked],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _without(place: Path, service: Callable[[], AbstractContextManager[Any]]) -> tuple[int, int, str]:
    """A run without the service, and `wandb sync` of it to a service that answers."""
    with service() as found:
        url = found if isinstance(found, str) else found.url
        run = command(place, url, 20)
        said, _ = run.communicate(timeout=300)
    first = float(said.partition("FIRST ")[2].split()[0])
    rows = list(csv.DictReader((place / "run" / "metrics.csv").open()))
    (files,) = (place / "run" / "wandb").glob("offline-run-*")
    with serving(Wandb) as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4}
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(files)],
            env=environment,
            cwd=place,
            check=False,
            capture_output=True,
            timeout=120,
        )
        sent = {json.loads(line).get("_step") for line in server.lines.get("wandb-history.jsonl", [])}
    good = (
        run.returncode == 0
        and first <= 5
        and {int(float(row["step"])) for row in rows} >= set(range(1, 21))
        and sent >= set(range(1, 21))
    )
    return (
        1,
        int(good and "wandb sync" in said),
        f"first step after {first:.1f} s; all steps in metrics.csv, and sent later",
    )


def fault_closed(place: Path) -> tuple[int, int, str]:
    """`logger.mode=online`, and nobody listens where W&B should be"""
    return _without(place, closed)


def fault_silent(place: Path) -> tuple[int, int, str]:
    """`logger.mode=online`, and the service takes connections but never answers"""
    return _without(place, silent)


def fault_errors(place: Path) -> tuple[int, int, str]:
    """`logger.mode=online`, and the service answers 500 to everything"""
    return _without(place, lambda: serving(Broken))


def fault_killed(place: Path) -> tuple[int, int, str]:
    """A tracked run is killed with SIGKILL while it trains, and started again: one W&B run, whole, and no process is
    left
    """
    with serving(Wandb) as server:
        run = command(place, server.url, 100_000)
        try:
            _wait(lambda: server.lines.get("wandb-history.jsonl"), 180)
            time.sleep(5)
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        left = _wait(lambda: not _processes(place), 30)
        (config,) = (place / "run").glob("config.json")
        begun = json.loads(config.read_text())["trainer"]["max_steps"]
        again = command(place, server.url, begun)
        try:
            _wait(lambda: len(list((place / "run" / "wandb").glob("offline-run-*"))) > 1, 180)
            time.sleep(10)
        finally:
            again.send_signal(signal.SIGTERM)
            again.communicate(timeout=180)
        names = {variables["name"] for name, variables in server.asked if name == "UpsertBucket"}
        steps = [json.loads(line).get("_step") for line in server.lines["wandb-history.jsonl"]]
    whole = steps == sorted(set(steps)) and steps[:2] == [1, 2]
    return 1, int(bool(left) and len(names) == 1 and whole), f"{len(steps)} rows under one id"


def _processes(place: Path) -> list[str]:
    """Command lines of uploads of runs in this folder."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(place) in line and "offline-run" in line]


def _wait(ready: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()) and time.monotonic() < end:
        time.sleep(0.5)
    return found
