"""policy.onnx acts as the policy does; what cannot become a graph is refused with the reason."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import FAKE, compose, local
from torch import Tensor, nn
from torch.nn.functional import interpolate

from provla.core.build import build
from provla.core.errors import NoSpace
from provla.core.types import Observation, Spec, fake_observation
from provla.policy import onnx
from provla.policy.folder import load_policy, save_policy
from provla.policy.traced import resized
from provla.scheduler.l1 import L1

CPU = torch.device("cpu")
Command = Callable[..., tuple[int, str, str]]
TINY = [o for o in FAKE if not o.startswith("head.")]
ACT = [f"policy.options.{key}" for key in ("dim_model=32", "dim_feedforward=32", "n_encoder_layers=1")]
THREE = ["scheduler.num_inference_steps=3"]
DIT = ["head=dit", "head.width=16", "head.depth=1", "head.num_heads=2", "fusion.num_heads=2", "fusion.depth=1"]
NET = ["head.channels=[16,32]", "head.time_width=16"]


class Drawn(L1):
    """A sampler that draws as no graph can be given."""

    def sample(self, *given: Any, **how: Any) -> Tensor:
        chunk: Tensor = super().sample(*given, **how)
        return chunk + torch.rand_like(chunk)


def save(folder: Path, spec: Spec, *overrides: str) -> Path:
    """A policy whose every layer matters and whose units are a robot's."""
    other = {group for group in ("vision", "text") if any(o.startswith(f"{group}=") for o in overrides)}
    tiny = [o for o in TINY if o.split(".")[0] not in other]
    config = compose(*tiny, *overrides)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.is_floating_point() and not weight.abs().sum():  # layers that begin as nothing
                weight.copy_(0.1 * torch.randn(weight.shape, generator=g))
    policy.fit_normalization(
        3 + 2 * torch.randn(64, spec.state_size, generator=g), 2 * torch.rand(64, spec.action_size, generator=g) - 0.5
    )
    save_policy(folder / "policy", policy, config["policy"], spec)
    return folder / "policy"


@pytest.mark.parametrize(
    ("parts", "inputs"),
    [
        ([*NET, "scheduler=ddim", *THREE], {"noise": 1, "instruction": 1}),
        ([*NET, "scheduler=ddpm", *THREE], {"noise": 3, "instruction": 1}),
        (
            [*DIT, "head.conditioning=tokens", "fusion=perceiver", "scheduler=dpm_solver", *THREE],
            {"noise": 1, "instruction": 1},
        ),
        (
            ["head=mlp", "head.width=16", "head.depth=1", "fusion=moe", "scheduler=flow", *THREE, "text=none"],
            {"past_actions": 1, "past_is_pad": 1, "noise": 1},
        ),
        ([*NET, "head=unet1d_concat", "fusion=film", "scheduler=mip", "text=task_embedding"], {"instruction": 1}),
    ],
    ids=["ddim", "ddpm", "dpm_solver", "flow", "mip"],
)
def test_a_graph_acts_as_the_policy(parts: list[str], inputs: dict[str, int], spec: Spec, tmp_path: Path) -> None:
    spec = replace(spec, n_past_actions=2 if "past_actions" in inputs else 0)
    source = save(tmp_path, spec, *parts)
    found = onnx.export_onnx(source, tmp_path / "graph")
    assert found.difference <= 1e-4
    about = json.loads((tmp_path / "graph" / "policy.json").read_text())
    assert list(about["inputs"]) == ["images", "state", *inputs]
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "policy.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [(n, i["shape"]) for n, i in about["inputs"].items()]
    policy, _ = load_policy(source, CPU)
    rng, answers = np.random.default_rng(7), []
    for number, sentence in enumerate(about["instructions"]):
        seen = fake_observation(spec, 1, 100)
        given = {"images": seen.images.numpy(), "state": seen.state.numpy()}
        given |= {name: getattr(seen, name).numpy() for name in inputs if name.startswith("past")}
        if "noise" in inputs:
            shape = about["inputs"]["noise"]["shape"]
            assert shape == [1, inputs["noise"], spec.horizon, spec.action_size]
            given["noise"] = rng.standard_normal(shape).astype(np.float32)
        if "instruction" in inputs:
            given["instruction"] = np.array([number])
        (actions,) = session.run(["actions"], given)
        draws = torch.from_numpy(given.get("noise", np.zeros((1, 0)))).unbind(1)
        with patch("torch.randn", side_effect=draws):  # act, with this noise for its own
            expected = policy.act(replace(seen, instruction=[sentence]), None)
        np.testing.assert_allclose(actions, expected.numpy(), atol=1e-4)
        answers.append(actions)
    if "instruction" in inputs:
        assert np.abs(answers[0] - answers[1]).max() > 1e-3  # it hears


def test_more_sentences_may_be_said_than_were_trained(spec: Spec, tmp_path: Path) -> None:
    source = save(tmp_path, replace(spec, n_obs_steps=1), *NET, "scheduler=l1")
    onnx.export_onnx(source, tmp_path / "graph", ["Do nothing at all"])
    about = json.loads((tmp_path / "graph" / "policy.json").read_text())
    assert about["instructions"] == [*spec.instructions, "Do nothing at all"]
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "policy.onnx")
    policy, _ = load_policy(source, CPU)
    seen = fake_observation(policy.spec, 1)
    given = {"images": seen.images.numpy(), "state": seen.state.numpy(), "instruction": np.array([2])}
    expected = policy.act(Observation(seen.images, seen.state, ["Do nothing at all"]))
    np.testing.assert_allclose(session.run(["actions"], given)[0], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_torchs_to_the_bit(mode: str) -> None:
    for size, to in (((30, 40), (56, 32)), ((48, 64), (14, 14)), ((480, 640), (32, 40)), ((21, 20), (3, 20))):
        pictures = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        pictures[0] = 255 * (pictures[0] > 127).byte()  # edges, at which bicubic weights leave the bytes
        how: dict[str, Any] = {"size": to, "mode": mode, "align_corners": False, "antialias": True}
        assert torch.equal(resized(pictures, **how), interpolate(pictures, **how))
        for antialias in (True, False):
            how["antialias"] = antialias
            found = resized(pictures.float(), **how)
            torch.testing.assert_close(found, interpolate(pictures.float(), **how), rtol=0, atol=2e-2)


TOWERS = {
    "siglip_base+qwen2_5_0_5b": ["text.pool=last"],
    "dino_siglip+minilm": [],
    "clip_base+t5_small": ["vision.pool=pooler", "adapter=lora"],
}


@pytest.mark.parametrize("towers", TOWERS)
def test_pretrained_towers_see_and_are_told_the_same_in_a_graph(
    towers: str, spec: Spec, tmp_path: Path, backbones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of another size than the models', which are resized inside; weights beside the graph."""
    vision, text = towers.split("+")
    parts = [f"vision={vision}", f"text={text}", *local(vision, backbones), *local(text, backbones), *TOWERS[towers]]
    source = save(tmp_path, replace(spec, image_size=(30, 40), n_obs_steps=1), *NET, "scheduler=l1", *parts)
    beside = vision == "siglip_base"
    if beside:
        monkeypatch.setattr(onnx, "EXTERNAL", 100_000)
    assert onnx.export_onnx(source, tmp_path / "graph").difference <= 1e-4
    (tmp_path / "graph").rename(tmp_path / "elsewhere")
    files = {file.name: file.stat().st_size for file in (tmp_path / "elsewhere").iterdir()}
    about = json.loads((tmp_path / "elsewhere" / "policy.json").read_text())
    assert files.keys() == {"policy.onnx", "policy.json", *([about["weights"]] if beside else [])}
    if beside:
        assert files["policy.onnx.data"] > 400_000  # what weighs
    session = onnxruntime.InferenceSession(tmp_path / "elsewhere" / "policy.onnx")
    policy, _ = load_policy(source, CPU)
    answers = []
    for number, sentence in enumerate(about["instructions"]):
        seen = fake_observation(policy.spec, 1, 100)
        given = {"images": seen.images.numpy(), "state": seen.state.numpy(), "instruction": np.array([number])}
        answers.append(session.run(["actions"], given)[0])
        expected = policy.act(replace(seen, instruction=[sentence]))
        np.testing.assert_allclose(answers[-1], expected.numpy(), atol=1e-4)
    dark = session.run(["actions"], given | {"images": np.zeros_like(given["images"])})[0]
    assert min(np.abs(answers[1] - other).max() for other in (answers[0], dark)) > 1e-3  # it hears and sees


def test_an_export_that_fails_in_the_middle_leaves_nothing(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx as library

    def full(model: Any, place: Path, **how: Any) -> None:
        Path(place).write_bytes(b"half of a gra")
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    source = save(tmp_path, replace(spec, n_obs_steps=1), "head=mlp", "head.width=16", "head.depth=1", "scheduler=l1")
    monkeypatch.setattr(onnx, "EXTERNAL", 1000)
    monkeypatch.setattr(library, "save_model", full)
    with pytest.raises(NoSpace, match=r"graph cannot be written: no space left on disk"):
        onnx.export_onnx(source, tmp_path / "graph")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    ("overrides", "trust", "message"),
    [
        (["vision=siglip_tiny", "vision.dtype=bfloat16"], (), "vision computes in bfloat16"),
        (
            ["vision=siglip_tiny", "quant=4bit"],
            (),
            r"layers of vision are quantised by bitsandbytes, .* Merge them first \(python -m provla.export",
        ),
        (["scheduler._target_=test_onnx.Drawn"], ("test_onnx",), "draws by rand_like while it acts"),
        (["text=task_embedding"], (), "text=task_embedding does not know the instruction 'Sing'"),
    ],
)
def test_what_cannot_be_a_graph_is_refused(
    overrides: list[str], trust: tuple[str, ...], message: str, spec: Spec, tmp_path: Path
) -> None:
    source = save(tmp_path, spec, *NET, "scheduler=l1", *overrides)
    with pytest.raises(ValueError, match=message):
        onnx.export_onnx(
            source, tmp_path / "graph", ["Sing"] if "text=task_embedding" in overrides else [], trust=trust
        )
    assert not (tmp_path / "graph").exists()


def test_a_baseline_of_lerobots_is_refused(spec: Spec, tmp_path: Path) -> None:
    config, sizes = compose("policy=act", *ACT), replace(spec, n_obs_steps=1)
    policy = build(config["policy"], "policy", nn.Module, spec=sizes, device=CPU)
    save_policy(tmp_path / "policy", policy, config["policy"], sizes)
    with pytest.raises(ValueError, match=r"exports policies that are composed of .* this one is a LeRobotPolicy"):
        onnx.export_onnx(tmp_path / "policy", tmp_path / "graph")


def test_many_steps_are_refused_and_fewer_may_be_asked_for(spec: Spec, tmp_path: Path) -> None:
    source = save(tmp_path, spec, "head=mlp", "head.width=16", "head.depth=1", "scheduler=ddpm")
    with pytest.raises(ValueError, match=r"takes 100 steps, and a graph holds each of them: at most 32. Take fewer"):
        onnx.export_onnx(source, tmp_path / "graph")
    onnx.export_onnx(source, tmp_path / "graph", steps=3)
    about = json.loads((tmp_path / "graph" / "policy.json").read_text())
    assert about["inputs"]["noise"]["shape"] == [1, 3, spec.horizon, spec.action_size]


def test_actions_that_differ_are_not_written(spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path, spec, *NET, "scheduler=l1")
    asked = onnx._asked
    monkeypatch.setattr(onnx, "_asked", lambda *given: (asked(*given)[0], asked(*given)[1] + 2e-3))
    with pytest.raises(ValueError, match=r"differ from policy.act's by 0.002 on .* nothing was written"):
        onnx.export_onnx(source, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
