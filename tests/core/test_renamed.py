"""Folders that an earlier provla wrote, under the names that its classes had then, still load, resume, are finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import compose
from safetensors.torch import load_file

import provla
from provla.core.build import build
from provla.core.identity import identity
from provla.core.renamed import RENAMED, as_first_named
from provla.core.types import fake_observation

OLD = Path(__file__).parent / "old"
Command = Callable[..., tuple[int, str, str]]


def asked(run: Path) -> list[str]:
    """The overrides that make a stored configuration."""
    config = json.loads((run / "config.json").read_text())
    groups = {"text": "task_embedding", "head": "mlp"}
    keys = {
        "text": ("width",),
        "vision": ("channels", "width", "num_keypoints"),
        "fusion": ("width",),
        "head": ("width", "depth", "time_width"),
        "trainer": ("batch_size", "max_steps", "val_every", "val_samples", "log_every"),
    }
    values = [f"{node}.{key}={json.dumps(config[node][key])}" for node, own in keys.items() for key in own]
    roots = [f"{key}={config[key]}" for key in ("horizon", "n_action_steps", "device", "threads", "seed")]
    fixed = ["dataset=fake", "env=none", "logger=csv"]
    return [*fixed, *(f"{group}={option}" for group, option in groups.items()), *values, *roots]


def test_an_interrupted_run_goes_on(command: Command, tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    arguments = asked(OLD / "run")
    code, out, err = command("train", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, err
    assert "resuming from step 2" in out
    assert command("train", *arguments, f"hydra.run.dir={tmp_path / 'whole'}")[0] == 0
    old, new = (load_file(tmp_path / run / "policy" / "weights.safetensors") for run in ("run", "whole"))
    before, after = (torch.cat([one[name].flatten() for name in new]) for one in (old, new))
    # Made on another machine, perhaps; Adam turns a rounding of a gradient near zero into a step of the learning rate.
    assert (before - after).norm() < 1e-3 * after.norm()


def test_a_policy_loads_and_acts() -> None:
    stored = json.loads((OLD / "lora" / "policy" / "config.json").read_text())
    assert stored["policy"]["quant"]["_target_"] in RENAMED
    policy = provla.load(OLD / "lora", device="cpu")
    actions = policy.act(fake_observation(policy.spec, 2), torch.Generator().manual_seed(0))
    assert actions.shape == (2, policy.spec.horizon, policy.spec.action_size)


def test_a_finished_sweep_stays_finished(command: Command, tmp_path: Path) -> None:
    shutil.copytree(OLD / "sweep", tmp_path / "sweep")
    before = {file: file.read_bytes() for file in tmp_path.glob("sweep/*/*.*")}
    (run, *_) = tmp_path.glob("sweep/*width=8*")
    values = [one for one in asked(run) if not one.startswith(("seed", "head.width"))]
    code, out, err = command(
        "train", "-m", *values, "head.width=8,16", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    )
    assert code == 0, err
    assert "job 1" not in out
    assert all(file.read_bytes() == content for file, content in before.items())


@pytest.mark.parametrize("overrides", [["policy=act"], ["quant=4bit"], []])
def test_an_identity_outlives_a_renaming(overrides: list[str]) -> None:
    config = compose(*overrides)
    old = as_first_named(config)
    assert old != config
    assert identity(old) == identity(config)
    build(old["quant"], "quant")
