"""What a policy reads of what was executed: the same in training, in episodes, in a server, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose, drawn_batch
from numpy.typing import NDArray
from torch import nn
from worlds import ToyWorld

from provla.core.build import build
from provla.core.types import Observation, Spec, fake_batch, fake_observation, past_of
from provla.core.world import Vector
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import Sampler
from provla.env.chunk import Chunked, Sizes
from provla.policy.folder import load_policy, save_policy
from provla.run.setting import load_data, make_parts
from provla.serving.observed import observed
from provla.serving.wire import Refused

CPU = torch.device("cpu")
P = 3
Command = Callable[..., tuple[int, str, str]]


def policy_of(spec: Spec, *overrides: str) -> Any:
    torch.manual_seed(0)
    return build(compose(*FAKE, *overrides)["policy"], "policy", nn.Module, spec=spec, device=CPU)


def test_training_episodes_and_the_server_see_the_same_window(spec: Spec) -> None:
    """An episode is played, and then read as a demonstration."""
    toy = ToyWorld({})
    toy.embodiment = replace(ToyWorld.embodiment, action=Vector(["left", "right"], [-0.3, -np.inf], 0.4))
    size = replace(spec, action_size=2, state_size=3, n_past_actions=P, n_obs_steps=1, cameras=("eye",))
    size = replace(size, action_bounds=toy.embodiment.action.bounds)
    assert size.action_bounds == ((-0.3, 0.4), (None, 0.4))
    world = Chunked(toy, Sizes(("eye",), 1, P), 100)
    asked_for = np.random.default_rng(0).uniform(-1, 1, (7, 2)).astype(np.float32)
    actions = toy.embodiment.action.clip(asked_for).astype(np.float32)  # what is executed, and so what is recorded
    assert (actions != asked_for).any(0).all()
    seen, done, played = world.begin(5), 0, []
    for n in (1, 2, 3, 1):  # chunks
        played.append((done, seen.past))
        seen, done = world.execute(asked_for[done : done + n]), done + n
    data = Demonstrations(
        {"eye": np.zeros((20, 3, 16, 16), np.uint8)},
        np.zeros((20, 3), np.float32),
        np.concatenate([np.full((8, 2), 9, np.float32), actions, np.full((5, 2), 9, np.float32)]),
        np.array([0, 8, 20]),
        np.zeros(2, int),
        ["Reach one"],
        ["left", "right"],
        {},
        10.0,
        "here",
    )
    learnt = Sampler(data, np.array([1]), ("eye",), 4, 1, P).gather(8 + np.array([step for step, _ in played]))
    lived = past_of([past for _, past in played], size)
    picture = {"eye": np.zeros((*spec.image_size, 3), np.uint8)}
    asked = [
        {"images": picture, "state": [0.0, 0, 0], "prompt": "Reach one", "past_actions": asked_for[:step].tolist()}
        for step, _ in played
    ]
    served = past_of([observed(one, size, False).past for one in asked], size)
    for found in (lived, served):
        assert torch.equal(found[0], learnt.observation.past_actions)
        assert torch.equal(found[1], learnt.observation.past_is_pad)
    early = learnt.observation.past_is_pad.tolist()
    assert early == [[True] * 3, [True, True, False], [False] * 3, [False] * 3]
    assert learnt.observation.past_actions[3].tolist() == actions[3:6].tolist()


def test_actions_before_the_episode_say_nothing_and_the_others_do(spec: Spec) -> None:
    spec = replace(spec, n_past_actions=P)
    policy, seen = policy_of(spec), fake_observation(spec, 2)
    policy.fit_normalization(torch.randn(50, 3), torch.randn(50, 4))

    def act(seen: Observation) -> torch.Tensor:
        found: torch.Tensor = policy.act(seen, torch.Generator().manual_seed(0))
        return found

    other = replace(seen, past_actions=seen.past_actions + 1)
    assert not torch.equal(act(seen), act(other))
    nothing = torch.ones_like(seen.past_is_pad)
    assert torch.equal(act(replace(seen, past_is_pad=nothing)), act(replace(other, past_is_pad=nothing)))
    with pytest.raises(ValueError, match="last 3 executed actions"):
        act(replace(seen, past_actions=None))


def test_parts_of_a_batch_carry_their_past(spec: Spec) -> None:
    batch = drawn_batch(replace(spec, n_past_actions=P), 6)
    parts = [part.observation.past_actions for part in batch.split(3)]
    assert torch.equal(torch.cat(parts), batch.observation.past_actions)


def test_a_run_in_a_simulation_knows_its_bounds_and_one_without_knows_none() -> None:
    config = compose(*FAKE)
    parts = make_parts(config)
    body = replace(ToyWorld.embodiment, action=Vector(["left", "right"], -1, [np.inf, 1]))
    simulated = replace(parts, suite=SimpleNamespace(episodes=[1], embodiment=body))
    bounds = [load_data(config, one).spec.action_bounds for one in (parts, simulated)]
    assert bounds == [(), ((-1.0, None), (-1.0, 1.0))]


def test_a_stored_policy_reads_as_much_as_it_did_and_one_without_is_as_it_was(spec: Spec, tmp_path: Path) -> None:
    node = compose(*FAKE)["policy"]
    for size in (spec, replace(spec, n_past_actions=P, action_bounds=((-1.0, None),) * 4)):
        policy = policy_of(size)
        save_policy(tmp_path / str(size.n_past_actions), policy, node, size)
        loaded, found = load_policy(tmp_path / str(size.n_past_actions), CPU)
        assert found == size
        assert found.n_past_actions == size.n_past_actions
        seen = fake_observation(size, 2)
        acts = [one.eval().act(seen, torch.Generator().manual_seed(0)) for one in (policy, loaded)]
        assert torch.equal(*acts)
    assert fake_batch(spec, 2).observation.past_actions is None


def test_lerobots_policies_and_a_server_refuse_what_they_cannot_read(spec: Spec) -> None:
    with pytest.raises(ValueError, match="n_past_actions=3 with policy=act"):
        build(compose("policy=act")["policy"], "policy", nn.Module, spec=replace(spec, n_past_actions=P), device=CPU)
    message: dict[str, Any] = {
        "images": {camera: np.zeros((32, 32, 3), np.uint8) for camera in spec.cameras},
        "state": [0.0, 0, 0],
        "prompt": "Open the drawer",
    }
    one = replace(spec, n_obs_steps=1)
    with pytest.raises(Refused, match="this policy reads none"):
        observed(message | {"past_actions": [[0.0] * 4]}, one, False)
    wrong: list[NDArray[Any] | None] = [None, np.zeros((2, 3), np.float32), np.full((1, 4), np.nan, np.float32)]
    for past in wrong:
        with pytest.raises(Refused, match=r"past_actions is .*: expected \(n, 4\) finite numbers"):
            observed(message | {"past_actions": past}, replace(one, n_past_actions=P), False)


def test_a_run_with_a_past_warns_and_one_without_is_the_same_run_as_before(command: Command, tmp_path: Path) -> None:
    from provla.core.identity import identity

    asked = ["train", *FAKE, "trainer=smoke", f"hydra.run.dir={tmp_path / 'run'}"]
    code, out, err = command(*asked, "n_past_actions=2")
    assert code == 0, err
    assert "may learn to do it again rather than to look" in (out + err).replace("\n", " ")
    config = compose(*FAKE)
    older = {key: value for key, value in config.items() if key != "n_past_actions"}
    assert identity(config) == identity(older) != identity(config | {"n_past_actions": 2})
