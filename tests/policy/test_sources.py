"""One normalisation for each source of a mix: what is learned, whose robot is driven, and who has to say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FAKE, LIGHT, compose
from torch import Tensor

import provla
from provla.core.identity import identity, training_identity
from provla.core.types import Observation, fake_observation
from provla.env.rollout import check_fit
from provla.plugin.folder import export_lerobot
from provla.plugin.modeling_provla import ProvlaPolicy
from provla.policy.normalize import Normalizer
from provla.run.follow import make_policy
from provla.run.setting import Setting, load_setting, make_parts
from provla.serving.start import Serving, serve

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
PLAIN = [*(o for o in FAKE if not o.startswith("dataset")), *LIGHT, "dataset=mix", "dataset.val_fraction=0.34"]
ACT = [
    "policy=act",
    "policy.options.dim_model=32",
    "policy.options.dim_feedforward=32",
    "policy.options.n_heads=2",
    "policy.options.n_encoder_layers=1",
]
MODES = ["policy.normalization.state=mean_std", "policy.normalization.action=min_max"]


class Robot:
    """A robot of other units than its siblings: degrees, say, or millimetres. Its action is where it will be."""

    def __init__(self, episodes: int, unit: float, origin: float, val_fraction: float, split_seed: int) -> None:
        self.episodes, self.unit, self.origin = episodes, unit, origin
        self.val_fraction, self.split_seed = val_fraction, split_seed

    def load(self) -> Any:
        from provla.dataset import FakeSource

        data = FakeSource(0, 0, self.episodes, 24, 32, ["front"], 3, 3, self.episodes).load()
        names = ["shoulder", "elbow", "gripper"]
        state = self.origin + self.unit * data.state
        actions = (state + 0.05 * self.unit * data.actions).astype("float32")
        return replace(data, state=state.astype("float32"), actions=actions, joint_names=names, state_names=names)


def robots(**given: dict[str, Any]) -> str:
    told = {"a": {"episodes": 4, "unit": 1, "origin": 0}, "b": {"episodes": 8, "unit": 100, "origin": 300}}
    nodes = {name: {"_target_": "test_sources.Robot", **node} for name, node in (told | given).items()}
    words = ",".join(f"{n}:{{{','.join(f'{k}:{v}' for k, v in node.items())}}}" for n, node in nodes.items())
    return f"dataset.sources={{{words}}}"


def fitted(*overrides: str, normalize: str = "per_source") -> tuple[Any, Setting]:
    config = compose(*PLAIN, robots(), "dataset.weights={a:1,b:1}", f"dataset.normalize={normalize}", *overrides)
    setting = load_setting(config, make_parts(config))
    return make_policy(config, setting, CPU).eval(), setting


def spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """(N,D) → mean and standard deviation."""
    return values.mean(0), values.std(0, correction=0)


@pytest.mark.parametrize("over", [[], ["policy.actions=relative"], ACT], ids=["provla", "relative", "act"])
def test_each_source_is_normalised_by_its_own(over: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    policy, setting = fitted(*over, *MODES)
    assert policy.spec.sources == ("a", "b")
    batch = setting.learn.gather(setting.learn.rows)
    source = batch.observation.source
    assert source is not None
    assert source.bincount().tolist() == [len(one) for _, one in setting.learn.sources().values()]
    state, targets = policy.state(batch.observation)[:, -1], policy.targets(batch)
    for number in (0, 1):
        mine = source == number
        for found, wanted in zip(spread(state[mine]), (0.0, 1.0), strict=True):
            torch.testing.assert_close(found, torch.full_like(found, wanted), atol=2e-3, rtol=0)
        known = targets[mine][~batch.is_pad[mine]]
        torch.testing.assert_close(known.min(0).values, torch.full((3,), -1.0), atol=1e-3, rtol=0)
        torch.testing.assert_close(known.max(0).values, torch.full((3,), 1.0), atol=1e-3, rtol=0)
    # What comes out is in the units of the robot that looked, be it said of each sample or of all.
    chunk = torch.zeros(2, 8, 3)
    monkeypatch.setattr(policy, "sample", lambda observation, generator, anchor: chunk)
    seen = setting.learn.gather(setting.learn.rows[[0, -1]]).observation
    mixed = policy.act(seen)
    assert mixed[0].abs().max() < 10 < mixed[1].abs().min()
    for number, name in enumerate(policy.spec.sources):
        mine = replace(seen, source=None).rows(slice(number, number + 1))
        with pytest.raises(ValueError, match=r"each of a, b \(dataset.normalize=per_source\), and nobody says whose"):
            policy.act(mine)
        spec, chunk = policy.spec, chunk[:1]
        policy.spec = spec.driving(name)
        assert torch.equal(policy.act(mine), mixed[number : number + 1])
        policy.spec = spec
    monkeypatch.setattr(policy, "sample", lambda observation, generator, anchor: targets)
    torch.testing.assert_close(policy.act(batch.observation), batch.actions, rtol=1e-4, atol=1e-3)


def test_together_nothing_is_said_of_sources() -> None:
    policy, setting = fitted(*MODES, normalize="together")
    batch = setting.learn.gather(setting.learn.rows[:4])
    assert batch.observation.source is fake_observation(policy.spec, 2).source is None
    assert policy.spec.sources == ()
    every = torch.from_numpy(setting.data.state[setting.learn.rows]).double()
    assert torch.equal(policy.state_norm.centre, every.mean(0).float())
    with pytest.raises(ValueError, match="source is .*expected None, as one normalisation holds"):
        policy.act(replace(batch.observation, source=torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="source='a': one normalisation holds for all data.*leave it out"):
        fitted("source=a", normalize="together")
    with pytest.raises(ValueError, match="source='c': valid: a, b"):
        fitted("source=c")


def test_who_knows_of_no_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"statistics are \(2, 3\), and the source asked for is None"):
        Normalizer(3, 2)(torch.zeros(4, 3))  # a policy of one's own, whose batch of two would pass unnoticed
    _, setting = fitted()
    with pytest.raises(ValueError, match="nobody says whose robot it drives"):
        check_fit(SimpleNamespace(), setting.spec)  # type: ignore[arg-type]
    from provla.policy.provla import ProVLA

    monkeypatch.setattr(ProVLA, "fit_normalization", lambda self, states, actions: None)
    with pytest.raises(ValueError, match="per_source: fit_normalization of ProVLA takes no `source`"):
        fitted()


def test_what_is_part_of_a_run() -> None:
    """One normalisation is what runs were before the choice; whose robot is driven is of no training."""
    config = compose(*PLAIN, robots())
    old = {key: value for key, value in config["dataset"].items() if key != "normalize"}
    assert identity(config) == identity({k: v for k, v in config.items() if k != "source"} | {"dataset": old})
    own = [compose(*PLAIN, robots(), "dataset.normalize=per_source", f"source={name}") for name in ("a", "b", "null")]
    assert len({identity(one) for one in (config, *own)}) == 4
    assert len({training_identity(one) for one in own}) == 1
    assert training_identity(own[0]) != training_identity(config)


def test_a_run_is_stored_judged_and_given_away(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    code, _, err = command("train", *PLAIN, robots(), "dataset.normalize=per_source", f"hydra.run.dir={run}")
    assert code == 0, err
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    asked = [f"checkpoint={run}", "device=cpu", "trust=[test_sources]"]
    code, _, err = command("evaluate", *asked, f"hydra.run.dir={tmp_path}/again")
    assert code == 0, err
    assert json.loads((tmp_path / "again" / "result.json").read_text())["metrics"] == pytest.approx(metrics)
    whole, mine = provla.load(run, "cpu"), provla.load(run, "cpu", source="b")
    assert whole.state_norm.centre.shape == (2, 3)
    seen = fake_observation(whole.spec, 2)
    plain = Observation(seen.images, seen.state, seen.instruction)
    wanted = whole.act(replace(plain, source=torch.ones(2, dtype=torch.int64)), torch.Generator().manual_seed(0))
    assert torch.equal(mine.act(plain, torch.Generator().manual_seed(0)), wanted)
    with pytest.raises(ValueError, match="nobody says whose robot"):
        whole.act(plain)
    for way in ("lerobot=true", "onnx=true"):
        code, _, err = command("export", *asked, way)
        assert (code, "nobody says whose robot it drives" in " ".join(err.split())) == (2, True)
    code, _, err = command("export", *asked, "source=b")
    assert code == 0, err
    assert 'provla.load("policy-full")' in (run / "policy-full" / "README.md").read_text()
    assert torch.equal(provla.load(run / "policy-full", "cpu").act(plain, torch.Generator().manual_seed(0)), wanted)
    code, _, err = command("export", *asked, "source=b", "onnx=true")  # compared with `act` as it is made
    assert code == 0, err
    export_lerobot(run / "policy", tmp_path / "lerobot", CPU, driving="b")
    there = ProvlaPolicy.from_pretrained(tmp_path / "lerobot")
    assert torch.equal(there.policy.act(plain, torch.Generator().manual_seed(0)), wanted)
    given = compose(*asked, "port=0", name="serve")
    with pytest.raises(ValueError, match="nobody says whose robot"):
        serve(Serving(**given))
