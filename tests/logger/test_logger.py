"""Trackers: what they keep, and that nothing waits for them."""

from __future__ import annotations

import csv
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from servers import Wandb, closed, serving, silent

from provla.core.result import Result
from provla.logger import upload
from provla.logger import wandb as logger
from provla.logger.wandb import Background, WandbLogger, summary

RESULT = Result(
    "completed",
    config_hash="f00",
    parameters={"total": 5, "trainable": 3, "parts": {"head": {"total": 5}}},
    flops_per_sample=7,
    metrics={"trajectory_mse": 0.1, "success_rate": 0.5, "success_rate/push": 0.5},
    success={name: {"rate": 0.5, "low": 0.3, "high": 0.7, "episodes": 2} for name in ("push", "success_rate")},
    ms_per_chunk=30.5,
    made={"commit": "abc", "peak_memory_mb": 2.0},
)


@pytest.fixture(autouse=True)
def _service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key, no mode from outside, and its own place for what W&B keeps; the thread may be slow on a busy machine."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.setattr(logger, "PATIENCE", 120.0)
    monkeypatch.setattr(upload, "UNREACHED", 120.0)


def track(folder: Path, history: list[dict[str, float]]) -> float:
    """A run that is tracked online; the seconds until it may train."""
    step = folder / "checkpoints" / "step_0000002"
    step.mkdir(parents=True, exist_ok=True)
    (step / "weights.safetensors").write_bytes(b"weights")
    tracker = WandbLogger("provla", None, "online")
    begun = time.monotonic()
    tracker.start(folder, {"seed": 0}, "a run", "study", history, ["study=probe", "fusion=film"])
    for number in (1, 2):
        tracker.log(number, {"train/loss": 1 / number})
    tracker.checkpoint(step, ["latest"])
    waited = time.monotonic() - begun
    tracker.table("episodes", [{"task": "push", "episode_seed": 1, "success": 1, "steps": 8, "reason": ""}])
    tracker.finish(RESULT)
    return waited


def rows(server: Any) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key in ("_step", "train/loss")}
        for line in server.lines["wandb-history.jsonl"]
    ]


def test_online_everything_is_sent_while_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Wandb) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        waited = track(tmp_path / "run", [{"step": 0, "train/loss": 3.0}])
        assert waited < 3
        assert server.complete
        assert rows(server)[:3] == [
            {"_step": 0, "train/loss": 3},
            {"_step": 1, "train/loss": 1},
            {"_step": 2, "train/loss": 0.5},
        ]
        asked = next(variables for name, variables in server.asked if name == "UpsertBucket")
        assert (asked["name"], asked["groupName"], asked["displayName"]) == (
            json.loads((tmp_path / "run" / "wandb_run.json").read_text())["id"],
            "study",
            "a run",
        )
        assert asked["tags"] == ["study=probe", "fusion=film"]
        assert f"checkpoint-{asked['name']}" in json.dumps(
            [variables for name, variables in server.asked if name == "CreateArtifact"]
        )
        kept = json.loads(server.lines["wandb-summary.json"][-1])
        assert kept.items() >= summary(RESULT).items()
        assert "wandb sync" not in capsys.readouterr().out
        assert not list((tmp_path / "run" / "wandb").glob(".step*"))

        # Resumed: the same run, written anew and whole.
        track(tmp_path / "run", [{"step": 0, "train/loss": 3.0}])
        names = {variables["name"] for name, variables in server.asked if name == "UpsertBucket"}
        assert names == {asked["name"]}
        assert [row["_step"] for row in rows(server)][:3] == [0, 1, 2]


@pytest.mark.parametrize("kind", [closed, silent])
def test_a_service_that_does_not_answer_costs_nothing(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upload, "UNREACHED", 0.0)
    with kind() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert track(tmp_path / "run", []) < 3
    (files,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"send the run later:  wandb sync {files}" in capsys.readouterr().out
    assert not list(files.glob("*.synced"))
    import wandb

    wandb.teardown()  # its service may write for a moment longer than `finish` says; the end of a process waits
    stored = next(files.glob("*.wandb")).read_bytes()
    for word in (b"train/loss", b"success_rate/low", b"parameters/trainable", b"fusion=film", b"ms_per_chunk"):
        assert word in stored
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["train/loss"] for row in csv.DictReader(file)] == ["1.0", "0.5"]


def test_what_hangs_or_fails_in_a_tracker_is_waited_for_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    calls = Background("W&B")
    calls(lambda: 1 // 0)
    calls(lambda: done.append(1))
    assert calls.finish(10)
    assert done == [1]
    assert capsys.readouterr().out.count("W&B failed (ZeroDivisionError") == 1
    stuck, gate = Background("W&B"), threading.Event()
    stuck(lambda: gate.wait(60))
    begun = time.monotonic()
    assert not stuck.finish(0.1)
    assert time.monotonic() - begun < 5
    gate.set()


def test_the_summary_holds_what_runs_are_filtered_by() -> None:
    found = summary(RESULT)
    for key in (
        "status",
        "commit",
        "config_hash",
        "flops_per_sample",
        "ms_per_chunk",
        "peak_memory_mb",
        "trajectory_mse",
    ):
        assert key in found
    assert (
        found["success_rate"],
        found["success_rate/low"],
        found["success_rate/high"],
        found["success_rate/push/high"],
    ) == (0.5, 0.3, 0.7, 0.7)
    assert (found["parameters/total"], found["parameters/trainable"]) == (5, 3)
