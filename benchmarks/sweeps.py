"""Ten short runs as one sweep and as ten processes: python benchmarks/sweeps.py [steps]

The default policy without a simulation, ten seeds of so many steps (20). Weights are equal, or nothing is said. The
line also has how many seconds of a sweep's run are not steps.

python benchmarks/sweeps.py split [steps] [runs]: one sweep of so many runs (30) alone; the seconds of each stage of a
run (medians of all but the first; what is in none is `rest`), and the process's memory after every fifth run
[MB].
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from turns import held, seconds, told

RUNS = 10
# Stage → where its function is looked up. None of them calls another.
STAGES = {
    "steps": "provla.trainer.loop:Loop._step",
    "validation": "provla.trainer.loop:validate",
    "checkpoint": "provla.trainer.loop:Loop._write",
    "policy folder": "provla.run.train:save_policy",
    "data": "provla.run.train:load_setting",
    "policy built": "provla.run.train:_build",
    "plots": "provla.run.train:plot_run",
    "latency": "provla.run.judging:latency",
}


def command(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "provla.train", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "policy" / "weights.safetensors").read_bytes()).hexdigest()


def overrides(steps: int) -> list[str]:
    return ["env=none", "logger=csv", f"trainer.max_steps={steps}", "trainer.val_every=100000"]


def timed(place: str, into: dict[str, float], stage: str) -> None:
    """Has a function add its seconds to those of its stage."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    done = getattr(owner, last)

    def call(*given: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return done(*given, **named)
        finally:
            into[stage] = into.get(stage, 0.0) + time.perf_counter() - begun

    setattr(owner, last, call)


def split(steps: int, runs: int) -> None:
    from provla.study.launch import JobRunner
    from provla.train import main as train

    now: dict[str, float] = {}
    rows: list[dict[str, float]] = []
    memory: list[float] = []
    for stage, place in STAGES.items():
        timed(place, now, stage)
    start = JobRunner._start

    def started(self: Any, batch: Any) -> None:
        now.clear()
        begun = time.perf_counter()
        start(self, batch)
        rows.append({**now, "rest": time.perf_counter() - begun - sum(now.values())})
        memory.append(held("VmRSS"))

    JobRunner._start = started  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        sys.argv[1:] = ["-m", *overrides(steps), f"seed=range({runs})", f"hydra.sweep.dir={place}"]
        with contextlib.suppress(SystemExit):
            train()
    found = {stage: round(median(row.get(stage, 0.0) for row in rows[1:]), 3) for stage in rows[0]}
    row = {"what": "a run of a sweep", "for_steps": steps, "n": runs, **found, "memory": [*map(round, memory[4::5])]}
    print(json.dumps(row), flush=True)


def main(steps: int) -> None:
    asked = overrides(steps)
    with tempfile.TemporaryDirectory() as place:
        sweep, alone = Path(place) / "sweep", Path(place) / "alone"
        command(*asked, f"hydra.run.dir={Path(place) / 'warm'}")  # the recording and its frame cache are there
        ours = seconds(lambda: command("-m", *asked, f"seed=range({RUNS})", f"hydra.sweep.dir={sweep}"))
        theirs = seconds(
            lambda: [command(*asked, f"seed={seed}", f"hydra.run.dir={alone / str(seed)}") for seed in range(RUNS)]
        )
        found = {json.loads(file.read_text())["seed"]: file.parent for file in sweep.glob("*/result.json")}
        if wrong := [seed for seed in range(RUNS) if weights(found[seed]) != weights(alone / str(seed))]:
            sys.exit(f"seed {wrong[0]} has other weights in a sweep than alone")
        learned = sum(json.loads((folder / "result.json").read_text())["train_seconds"] for folder in found.values())
        told(
            "ten short runs", "ten processes", [(ours, theirs)], seconds_beside_steps=round((ours - learned) / RUNS, 2)
        )


if __name__ == "__main__":
    numbers = [int(found) for found in sys.argv[1:] if found != "split"]
    if "split" in sys.argv:
        split(*[*numbers, *(20, 30)[len(numbers) :]])
    else:
        main(*numbers or [20])
