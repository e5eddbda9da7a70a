"""How chunks are executed: whole, averaged, continued; late; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose

from provla.core.build import build
from provla.core.types import Anchor, Spec, Tokens, fake_observation
from provla.env.rollout import rollout
from provla.execution import Chunk, Ensemble, Execution, RealTime
from provla.scheduler import L1, MIP, Diffusion, Flow

Command = Callable[..., tuple[int, str, str]]
SPEC = Spec(("top",), (16, 24), 2, 1, 8, 1, 4, ("go",), {}, 10.0)


def chunks(count: int) -> list[Any]:
    """Chunk k says 100 k + i for its i-th step."""
    return [np.array([[100.0 * k + i] for i in range(8)], np.float32) for k in range(count)]


def executed(how: Execution, count: int = 4) -> list[float]:
    track = how.begin(SPEC)
    found = []
    for chunk in chunks(count):
        track.anchor()
        found += track.take(chunk)[:, 0].tolist()
    return found


def test_whole_chunks() -> None:
    assert executed(Chunk()) == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203, 300, 301, 302, 303]


def test_a_late_chunk_is_preceded_by_the_one_before_and_loses_its_first_actions() -> None:
    assert executed(Chunk(delay=2), 3) == [0, 1, 2, 3, 4, 5, 102, 103, 104, 105, 202, 203]
    assert executed(Chunk(delay=4), 3) == [0, 1, 2, 3, 4, 5, 6, 7, 104, 105, 106, 107]
    assert executed(RealTime(delay=2), 3) == executed(Chunk(delay=2), 3)


def test_ensembling_is_the_weighted_mean_of_all_that_was_said_of_a_step() -> None:
    m = 0.5
    found = executed(Ensemble(decay=m), 12)
    for t in (0, 1, 5, 11):
        told = [100 * k + (t - k) for k in range(max(0, t - 7), t + 1)]  # the oldest first
        weight = np.exp(-m * np.arange(len(told)))
        assert found[t] == pytest.approx(np.dot(told, weight) / weight.sum())
    late = executed(Ensemble(decay=0.0, delay=1), 4)
    assert late == pytest.approx([0, 1, np.mean([2, 101]), np.mean([3, 102, 201])])
    rare = executed(Ensemble(decay=0.0, every=4), 2)
    assert rare == pytest.approx([0, 1, 2, 3, *(np.mean([4 + i, 100 + i]) for i in range(4))])


def test_smoothing_is_a_low_pass() -> None:
    found = executed(Chunk(smoothing=0.5), 2)
    assert found[:3] == [0, 0.5, 1.25]
    assert abs(np.diff(found)).max() < abs(np.diff(executed(Chunk(), 2))).max()


def test_the_weights_of_real_time_chunking_are_the_papers() -> None:
    """Black et al. 2025, equation 5, with H = 8, s = 4, d = 1."""
    track = RealTime(delay=1).begin(SPEC)
    assert track.anchor() is None
    track.take(chunks(1)[0])
    told = track.anchor()
    assert told is not None
    actions, weight = told
    assert actions[:4, 0].tolist() == [4, 5, 6, 7]
    c = [(8 - 4 - i) / (8 - 4 - 1 + 1) for i in range(8)]
    expected = [1.0, *(c[i] * (np.exp(c[i]) - 1) / (np.e - 1) for i in (1, 2, 3)), 0, 0, 0, 0]
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


SAMPLERS = {
    "ddim": lambda kind: Diffusion("DDIMScheduler", 100, 10, "squaredcos_cap_v2", kind),
    "ddpm": lambda kind: Diffusion("DDPMScheduler", 100, 100, "squaredcos_cap_v2", kind),
    "dpm_solver": lambda kind: Diffusion("DPMSolverMultistepScheduler", 100, 10, "squaredcos_cap_v2", kind),
    "euler": lambda kind: Flow(10, "euler", "uniform"),
    "midpoint": lambda kind: Flow(10, "midpoint", "uniform"),
    "l1": lambda kind: L1(),
    "mip": lambda kind: MIP(0.9, False),
}


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        *((name, kind) for name in ("ddim", "ddpm", "dpm_solver") for kind in ("sample", "epsilon", "v_prediction")),
        *((name, "") for name in ("euler", "midpoint", "l1", "mip")),
    ],
)
def test_every_sampler_continues_what_is_being_executed(name: str, prediction: str) -> None:
    """An anchor of weight 1 is what comes out, one of weight 0 changes nothing, and the rest of a chunk is still the
    head's.
    """
    sampler = SAMPLERS[name](prediction)
    context, shape = Tokens.full(torch.zeros(2, 1, 4)), (2, 8, 3)
    head = lambda x, t, c: 0.3 * torch.tanh(x)  # noqa: E731
    target = torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5

    def sample(weight: torch.Tensor | None) -> torch.Tensor:
        anchor = None if weight is None else Anchor(target, weight)
        found: torch.Tensor = sampler.sample(head, context, shape, torch.Generator().manual_seed(0), anchor)
        return found

    plain = sample(None)
    torch.testing.assert_close(sample(torch.zeros(2, 8)), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(torch.ones(2, 8)), target, rtol=2e-2, atol=2e-2)
    half = torch.zeros(2, 8)
    half[:, :3] = 1
    mixed = sample(half)
    torch.testing.assert_close(mixed[:, :3], target[:, :3], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(mixed[:, 3:], plain[:, 3:], rtol=1e-3, atol=1e-3)  # this head mixes no steps


def test_a_policy_takes_an_anchor_in_the_robots_units(spec: Spec) -> None:
    config = compose(*FAKE)
    policy = build(config["policy"], "policy", spec=spec, device=torch.device("cpu")).eval()
    policy.fit_normalization(torch.randn(50, spec.state_size), 10 + 3 * torch.rand(50, spec.action_size))
    actions = 10 + 3 * torch.rand(2, spec.horizon, spec.action_size)
    weight = torch.zeros(2, spec.horizon)
    weight[:, :3] = 1
    found = policy.act(fake_observation(spec, 2), torch.Generator().manual_seed(0), Anchor(actions, weight))
    torch.testing.assert_close(found[:, :3], actions[:, :3], rtol=1e-2, atol=1e-2)


class Teller:
    """A policy whose chunk says when it was looked at; its anchors are kept."""

    def __init__(self) -> None:
        self.looks, self.anchored = 0, 0

    def eval(self) -> None: ...

    def act(self, observation: Any, generator: Any, anchor: Any = None) -> torch.Tensor:
        self.looks += 1
        self.anchored += anchor is not None
        return torch.full((len(observation), 8, 1), 0.01)


@pytest.mark.parametrize(
    ("how", "looks", "anchored"),
    [(Chunk(), 5, 0), (RealTime(), 5, 4), (Ensemble(), 20, 0), (Ensemble(every=5), 4, 0)],
)
def test_a_rollout_looks_as_often_as_is_asked(how: Execution, looks: int, anchored: int) -> None:
    node = {"_target_": "provla.env.WorldSuite", "world": {"_target_": "walks.Walk"}, "tasks": {"go": "Go"}}
    suite = build({**node, "episodes_per_task": 1, "max_episode_steps": 20, "workers": 1, "videos_per_task": 0}, "env")
    policy = Teller()
    (found,) = rollout(policy, suite, SPEC, 0, torch.device("cpu"), how)
    assert found.ending == "timeout"
    assert (policy.looks, policy.anchored) == (looks, anchored)


@pytest.mark.parametrize(
    ("how", "spec", "message"),
    [
        (Chunk(delay=5), SPEC, "delay=5: with a look every 4 control steps, a chunk of horizon=8 is used up"),
        (Ensemble(delay=2), SPEC, "delay=2: with a look every 1 control steps, a chunk would arrive after the next"),
        (Chunk(delay=5), SPEC, r"valid: 0 to 4, or look more often \(n_action_steps\), or predict more \(horizon\)"),
        (Ensemble(delay=2), SPEC, r"valid: 0 to 1, or look less often \(execution.every\)"),
        (Ensemble(), "one", "horizon=1: a chunk of one action overlaps with no other"),
        (Ensemble(every=8), SPEC, "no two chunks speak of the same step"),
    ],
)
def test_what_a_chunk_is_too_short_for_is_refused(how: Execution, spec: Any, message: str) -> None:
    one = Spec(("top",), (16, 24), 2, 1, 1, 1, 1, ("go",), {}, 10.0)
    with pytest.raises(ValueError, match=message):
        how.check(one if spec == "one" else spec)


def test_a_delay_is_measured_in_control_steps() -> None:
    assert Chunk(delay="measured").settled(SPEC, 150).delay == 2  # 10 steps a second
    assert Chunk(delay="measured").settled(SPEC, 99).delay == 1
    assert Chunk(delay=3).settled(SPEC, 150).delay == 3


def test_executions_are_another_way_to_judge_and_no_other_training(tmp_path: Path) -> None:
    from provla.core.identity import identity, training_identity

    plain, late = compose(), compose("execution=rtc", "execution.delay=2")
    assert identity(plain) != identity(late)
    assert training_identity(plain) == training_identity(late)
    before = {key: node for key, node in plain.items() if key not in ("execution", "perturb")}
    before["env"] = {k: v for k, v in plain["env"].items() if k not in ("perturb", "paraphrases")}
    assert identity(before) == identity(plain)  # runs of before there was a choice are the same runs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("execution=ensembel", "ensemble"),
        ("execution.dely=2", "delay"),
        ("execution.delay=-1", "execution.delay=-1"),
    ],
)
def test_bad_keys_are_named(override: str, message: str, command: Command) -> None:
    code, _, err = command("train", *FAKE, override)
    assert code == 2
    assert message in err
