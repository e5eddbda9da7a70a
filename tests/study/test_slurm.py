"""submitit's launchers: what is preempted goes on from its checkpoint, what dies ends no sibling, none runs twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import FAKE, LIGHT
from test_sweep import results, start

LONG = [o for o in FAKE if not o.startswith(("logger", "trainer.max_steps", "trainer.val_every"))] + [
    *LIGHT,
    "logger=csv",
    "trainer.max_steps=400",
    "trainer.val_every=100000",
]


def answers() -> bool:
    return (
        shutil.which("sinfo") is not None and "up" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout
    )


KINDS = [
    "submitit_local",
    pytest.param(
        "submitit_slurm",
        marks=[pytest.mark.slow, pytest.mark.skipif(not answers(), reason="needs SLURM here: slurmctld and slurmd")],
    ),
]


def workers(sweep: Path) -> list[int]:
    """The processes that run jobs of this sweep."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "submitit.core._submit" in line and str(sweep) in line[-1] and "srun" not in line[0]:
            found.append(process.pid)
    return found


def wait_for(condition: Callable[[], Any], sweep: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert sweep.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def steps(folder: Path) -> list[int]:
    return [int(row.split(",")[0]) for row in (folder / "metrics.csv").read_text().splitlines()[1:]]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_one_job_is_preempted_and_one_is_killed(kind: str, tmp_path: Path) -> None:
    sweep, log = tmp_path / "s", tmp_path / "log"
    running = start(["-m", f"hydra/launcher={kind}", *LONG, "seed=0,1", f"hydra.sweep.dir={sweep}"], log)
    try:
        wait_for(lambda: len([f for f in sweep.glob("*/metrics.csv") if len(steps(f.parent)) > 3]) == 2, running, log)
        preempted, killed = sorted(workers(sweep))[:2]
        os.kill(preempted, signal.SIGUSR2)
        os.kill(killed, signal.SIGKILL)
        assert running.wait(500) == 0, log.read_text()
    finally:
        running.kill()
    found = results(sweep)
    assert [result["status"] for result in found.values()] == ["completed"] * 2
    for (
        name
    ) in found:  # the preempted one went on from its very step, the killed one began anew: no step is lost or twice
        rows = steps(sweep / name)
        assert rows == sorted({*rows}) or rows[-2:] == [400, 400], name
        assert {*rows} == {*range(1, 401)}
    said = " ".join(log.read_text().split())
    assert "died, and its siblings go on" in said
    assert said.count("once more:") == 1
    written = "".join(
        file.read_text()
        for file in [*(sweep / ".submitit").rglob("*_log.*"), *sweep.glob("*/log.txt")]
        if file.suffix in (".out", ".err", ".txt")
    )
    assert written.count("resuming from step") == 1
    assert written.count("Requeued job") == 1
    assert written.count("written to") == 2  # each completed once
    marks = [json.loads(file.read_text()) for file in sweep.glob("*/attempt.json")]
    assert not any(mark["running"] for mark in marks)
