"""Sweeps on a Ray cluster: two nodes, one of which dies in the middle; and what is said where Ray is missing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE
from test_sweep import results, start

Command = Callable[..., tuple[int, str, str]]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'provla[ray]'")
LONG = [o for o in FAKE if not o.startswith(("logger", "trainer.max_steps", "trainer.val_every"))] + [
    "logger=csv",
    "trainer.max_steps=300",
    "trainer.val_every=50",
    "trainer.save_every=20",
]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head on which no job has room, to which nodes are added."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_launcher_says_how_to_install_it(command: Command, tmp_path: Path) -> None:
    code, _, err = command("train", "-m", "hydra/launcher=ray", *FAKE, "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 2
    assert "hydra/launcher=ray needs Ray, which is not installed" in err
    assert "pip install 'provla[ray]'" in err


@needs_ray
def test_without_a_cluster_the_launcher_says_how_to_start_one(command: Command, tmp_path: Path) -> None:
    asked = ["train", "-m", "hydra/launcher=ray", *FAKE, "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}"]
    code, _, err = command(*asked, "hydra.launcher.address=127.0.0.1:1")
    assert code != 0
    assert "hydra.launcher.address=127.0.0.1:1: no Ray cluster answers there; start one with ray start --head" in err


def wait_for(condition: Callable[[], Any], sweep: subprocess.Popen[bytes], log: Path, seconds: float = 200) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert sweep.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    return found


def trained(folder: Path) -> list[int]:
    """The steps of a job's log, each as often as it stands there."""
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [int(row.split(",")[0]) for row in rows]


@needs_ray
def test_a_node_that_dies_costs_no_job_and_none_runs_twice(cluster: Any, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    doomed = cluster.worker_nodes and sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0]
    sweep, log = tmp_path / "s", tmp_path / "log"
    asked = ["-m", "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", "hydra.launcher.num_cpus=1"]
    job = [*LONG, "seed=0,1,2,3", f"hydra.sweep.dir={sweep}"]
    running = start([*asked, *job], log)
    try:
        # Both nodes are in the middle of a job.
        wait_for(lambda: len(list(sweep.glob("*/checkpoints"))) >= 2, running, log)
        cluster.remove_node(doomed, allow_graceful=False)
        assert running.wait(280) == 0, log.read_text()
    finally:
        running.kill()
    said = " ".join(log.read_text().split())
    assert said.count("it starts again (1 of 1)") == 1, said
    found = results(sweep)
    assert [result["status"] for result in found.values()] == ["completed"] * 4
    for name in found:
        assert trained(sweep / name) == sorted([*range(1, 301), *range(50, 301, 50)]), name  # and those validated
        assert (sweep / name / "log.txt").read_text().count("written to") == 1  # completed once
    once_more = subprocess.run(
        [sys.executable, "-m", "provla.train", *asked, *job],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert once_more.returncode == 0, once_more.stderr
    assert results(sweep) == found


@needs_ray
def test_a_signal_ends_the_jobs_with_a_checkpoint(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    sweep, log = tmp_path / "s", tmp_path / "log"
    asked = ["-m", "hydra/launcher=ray", f"hydra.launcher.address={cluster.address}", "hydra.launcher.num_cpus=1"]
    long = [o for o in LONG if not o.startswith("trainer.max_steps")] + ["trainer.max_steps=100000"]
    running = start([*asked, *long, "seed=0,1", f"hydra.sweep.dir={sweep}"], log)
    try:
        wait_for(lambda: list(sweep.glob("*/checkpoints/step_*")), running, log)
        running.send_signal(signal.SIGTERM)
        assert running.wait(100) == 128 + signal.SIGTERM, log.read_text()
    finally:
        running.kill()
    (only,) = results(sweep).values()  # the second one has not begun
    assert only["status"] == "interrupted"
    assert (
        not list(sweep.glob("*/attempt.json"))
        or not json.loads(next(sweep.glob("*/attempt.json")).read_text())["running"]
    )
