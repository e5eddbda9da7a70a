"""What a run came to: as the rooms hand it on, and as the file keeps it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from provla.core.result import Objective, Result, read_result


def test_a_result_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    rate = {"rate": 0.5, "low": 0.1, "high": 0.9, "episodes": 2}
    done = Result("completed", "f00", {"fusion": "film"}, 3, train_steps=7, faults=0, quantization={})
    done.objective, done.metrics, done.success = Objective("success_rate", 0.5), {"loss": 0.25}, {"success_rate": rate}
    done.made = {"commit": "abc", "machine": {"threads": 2}}
    done.write(tmp_path)
    assert read_result(tmp_path) == done
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["trained_by"] is stored["best_step"] is None  # known, and none
    assert "error" not in stored  # no matter of a run that ended
    assert stored["commit"] == "abc"


def test_what_a_result_is_worth() -> None:
    assert Result("completed", objective=Objective("loss", 0.5)).value == 0.5
    for worthless in (
        Result("failed", objective=Objective("loss", 0.5)),
        Result("completed", objective=Objective("loss", None)),
        Result("completed"),
        Result(),
    ):
        assert math.isnan(worthless.value)
    assert Result("pruned").succeeded
    assert Result("completed", objective=Objective("train/loss", None)).succeeded
    assert not Result("completed", objective=Objective("loss", math.nan)).succeeded
    assert not Result("failed").succeeded
    assert [Result("failed", attempts=n).is_over(False) for n in (1, 2)] == [False, True]
    assert [Result("pruned").is_over(pruning) for pruning in (False, True)] == [False, True]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([1], "no status"),
        ({"seed": 1}, "no status"),
        ({"status": "done"}, "status='done': expected one of: completed, "),
        ({"status": "completed", "success": 1}, "success=1: expected a node"),
        ({"status": "completed", "objective": "loss"}, "objective='loss': expected a name and a number"),
        ({"status": "completed", "objective": {"name": "loss", "value": "low"}}, "expected a name and a number"),
        ({"status": "completed", "train_steps": "many"}, "train_steps='many': expected a whole number"),
    ],
)
def test_a_file_that_is_no_result_is_damaged(stored: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(stored))
    found = read_result(tmp_path)
    assert found.status == "damaged"
    assert said in (found.error or "")


def test_a_folder_without_a_result(tmp_path: Path) -> None:
    assert read_result(tmp_path).status == "missing"
    (tmp_path / "config.json").write_text("{}")
    assert read_result(tmp_path).status == "interrupted"
    (tmp_path / "result.json").write_text("{")
    assert read_result(tmp_path).status == "damaged"
