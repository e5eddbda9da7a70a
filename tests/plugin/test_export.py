"""An export acts under LeRobot as the policy does, to the last bit, and refuses what it does not fit."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose, local
from numpy.typing import NDArray
from torch import Tensor, nn

import provla
from provla.core.build import build
from provla.core.machine import reproducible
from provla.core.types import Anchor, Observation, Spec, past_of
from provla.dataset.cache import small
from provla.execution import continued
from provla.plugin import robot
from provla.plugin.folder import export_lerobot
from provla.policy.folder import save_policy

CPU = torch.device("cpu")
BODY = {
    "cameras": ("front", "wrist"),
    "image_size": (30, 40),
    "state_names": ("shoulder.pos", "elbow.pos", "gripper.pos"),
    "action_names": ("shoulder.pos", "elbow.pos", "wrist.pos", "gripper.pos"),
    "recorded": {"front": (480, 640), "wrist": (480, 640)},
}
POLICIES = {
    "default": ["fusion=film", "scheduler=ddim", "scheduler.num_inference_steps=3"],
    "lora and 4 bits": ["vision=siglip_base", "text=minilm", "quant=4bit", "scheduler=flow"],
    "LeRobot's diffusion": ["policy=diffusion"],
}
TINY_DIFFUSION = {"down_dims": [16, 32], "kernel_size": 3, "n_groups": 4, "spatial_softmax_num_keypoints": 4}


def make(folder: Path, spec: Spec, overrides: list[str], **changes: Any) -> Path:
    """The export of a policy that nobody trained, of two cameras of 480×640."""
    sizes = replace(spec, **(BODY | changes))
    other = any(o.startswith("vision=") for o in overrides)
    config = compose(*[o for o in FAKE if not (other and o.startswith("vision."))], *overrides)
    if config["policy"].get("kind") == "diffusion":
        config["policy"]["options"] |= TINY_DIFFUSION
        config["policy"]["scheduler"] = {"num_inference_steps": 3}
    torch.manual_seed(3)
    policy = build(config["policy"], "policy", nn.Module, spec=sizes, device=CPU)
    policy.fit_normalization(10 + 5 * torch.randn(50, 3), 20 * torch.randn(50, 4))
    save_policy(folder / "policy", policy, config["policy"], sizes)
    export_lerobot(folder / "policy", folder / "lerobot", CPU)
    return folder / "lerobot"


def looks(seed: int, rows: int = 2) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """What cameras and joints say, step by step: (B,2,480,640,3) and (B,3)."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, 256, (rows, 2, 480, 640, 3), dtype=np.uint8), rng.normal(10, 5, (rows, 3)).astype("f4")


def told(images: NDArray[np.uint8], state: NDArray[np.float32]) -> dict[str, Any]:
    """As `lerobot-eval` hands it over."""
    from lerobot.envs.utils import preprocess_observation

    seen = preprocess_observation({"pixels": {"front": images[:, 0], "wrist": images[:, 1]}, "agent_pos": state})
    return seen | {"task": ["Open the drawer", "Close the window gently"][: len(state)]}


def load(export: Path) -> Any:
    import lerobot_policy_provla  # noqa: F401
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class

    config: Any = PreTrainedConfig.from_pretrained(export)
    return get_policy_class("provla").from_pretrained(pretrained_name_or_path=str(export), config=config)


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("history", [1, 2])
def test_select_action_is_act_to_the_last_bit(
    kind: str, history: int, spec: Spec, tmp_path: Path, backbones: Path
) -> None:
    from lerobot.policies import make_pre_post_processors

    overrides = POLICIES[kind] + (
        [*local("siglip_base", backbones), *local("minilm", backbones)] if "4" in kind else []
    )
    reads = 4 if kind == "default" and history == 2 else 0  # executed actions
    export = make(tmp_path, spec, overrides, n_obs_steps=history, n_action_steps=3, n_past_actions=reads)
    theirs, own = load(export), provla.load(export, device="cpu")
    theirs.config.threads = 1 if history == 2 else None  # as the run's, or none
    before, after = make_pre_post_processors(
        theirs.config,
        str(export),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    source, past, expected = looks(0), [], list[Tensor]()
    generators = [
        torch.Generator().manual_seed(int(np.random.SeedSequence([0, 1, row]).generate_state(1)[0])) for row in (0, 1)
    ]
    theirs.reset()
    for step in range(7):
        images, state = next(source)
        past = [*past, (images, state)][-history:]
        if step % 3 == 0:
            cached = [[[small(picture, (30, 40)) for picture in row] for row in images] for images, _ in past]
            cached, states = [cached[0]] * (history - len(cached)) + cached, [state for _, state in past]
            states = [states[0]] * (history - len(states)) + states
            seen = Observation(
                torch.from_numpy(np.array(cached)).transpose(0, 1).contiguous(),
                torch.from_numpy(np.array(states)).transpose(0, 1).contiguous(),
                ["Open the drawer", "Close the window gently"],
                *past_of([[action[row].numpy() for action in expected] for row in (0, 1)], own.spec),
            )
            with reproducible(1, CPU, False) if history == 2 else nullcontext():
                expected += own.act(seen, generators)[:, :3].unbind(1)
        found = after(theirs.select_action(before(told(images, state))))
        assert torch.equal(found, expected[step]), step
    assert len({float(action[0, 0]) for action in expected}) > 5  # it has something to say


def test_the_policy_inside_is_the_runs_own(spec: Spec, tmp_path: Path) -> None:
    export = make(tmp_path, spec, POLICIES["default"])
    for file in (tmp_path / "policy").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (export / "policy" / file.relative_to(tmp_path / "policy")).read_bytes()
    said = json.loads((export / "config.json").read_text())
    assert (said["type"], said["action_feature_names"]) == ("provla", list(BODY["action_names"]))
    assert said["input_features"]["observation.images.front"]["shape"] == [3, 480, 640]


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A policy of one look that samples."""
    spec = Spec((), (1, 1), 3, 4, 8, 1, 4, ("Open the drawer", "Close the window gently"), {}, 10.0)
    return load(make(tmp_path_factory.mktemp("driven"), spec, POLICIES["default"]))


def test_an_episodes_noise_depends_on_its_seed_and_a_reset_begins_anew(driven: Any) -> None:
    batch = told(*next(looks(1)))
    noisy = batch | {"observation.noise_seed": torch.tensor([[1.0, 2.0], [65535.0, 65535.0]])}
    chunks = []
    for seen in (batch, batch, noisy, noisy):
        driven.reset()
        chunks.append(driven.predict_action_chunk(seen))
    assert not torch.equal(chunks[0], chunks[1])
    assert torch.equal(chunks[2], chunks[3])
    later = driven.predict_action_chunk(noisy)  # the same episode goes on
    assert not torch.equal(later, chunks[3])
    driven.reset()
    one = driven.select_action(noisy)
    driven.reset()  # three actions of the chunk are dropped
    assert torch.equal(driven.select_action(noisy), one)


def test_a_chunk_continues_what_is_being_executed(driven: Any) -> None:
    batch = told(*next(looks(2, 1)))
    seeds = batch | {"observation.noise_seed": torch.tensor([[0.0, 7.0]])}
    left = torch.zeros(6, 4)
    left[:5] = 12 * torch.rand(5, 4, generator=torch.Generator().manual_seed(0))  # LeRobot pads with zeros
    driven.reset()
    free = driven.predict_action_chunk(seeds, inference_delay=2, prev_chunk_left_over=None)
    driven.reset()
    found = driven.predict_action_chunk(seeds, inference_delay=2, prev_chunk_left_over=left)
    assert found.shape == (1, 8, 4)
    assert (found[0, :2] - left[:2]).abs().max() < 1e-3  # in the robot's units
    assert (found - free).abs().amax(-1).squeeze().max() > 1
    actions, weight = (torch.from_numpy(x)[None] for x in continued(left[:5].numpy(), 2, 8))
    assert not weight[0, 5:].any()  # the padding pulls at nothing
    images, state = driven._look(seeds)
    asked = Observation(images[:, None], state[:, None], seeds["task"])
    own = driven.policy.act(asked, [torch.Generator().manual_seed(7)], Anchor(actions, weight))
    assert torch.equal(own, found)
    driven.reset()
    long = torch.cat([left, torch.zeros(14, 4)])  # padded beyond the horizon
    assert torch.equal(driven.predict_action_chunk(seeds, inference_delay=2, prev_chunk_left_over=long), found)
    driven.reset()
    assert torch.equal(driven.predict_action_chunk(seeds, inference_delay=0, prev_chunk_left_over=0 * left), free)
    assert driven.supports_rtc()


@pytest.mark.parametrize(
    ("overrides", "changes", "why"),
    [
        (["scheduler=mip"], {}, r"MIP regresses the chunk and samples nothing"),
        (["scheduler=l1"], {}, r"L1 regresses the chunk"),
        (POLICIES["default"], {"n_obs_steps": 2}, r"looks at n_obs_steps=2 control steps on end, and LeRobot's engine"),
    ],
)
def test_real_time_chunking_is_refused_with_the_reason(
    overrides: list[str],
    changes: dict[str, Any],
    why: str,
    spec: Spec,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = load(make(tmp_path, spec, overrides, **({"n_obs_steps": 1} | changes)))
    assert not policy.supports_rtc()
    assert why.split(",")[0] in caplog.text
    with pytest.raises(ValueError, match=why):
        policy.predict_action_chunk(told(*next(looks(3))), inference_delay=0, prev_chunk_left_over=None)


def test_what_does_not_fit_is_named(driven: Any) -> None:
    images, state = next(looks(4))
    good = told(images, state)
    driven.reset()
    for bad, words in (
        ({k: v for k, v in good.items() if "wrist" not in k}, r"camera 'wrist' .* is missing; there are: obs.*front"),
        (good | {"observation.images.front": torch.zeros(2, 3, 240, 320)}, r"pictures of 240×320; .* at 480×640"),
        (good | {"observation.images.front": torch.full((2, 3, 480, 640), 200.0)}, r"lie in 200 … 200; expected 0 … 1"),
        (good | {"observation.state": torch.zeros(2, 6)}, r"observation.state is \(2, 6\); the policy's is \(B,3\)"),
        (good | {"task": ""}, r"task='': the policy is to be told .* trained on: Open the drawer; Close"),
    ):
        with pytest.raises(ValueError, match=words):
            driven.select_action(bad)
    driven.select_action(good)
    with pytest.raises(ValueError, match=r"1 observations come where the episode began with 2; call reset"):
        driven.predict_action_chunk(told(images[:1], state[:1]))
    with pytest.raises(ValueError, match=r"provla's policies are trained by provla"):
        driven.forward(good)


def test_joints_in_another_order_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    mine = ["shoulder", "elbow", "gripper"]
    robot.check_joints("action", mine, ["shoulder.pos", "elbow.pos", "gripper.pos"])
    with pytest.raises(ValueError, match=r"elbow.pos, shoulder.pos, gripper.pos, the policy's .* in another order"):
        robot.check_joints("action", mine, ["elbow.pos", "shoulder.pos", "gripper.pos"])
    with pytest.raises(ValueError, match=r"the robot's state is a, b, the policy's"):
        robot.check_joints("state", mine, ["a", "b"])
    with pytest.raises(ValueError, match=r"in another order"):
        robot.check_joints("action", ["joint0", "joint1"], ["joint1", "joint0"])
    with caplog.at_level(logging.WARNING):
        robot.check_joints("action", ["joint0", "joint1", "joint2"], ["a", "b", "c"])
    assert "in the same order (a, b, c), only you can say" in caplog.text


def test_an_export_does_not_say_itself_whom_to_trust(spec: Spec, tmp_path: Path) -> None:
    export = make(tmp_path, spec, ["scheduler=l1"])
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"trust": ["evil"]}))
    with pytest.raises(ValueError, match=r"names modules that may run \(trust\): that is its reader's word"):
        load(export)


def test_exports_of_other_versions(spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = make(tmp_path, spec, ["scheduler=l1"], state_names=(), action_names=(), recorded={})
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"stored before provla kept the names of joints .* pictures are expected at 30×40", said)
    file = export / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"provla_version": "99.1.0"}))
    with pytest.raises(ValueError, match=r"was written by provla 99.1.0, and this is provla \S+: install that version"):
        load(export)
    file.write_text(json.dumps(config | {"provla_version": "0.0.1"}))
    load(export)
    assert "was written by provla 0.0.1" in " ".join(capsys.readouterr().out.split())
    # An earlier provla's policy knows nothing of names.
    stored = json.loads((export / "policy" / "config.json").read_text())
    assert {stored["spec"].pop(key) is not None for key in ("state_names", "action_names", "recorded")} == {True}
    (export / "policy" / "config.json").write_text(json.dumps(stored))
    (export / "policy" / "manifest.json").unlink()
    assert provla.load(export, device="cpu").spec.recorded == {}
