"""Relative actions: what is learned, what comes out, and what they are refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, LIGHT, compose, write_lerobot

from provla.core.build import build
from provla.core.identity import identity
from provla.core.types import Anchor, Spec, fake_batch, fake_observation
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import Sampler
from provla.policy.folder import load_policy, save_policy
from provla.run.follow import make_policy
from provla.run.setting import Setting, make_spec

NAMES = ("elbow", "left_Gripper", "shoulder")  # of the actions; the state has another order, and one more


def named(spec: Spec) -> Spec:
    return replace(
        spec,
        state_size=4,
        action_size=3,
        joint_groups={},
        state_names=("shoulder", "elbow", "left_Gripper", "force"),
        action_names=NAMES,
    )


def walk(episodes: int = 6, length: int = 30, seed: int = 0) -> Demonstrations:
    """A robot that goes where it is told, a bit late: action = where it will be; far from 0."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(-5, 5, (episodes, 1, 2)) + np.cumsum(rng.normal(0.05, 0.1, (episodes, length + 1, 2)), 1)
    n, grip = episodes * length, rng.random((episodes, length + 1, 1))
    state = np.concatenate([at[:, :-1], grip[:, :-1], rng.random((episodes, length, 1))], -1)
    action = np.concatenate([at[:, 1:, 1:], grip[:, 1:], at[:, 1:, :1]], -1)
    return Demonstrations(
        frames={camera: rng.integers(0, 255, (n, 3, 32, 32), dtype=np.uint8) for camera in ("left", "right")},
        state=state.reshape(n, -1).astype(np.float32),
        actions=action.reshape(n, -1).astype(np.float32),
        starts=np.arange(episodes + 1) * length,
        task=np.arange(episodes) % 2,
        instructions=["Open the drawer", "Close the window gently"],
        joint_names=list(NAMES),
        joint_groups={},
        fps=10.0,
        source="walk",
        state_names=["shoulder", "elbow", "left_Gripper", "force"],
    )


def fitted(*overrides: str, horizon: int = 8) -> tuple[Any, Setting]:
    data = walk()
    given = [f"horizon={horizon}", "n_action_steps=4", "n_obs_steps=1"]
    config = compose(*FAKE, *LIGHT, "policy.actions=relative", *given, *overrides)
    spec = make_spec(config, data)
    train, val = np.arange(4), np.arange(4, 6)
    sizes = spec.cameras, spec.horizon, spec.n_obs_steps
    setting = Setting(data, spec, Sampler(data, train, *sizes), Sampler(data, val, *sizes))
    return make_policy(config, setting, torch.device("cpu")), setting


@pytest.mark.parametrize("kind", ["provla", "act"])
def test_statistics_are_those_of_relative_chunks_and_act_undoes_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = [] if kind == "provla" else ["policy=act", "policy.normalization.action=min_max"]
    if kind == "act":
        over += ["policy.options.dim_model=32", "policy.options.dim_feedforward=32", "policy.options.n_heads=2"]
        over += ["policy.options.n_encoder_layers=1"]
    policy, setting = fitted(*over)
    policy.eval()
    batch = setting.learn.gather(setting.learn.rows)
    base = batch.observation.state[:, -1, [1, 2, 0]].unsqueeze(1) * torch.tensor([1, 0, 1])  # not the gripper's
    wanted = (batch.actions - base)[~batch.is_pad]
    low, high = wanted.min(0).values, wanted.max(0).values
    torch.testing.assert_close(policy.action_norm.centre, (low + high) / 2)  # of whole chunks, without their padding
    torch.testing.assert_close(policy.action_norm.scale, (high - low) / 2)
    assert (policy.action_norm.scale[[0, 2]] < 2).all()  # the robot's places are ten wide
    torch.testing.assert_close(policy.targets(batch)[~batch.is_pad], policy.action_norm(wanted))
    monkeypatch.setattr(policy, "sample", lambda observation, generator, anchor: policy.targets(batch))
    torch.testing.assert_close(policy.act(batch.observation), batch.actions, rtol=1e-5, atol=1e-5)


def test_the_loss_learns_the_chunk_minus_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where robot and chunk are moved by as much, a network that does not see the state learns the same."""
    policy, setting = fitted("augmentation=none")
    policy.eval()
    batch = setting.learn.gather(setting.learn.rows[:6])
    learned: list[torch.Tensor] = []
    was = policy.scheduler.loss
    monkeypatch.setattr(policy.scheduler, "loss", lambda h, a, *rest: (learned.append(a), was(h, a, *rest))[1])
    by = torch.tensor([2.0, -1.0, 0.0, 0.0])  # shoulder, elbow
    moved = replace(
        batch,
        observation=replace(batch.observation, state=batch.observation.state + by),
        actions=batch.actions + by[[1, 2, 0]],
    )
    policy.loss(batch)
    policy.loss(moved)
    torch.testing.assert_close(learned[0], learned[1], rtol=1e-4, atol=1e-4)


def test_an_anchor_is_in_the_robots_units_whatever_state_it_is_continued_from() -> None:
    policy, setting = fitted("scheduler=ddim")
    policy.eval()
    rows = setting.learn.rows[:3]
    batch = setting.learn.gather(rows)
    weight = torch.zeros(3, 8)
    weight[:, :3] = 1
    later = replace(batch.observation, state=batch.observation.state + torch.tensor([0.2, 0.1, 0, 0]))
    for seen in (batch.observation, later):
        found = policy.act(seen, torch.Generator().manual_seed(0), Anchor(batch.actions, weight))
        torch.testing.assert_close(found[:, :3], batch.actions[:, :3], rtol=1e-2, atol=1e-2)


def test_a_stored_policy_is_as_relative(tmp_path: Path) -> None:
    policy, setting = fitted()
    config = compose(*FAKE, *LIGHT, "policy.actions=relative")
    save_policy(tmp_path / "policy", policy.eval(), config["policy"], setting.spec)
    again, spec = load_policy(tmp_path / "policy", torch.device("cpu"))
    assert spec.action_names == NAMES
    seen = fake_observation(spec, 2)
    assert again.act(seen, torch.Generator().manual_seed(0)).equal(policy.act(seen, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_names": ("elbow", "gripper", "wrist")}, "no number of the state is called 'wrist'"),
        ({"state_names": ()}, "does not name its state"),
        ({"action_names": ()}, "does not name its actions"),
        ({"action_names": ("gripper_a", "gripper_b", "gripper_c")}, "all its actions are grippers"),
        ({"state_names": ("elbow", "elbow", "shoulder", "f")}, "several numbers of the state are called 'elbow'"),
    ],
)
def test_joints_that_do_not_match_are_refused(change: dict[str, Any], message: str, spec: Spec) -> None:
    config = compose(*FAKE, *LIGHT, "policy.actions=relative")
    with pytest.raises(ValueError, match=f"policy.actions=relative.*{message}.*policy.actions=absolute"):
        build(config["policy"], "policy", spec=replace(named(spec), **change), device=torch.device("cpu"))


def test_displacements_are_not_made_relative_again() -> None:
    """Meta-World's names of state and action agree, and its actions are displacements."""
    policy, setting = fitted()
    data = setting.data
    moves = data.actions.copy()
    moves[:, [0, 2]] -= data.state[:, [1, 0]]
    with pytest.raises(ValueError, match=r"displacements already.*by joint: \[.*policy.actions=absolute"):
        policy.fit_normalization(torch.from_numpy(data.state), torch.from_numpy(moves))


def test_absolute_is_what_runs_were_before_there_was_a_choice(spec: Spec) -> None:
    config = compose(*FAKE, *LIGHT)
    before = config | {"policy": {k: v for k, v in config["policy"].items() if k != "actions"}}
    assert identity(before) == identity(config) != identity(compose(*FAKE, *LIGHT, "policy.actions=relative"))
    found = []
    for node in (config["policy"], before["policy"]):
        torch.manual_seed(0)
        policy = build(node, "policy", spec=spec, device=torch.device("cpu")).eval()
        found.append(policy.loss(replace(fake_batch(spec, 2), noise=torch.zeros(2, 8, 4), time=torch.zeros(2)))["loss"])
    assert found[0] == found[1]


def test_a_run_of_a_data_set_by_lerobots_own_writer(tmp_path: Path, command: Any) -> None:
    root = write_lerobot(tmp_path / "set")
    given = ["policy.actions=relative", f"dataset.root={root}", "dataset.image_size=[32,32]"]
    fake = [o for o in FAKE if not o.startswith("dataset")]
    code, _, err = command("train", *fake, *LIGHT, "dataset=lerobot", *given)
    assert code == 2
    assert "these actions do not follow the state" in err  # random ones do not
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.state"]["names"] = ["a", "b", "c"]
    (root / "meta" / "info.json").write_text(json.dumps(info))
    code, _, err = command("train", *fake, *LIGHT, "dataset=lerobot", *given)
    assert code == 2
    assert "no number of the state is called 'shoulder'" in err
