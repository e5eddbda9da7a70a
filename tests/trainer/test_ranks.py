"""Several ranks: the same training as one process, one set of outputs, and no end without a checkpoint."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import FAKE, ROOT, compose

from provla.core.build import build
from provla.core.machine import find_device
from provla.dataset.sampler import Sampler
from provla.trainer.fit import make_accelerator

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29501"}
RUN = [
    *FAKE,
    "logger=csv",
    "augmentation=crop_color",
    "trainer.max_steps=40",
    "trainer.val_every=20",
    "trainer.save_every=5",
    "trainer.batch_size=8",
    "trainer.grad_accumulation=2",
    "trainer.lr=2e-4",
    "scheduler.num_inference_steps=2",
]
QUICK = [*RUN, "text=task_embedding"]  # to import, for who starts many processes
MINUTE = 60.0


def start(ranks: int, folder: Path, asked: Sequence[str] = RUN) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    words = [sys.executable, "-m", *launcher, "provla.train", *asked, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=2 * MINUTE)
    return process.returncode, said


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def check_same(found: Path, expected: Path) -> None:
    """Row by row, to 1e-5 at first; later what was rounded otherwise has grown."""
    mine, theirs = rows(found), rows(expected)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]  # none twice, none left out
    for row, other in zip(mine, theirs, strict=True):
        for key in row.keys() - {"train/steps_per_second"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5 if row["step"] <= 10 else 2e-3), (key, row["step"])


def wait_for(folder: Path, begun: Sequence[str] = ()) -> None:
    """Until there is a checkpoint besides those."""
    before = time.monotonic()
    while {path.name for path in folder.glob("checkpoints/step_*")} <= set(begun):
        assert time.monotonic() - before < MINUTE, "no checkpoint came"
        time.sleep(0.01)


def rank_of(launcher: int, rank: int) -> psutil.Process:
    children = psutil.Process(launcher).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def alone(folder: Path, asked: Sequence[str], command: Any) -> Path:
    """A run of one process, this one."""
    code, _, err = command("train", *asked, f"hydra.run.dir={folder}")
    assert code == 0, err
    return folder


def test_two_ranks_train_what_one_process_does_and_leave_one_set_of_outputs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, command: Any
) -> None:
    folder, expected_folder = tmp_path / "two", alone(tmp_path_factory.mktemp("alone") / "run", RUN, command)
    code, said = end(start(2, folder))
    assert code == 0, said
    assert said.count("written to") == 1
    check_same(folder, expected_folder)
    found, expected = result(folder), result(expected_folder)
    assert found["status"] == expected["status"] == "completed"
    assert found["config_hash"] == expected["config_hash"]
    assert found["machine"].pop("ranks") == 2  # sums over several are rounded otherwise
    assert found["machine"] == expected["machine"]
    files = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (folder, expected_folder)]
    assert files[0] == files[1]
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def begin(ranks: int, folder: Path) -> subprocess.Popen[str]:
    """Starts or goes on, up to the next checkpoint."""
    there = [path.name for path in folder.glob("checkpoints/step_*")]
    process = start(ranks, folder, QUICK)
    wait_for(folder, there)
    return process


def test_a_run_goes_on_on_any_number_of_ranks_after_signals_and_a_kill(tmp_path: Path, command: Any) -> None:
    """One process, asked to end; two ranks, of which one is asked; two, of which one is killed; one to the end."""
    folder = tmp_path / "run"
    process = begin(1, folder)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 128 + signal.SIGTERM, said

    process = begin(2, folder)
    rank_of(process.pid, 1).send_signal(signal.SIGUSR1)
    code, said = end(process)
    assert code != 0
    assert "resuming from step" in said
    assert said.count("error: ended by SIGUSR1") == 1, said  # rank 0 has it from the other
    assert result(folder)["status"] == "interrupted"

    process = begin(2, folder)
    first, second = rank_of(process.pid, 0), rank_of(process.pid, 1)
    second.kill()
    before = time.monotonic()
    code, said = end(process)
    assert code != 0
    assert time.monotonic() - before < MINUTE
    assert not first.is_running(), said
    assert "another of the 2 ranks of this run has ended" in said, said
    assert result(folder)["status"] == "interrupted"

    code, said, err = command("train", *QUICK, f"hydra.run.dir={folder}")
    assert code == 0, err
    assert "resuming from step" in said
    check_same(folder, alone(tmp_path / "alone", QUICK, command))


def test_ranks_share_a_batch_and_its_draws() -> None:
    config = compose(*FAKE)
    data = build(config["dataset"], "dataset").load()
    sampler = Sampler(data, np.arange(len(data.task)), list(data.frames), config["horizon"], config["n_obs_steps"])
    whole = sampler.step(0, 3, 12)
    count = int((~whole.is_pad).sum())
    assert count < whole.is_pad.numel()
    assert sampler.unpadded(sampler.rows_at(0, 3, 12)) == count
    for rank in range(3):
        part = sampler.step(0, 3, 12, rank, 3)
        for name in ("actions", "is_pad", "noise", "time", "crop", "color", "key"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::3]), name
        assert torch.equal(part.observation.images, whole.observation.images[rank::3])
        assert part.observation.instruction == whole.observation.instruction[rank::3]
        assert [piece.steps_per_sample for piece in part.split(2)] == [count / 12] * 2  # of the whole, not of the part


def test_what_ranks_cannot_do_is_said(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (LAUNCHED | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(key, value)
    trainer = build(compose(*FAKE, "trainer.batch_size=3", "trainer.grad_accumulation=3")["trainer"], "trainer")
    with pytest.raises(ValueError, match=r"batch_size=3 · trainer\.grad_accumulation=3: the 9 samples .* by 2 ranks"):
        trainer.check_samples(100)
    with pytest.raises(ValueError, match="device=cuda:1: each of the 2 ranks has its own; give device=auto"):
        find_device("cuda:1")
    for words, message in (
        (["-m", "seed=0,1"], "-m under 2 ranks: a sweep starts each job as one process"),
        (["rerun=nowhere"], "rerun under several ranks"),
    ):
        code, _, err = command("train", *FAKE, *words)
        assert code == 2
        assert message in err
    code, _, err = command("evaluate", "checkpoint=nowhere")
    assert code == 2
    assert "which this was not made for" in err


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_job_that_is_given_the_second_gpu_trains_there() -> None:
    device = find_device("cuda:1")
    assert make_accelerator("none", device).prepare(torch.nn.Linear(2, 2)).weight.device == device
    find_device("cuda:0")
