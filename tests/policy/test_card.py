"""README.md of an export: what a run knows stands there, and what nobody knows is said to be unknown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE, LIGHT
from huggingface_hub import ModelCard

from provla.core.result import read_result
from provla.policy.card import card

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Command, tmp_path: Path) -> Path:
    code, _, err = command("train", *FAKE, *LIGHT, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, err
    return tmp_path / "run"


def test_every_export_has_a_card_of_its_run(run: Path, command: Command) -> None:
    result = read_result(run)
    assert result.data is not None
    for options, folder, use in (([], "policy-full", "provla.load("), (["onnx=true"], "policy-onnx", "onnxruntime")):
        code, _, err = command("export", f"checkpoint={run}", *options)
        assert code == 0, err
        found = ModelCard.load(run / folder / "README.md")
        assert found.data.library_name == "provla"
        assert {"robotics", "scheduler=l1", "text=task_embedding"} <= set(found.data.tags)
        assert use in found.text
        assert f"| episodes | {result.data['episodes']} ({result.data['frames']:,} frames" in found.text
        assert "| steps | 4 of 8 |" in found.text
        assert f"| trajectory_mse | {result.metrics['trajectory_mse']:.4g} |" in found.text
        assert f"hf upload <you>/{folder} {folder}" in found.text
        assert "no simulation" in found.text


def test_an_export_whose_card_fails_is_none(run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise ValueError("result.json is damaged")

    monkeypatch.setattr("provla.policy.card.card", fails)
    before = sorted(run.iterdir())
    assert command("export", f"checkpoint={run}")[0] == 2
    assert sorted(run.iterdir()) == before


def test_results_with_their_intervals_and_the_data_set_of_the_hub(run: Path) -> None:
    result, config = json.loads((run / "result.json").read_text()), json.loads((run / "config.json").read_text())
    cell = {"rate": 0.75, "low": 0.41, "high": 0.93, "episodes": 8, "successes": 6}
    (run / "result.json").write_text(json.dumps(result | {"success": {"wave": cell, "success_rate": cell}}))
    config["dataset"] |= {"repo_id": "acme/waves"}
    (run / "config.json").write_text(json.dumps(config))
    found = ModelCard(card("name", run / "policy", "policy"))
    assert found.data.datasets == ["acme/waves"]
    assert "| wave | 75% | 41% – 93% | 8 |" in found.text
    assert "| **all tasks** | 75% | 41% – 93% | 8 |" in found.text


def test_a_policy_without_its_run_or_beside_another_says_that_results_are_unknown(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "policy", tmp_path / "alone" / "policy")
    assert "Results are unknown" in card("name", tmp_path / "alone" / "policy", "policy")
    shutil.copy(run / "config.json", tmp_path / "alone")
    other = json.loads((run / "result.json").read_text()) | {"config_hash": "0" * 16}
    (tmp_path / "alone" / "result.json").write_text(json.dumps(other))
    found = card("name", tmp_path / "alone" / "policy", "policy")
    assert "Results are unknown" in found
    assert "trajectory_mse" not in found
