"""Numbers that are not finite: noticed, named, and never a result."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FAKE

from provla.core.errors import NotFinite
from provla.core.result import Objective
from provla.run.judging import objective_of
from provla.trainer.finite import Gauge, not_finite

Command = Callable[..., tuple[int, str, str]]


def test_names_of_tensors_that_are_not_finite() -> None:
    tensors = {
        "a": torch.zeros(3),
        "b": torch.tensor([1.0, math.nan]),
        "c": torch.tensor([1, 2]),
        "d": torch.tensor(-math.inf),
        "e": torch.zeros(0),
    }
    assert not_finite(tensors) == ["b", "d"]
    assert not_finite({}) == []


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gauge_sums_what_is_finite_and_knows_the_first_bad_step(scaled: bool) -> None:
    gauge = Gauge(torch.device("cpu"), [0.5, 0.25, 1.0], scaled)
    for step, (loss, norm) in enumerate([(0.1, 1.0), (0.2, math.inf), (0.3, 2.0), (math.nan, 1.0)]):
        gauge.add(step, torch.tensor(loss), torch.tensor(norm))
        # fp16's scaling sees to its own gradients.
        assert gauge.broken() == (None if step < (3 if scaled else 1) else 3 if scaled else 1)
    expected = [0.5 + float(torch.tensor(0.1)) + float(torch.tensor(0.3)), 3.25, 3.0]
    assert gauge.read() == expected
    gauge.forgive()
    gauge.clear()
    assert (gauge.broken(), gauge.read()) == (None, [0.0, 0.0, 0.0])


def test_a_run_whose_numbers_are_not_finite_has_failed(command: Command, tmp_path: Path) -> None:
    fake = [o for o in FAKE if not o.startswith("logger")]
    diverging = ["trainer.lr=1e38", "trainer.max_steps=1", "trainer.warmup_steps=0"]
    code, _, err = command("train", *fake, "logger=csv", *diverging, f"hydra.run.dir={tmp_path}/run")
    assert code == 3
    assert "error: step 1: " in err
    assert "is not finite. Lower trainer.lr=1e+38" in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "NotFinite: step 1" in result["error"]
    assert not (tmp_path / "run" / "policy").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)


def test_an_objective_that_is_nan_is_no_result() -> None:
    with pytest.raises(NotFinite, match="the objective smoothness is nan: this run has no result"):
        objective_of("smoothness", {"smoothness": math.nan})
    # Neither simulation nor held-out demonstrations.
    assert objective_of("auto", {}) == Objective("train/loss", None)
