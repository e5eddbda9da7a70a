"""Judging repeats itself: one precision, fixed draws, and torch's generators left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FAKE, compose
from torch import nn

import provla
from provla.core.build import build
from provla.core.precision import describe_precision
from provla.core.types import fake_observation
from provla.dataset.sampler import Sampler
from provla.run.setting import check_objective, make_spec
from provla.trainer.validation import validate

CPU = torch.device("cpu")
Command = Callable[..., tuple[int, str, str]]
SMALL = {
    "provla": [],
    "act": ["policy.options.dim_model=32", "policy.options.dim_feedforward=32", "policy.options.n_encoder_layers=1"],
    "diffusion": ["policy.options.down_dims=[16,32]", "policy.options.spatial_softmax_num_keypoints=4"],
    "multi_task_dit": [
        "policy.options.hidden_dim=32",
        "policy.options.num_layers=1",
        "policy.clip.vision.num_hidden_layers=1",
    ],
}


def setup(kind: str, *overrides: str) -> tuple[Any, Sampler]:
    config = compose(*FAKE, f"policy={kind}", *SMALL[kind], *overrides)
    source = build(config["dataset"], "dataset")
    data = source.load()
    spec = make_spec(config, data)
    torch.manual_seed(0)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.fit_normalization(torch.from_numpy(data.state), torch.from_numpy(data.actions))
    return policy, Sampler(
        data, data.split(source.val_fraction, source.split_seed)[1], spec.cameras, spec.horizon, spec.n_obs_steps
    )


@pytest.mark.parametrize("kind", list(SMALL))
def test_validation_repeats_itself_and_leaves_the_generators_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, val = setup(kind)
    if kind == "act":  # something that draws inside a network even in evaluation
        inner = policy.policy.model.forward
        monkeypatch.setattr(
            policy.policy.model, "forward", lambda batch: (inner(batch)[0] + torch.randn(()), inner(batch)[1])
        )
    torch.manual_seed(1)
    first = validate(policy, val, 8, 4, 0, CPU)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = validate(policy, val, 8, 4, 0, CPU)
    assert again == first
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(state, before)
    assert validate(policy, val, 8, 4, 1, CPU) != first


@pytest.mark.parametrize("kind", ["provla", "diffusion"])
def test_acting_is_the_same_under_autocast(kind: str) -> None:
    policy, val = setup(kind)
    observation = fake_observation(policy.spec, 2)
    expected = policy.eval().act(observation, torch.Generator().manual_seed(0))
    plain = validate(policy, val, 8, 4, 0, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found = policy.act(observation, torch.Generator().manual_seed(0))
        assert validate(policy, val, 8, 4, 0, CPU) == plain
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_run_trained_in_bf16_is_judged_as_it_acts(command: Command, tmp_path: Path) -> None:
    """Its validation, chunks of two steps and groups of joints included, is what `evaluate` finds, and no file holds a
    nan.
    """
    run, again = tmp_path / "run", tmp_path / "again"
    short = [o for o in FAKE if not o.startswith(("horizon", "n_action_steps", "logger"))]
    more = [
        "logger=csv",
        "horizon=2",
        "n_action_steps=2",
        "dataset.joint_groups=each",
        "trainer.precision=bf16",
        "trainer.max_steps=2",
    ]
    code, _, err = command("train", *short, *more, f"hydra.run.dir={run}")
    assert code == 0, err
    code, _, err = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={again}")
    assert code == 0, err
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (run, again))
    assert first["precision"] == second["precision"] == "float32"
    assert first["metrics"] == second["metrics"]
    assert {"endpoint_error", "endpoint_mae", "trajectory_mse/joint2"} <= set(first["metrics"])
    assert not any("smoothness" in name for name in first["metrics"])
    for file in (run / "result.json", run / "metrics.csv", again / "result.json"):
        assert "nan" not in file.read_text().lower()
    with pytest.raises(ValueError, match="objective='smoothness' is not measured by this run"):
        check_objective("smoothness", SimpleNamespace(episodes=[]), provla.load(run).spec, True)


def test_the_precision_is_said() -> None:
    parts = nn.ModuleDict(
        {
            "vision": nn.Linear(2, 2).bfloat16(),
            "head": nn.Linear(2, 2),
            "text": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()),
        }
    )
    assert describe_precision(parts) == "float32; bfloat16 weights in vision, text"
    assert describe_precision(nn.ModuleDict({"head": nn.Linear(2, 2)})) == "float32"
