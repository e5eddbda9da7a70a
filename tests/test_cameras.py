"""Cameras of different sizes, from the data set to the robot: each keeps its own, and one that is missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import FAKE, LIGHT, compose, drawn_batch, local, write_lerobot
from torch import nn

import provla
from provla.core.build import build
from provla.core.machine import reproducible
from provla.core.types import Batch, Observation, Spec, fake_observation
from provla.dataset.cache import small
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.mix import MixSource
from provla.dataset.resident import Resident
from provla.dataset.sampler import Sampler
from provla.dataset.window import WindowSampler
from provla.env.contract import check_contract
from provla.env.rollout import check_fit
from provla.plugin.environment import ProvlaWorld
from provla.plugin.folder import export_lerobot
from provla.plugin.modeling_provla import ProvlaPolicy
from provla.policy.card import card
from provla.policy.folder import load_policy, save_policy
from provla.policy.onnx import export_onnx
from provla.run.evaluate import check_data
from provla.run.features import remember_features
from provla.serving.client import Client
from provla.trainer.graph import copy

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
SIZES = {"front": (48, 64), "wrist": (24, 32)}
SMALLER = {"front": [24, 32], "wrist": [16, 16]}
PLAIN = [*(word for word in FAKE if word != "dataset=fake"), *LIGHT]
WORLD = ["env=world", "env.world={_target_: walks.TwoEyed}", "env.tasks={Wave: Wave}", "env.max_episode_steps=8"]
WORLD += ["env.videos_per_task=1", "eval_episodes=2", "env.workers=1"]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes of 12 steps; no two pictures alike."""
    draw = np.random.default_rng(0)
    low = {(k, e, s): draw.integers(0, 256, (6, 8, 3), np.uint8) for k in (0, 1) for e in range(5) for s in range(12)}

    def picture(camera: int, episode: int, step: int) -> Any:
        return np.kron(low[camera, episode, step], np.ones((8 >> camera, 8 >> camera, 1), np.uint8))

    cameras: dict[str, dict[str, Any]] = {"front": {}, "wrist": {"shape": (24, 32, 3)}}
    return write_lerobot(tmp_path_factory.mktemp("uneven") / "uneven", cameras=cameras, picture=picture)


@pytest.fixture
def two(spec: Spec) -> Spec:
    return replace(spec, cameras=("front", "wrist"), image_size=SIZES, action_size=3, joint_groups={})


def load(root: Path, data_dir: Path, **keys: Any) -> Any:
    return LeRobotSource(str(data_dir), 0.4, 0, root=str(root), **keys).load()


def equal(one: Any, other: Any) -> bool:
    assert type(one) is type(other) is tuple
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def apart(batch: Batch) -> Batch:
    """A batch as cameras of different sizes have it."""
    images: Any = batch.observation.images
    return replace(batch, observation=replace(batch.observation, images=tuple(images.unbind(2))))


def sight(option: str, *overrides: str) -> dict[str, Any]:
    """The node of a vision encoder alone."""
    node = compose(f"vision={option}", *overrides)["vision"]
    return {key: value for key, value in node.items() if key not in ("adapter", "quant")}


# What the data say


def test_each_camera_has_the_size_that_is_asked_for(uneven: Path, tmp_path: Path) -> None:
    recorded = load(uneven, tmp_path)
    recorded.check()
    assert recorded.image_size == recorded.recorded == SIZES
    assert load(uneven, tmp_path, image_size=[24, 32]).image_size == (24, 32)
    reduced = load(uneven, tmp_path, image_size=SMALLER)
    assert reduced.sizes == {"front": (24, 32), "wrist": (16, 16)}
    np.testing.assert_array_equal(
        reduced.frames["front"][7], small(recorded.frames["front"][7].transpose(1, 2, 0), (24, 32))
    )
    one = load(uneven, tmp_path, cameras=["wrist"], image_size={"observation.images.wrist": [16, 16]})
    assert one.image_size == (16, 16)
    for size, said in (
        ({"front": [24, 32]}, "leaves out 'wrist'; .* each of: front, wrist .recorded: front 48×64, wrist 24×32"),
        ({**SMALLER, "top": [8, 8]}, "names 'top', which is no camera"),
    ):
        with pytest.raises(ValueError, match=f"dataset.image_size {said}"):
            load(uneven, tmp_path, image_size=size)
    with pytest.raises(ValueError, match=r"dataset.image_size=.*expected a list of 2 .*, or a node of lists of 2"):
        build(compose("dataset=lerobot", "dataset.image_size={front: 24}")["dataset"], "dataset")


def test_batches_are_the_same_wherever_their_pictures_come_from(uneven: Path, tmp_path: Path) -> None:
    full, none = load(uneven, tmp_path), load(uneven, tmp_path, cache="none")
    window = load(uneven, tmp_path, cache="window", window_blocks=4, window_frames=5, window_workers=1)
    mix = MixSource({"a": {"root": str(uneven)}, "b": {"root": str(uneven)}}, str(tmp_path), 0.4, 0).load()
    sizes: Any = (np.arange(5), ["wrist", "front"], 4, 2)
    ahead, rows = WindowSampler(window, *sizes), Sampler(full, *sizes)
    try:
        for step in range(12):
            found = ahead.step(3, step, 8)
            images: Any = found.observation.images
            assert [tuple(one.shape) for one in images] == [(8, 2, 3, 24, 32), (8, 2, 3, 48, 64)]
            again = rows.gather(ahead.rows_at(3, step, 8))
            assert equal(images, again.observation.images)
    finally:
        ahead.close()
    some = np.array([0, 7, 30])
    wanted = rows.gather(some).observation.images
    assert equal(Sampler(none, *sizes).gather(some).observation.images, wanted)
    assert equal(Sampler(mix, np.arange(10), *sizes[1:]).gather(some + 60).observation.images, wanted)
    batch: Any = rows.step(3, 0, 8)
    wanted = batch.observation.images
    halves: Any = [part.observation.images for part in batch.split(2)]
    assert equal(tuple(map(torch.cat, zip(*halves, strict=True))), wanted)
    assert equal(rows.step(3, 0, 8, 1, 2).observation.images, tuple(one[1::2] for one in wanted))
    resident = Resident(rows, CPU).look(rows.step(3, 0, 8, pictures=False))
    assert equal(resident.observation.images, wanted)
    place = rows.step(3, 1, 8)  # of a step's batch in a CUDA graph
    copy(batch, place)
    assert equal(place.observation.images, wanted)


def test_what_is_in_the_data_is_shown(uneven: Path, command: Command, tmp_path: Path) -> None:
    code, out, err = command(
        "analyze", "dataset=lerobot", f"dataset.root={uneven}", "augmentation=crop", f"hydra.run.dir={tmp_path / 'a'}"
    )
    assert code == 0, err
    assert "cameras front 48×64, wrist 24×32" in " ".join(out.split())
    assert (tmp_path / "a" / "augmentation.png").is_file()


# What the parts make of it


@pytest.mark.parametrize("option", ["conv_small", "resnet18", "siglip_tiny", "dino_siglip"])
def test_an_encoder_sees_cameras_apart_as_it_sees_them_together(option: str, spec: Spec, backbones: Path) -> None:
    node = sight(option, *local(option, backbones))
    encoder: Any = build(node, "vision", nn.Module)(num_images=4, image_size=spec.image_size)
    nn.init.normal_(next(p for name, p in encoder.named_parameters() if name.endswith("view")))  # whose picture it is
    images: Any = fake_observation(spec, 3).images
    expected, found = encoder(images), encoder(tuple(images.unbind(2)))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
    assert found.mask.all()
    uneven = {"left": (32, 32), "right": (48, 64)}
    encoder = build(node, "vision", nn.Module)(num_images=4, image_size=uneven)
    seen: Any = fake_observation(replace(spec, image_size=uneven), 3)
    tokens = encoder(seen.images)
    other = encoder((seen.images[0], seen.images[1].flip(-1)))
    assert tokens.features.shape == (3, tokens.mask.shape[1], encoder.width)
    # Step by step, and in each camera by camera.
    steps = tokens.features.unflatten(1, (2, -1)) == other.features.unflatten(1, (2, -1))
    assert steps[:, :, 0].all()
    assert not steps[:, :, -1].all()


@pytest.mark.parametrize("option", ["siglip_tiny", "siglip_base", "clip_base", "dinov2_small"])
def test_a_transformer_takes_each_camera_at_its_own_size(option: str, backbones: Path) -> None:
    """Its tokens are those of an encoder that brings all to that size, as many as the camera has patches."""
    sizes = {"left": (28, 56), "right": (56, 84)} if option == "dinov2_small" else {"left": (32, 64), "right": (48, 32)}

    def made(size: str, *more: str, image_size: Any = sizes) -> Any:
        node = sight(option, f"vision.input_size={size}", *local(option, backbones), *more)
        torch.manual_seed(0)
        return build(node, "vision", nn.Module)(num_images=2, image_size=image_size).eval()

    own, draw = made("own"), torch.Generator().manual_seed(1)
    images = tuple(
        torch.randint(0, 256, (3, 1, 3, *size), dtype=torch.uint8, generator=draw) for size in sizes.values()
    )
    edge = own.model.config.patch_size
    counts = [h // edge * (w // edge) for h, w in sizes.values()]
    tokens = own(images).features.split(counts, 1)
    for number, (h, w) in enumerate(sizes.values()):
        alone = made(f"[{h},{w}]")
        torch.testing.assert_close(tokens[number], alone.encode(images[number].flatten(0, 1)), rtol=1e-4, atol=1e-5)
    assert made("own", "vision.pool=patches_2x2")(images).features.shape[1] * 4 == sum(counts)
    with pytest.raises(ValueError, match=rf"vision.input_size=own: .* 31×{edge} pixels, .* no whole patches of {edge}"):
        made("own", image_size=(31, edge))


@pytest.mark.parametrize("option", ["crop", "crop_color", "camera", "none"])
def test_an_augmentation_changes_cameras_apart_as_together(option: str, spec: Spec) -> None:
    change, batch = build(compose(f"augmentation={option}")["augmentation"], "augmentation"), drawn_batch(spec, 6)
    assert equal(change(apart(batch)), tuple(change(batch).unbind(2)))


def test_lerobots_act_sees_cameras_apart_as_together(spec: Spec) -> None:
    options = ["dim_model=32", "n_heads=2", "dim_feedforward=32", "n_encoder_layers=1"]
    node, spec = (
        compose("policy=act", *(f"policy.options.{one}" for one in options))["policy"],
        replace(spec, n_obs_steps=1),
    )
    policy = build(node, "policy", nn.Module, spec=spec, device=CPU).eval()
    batch = drawn_batch(spec, 2)
    assert torch.allclose(policy.loss(apart(batch))["loss"], policy.loss(batch)["loss"])
    uneven = replace(spec, image_size={"left": (32, 32), "right": (64, 48)})
    assert policy.inputs(fake_observation(uneven, 2).images, fake_observation(uneven, 2))["observation.images"][
        1
    ].shape == (2, 3, 64, 48)
    with pytest.raises(
        ValueError, match=r"policy=diffusion: LeRobot's puts .* differ in size \(left 32×32, right 64×48\)"
    ):
        build(compose("policy=diffusion")["policy"], "policy", nn.Module, spec=uneven, device=CPU)


@pytest.mark.parametrize(("vision", "size"), [("resnet18", "own"), ("siglip_base", None), ("siglip_base", "own")])
def test_features_that_are_remembered_are_those_that_are_computed(
    vision: str, size: str | None, uneven: Path, backbones: Path, tmp_path: Path
) -> None:
    """Of ResNet each camera has maps of its own size; SigLIP brings all to one, or takes each as it is."""
    name = backbones / ("resnet" if vision == "resnet18" else "siglip")
    plain = [word for word in PLAIN if not word.startswith("vision")]
    config = compose(
        *plain,
        f"vision={vision}",
        f"vision.name={name}",
        "vision.pretrained=true",
        "adapter=frozen",
        "augmentation=none",
        *(["vision.input_size=own"] if (vision, size) == ("siglip_base", "own") else []),
    )
    data = load(uneven, tmp_path)
    sizes: Any = (tuple(data.frames), 8, 2)
    learn, held = Sampler(data, np.arange(4), *sizes), Sampler(data, np.arange(4, 5), *sizes)
    spec = Spec(sizes[0], data.image_size, 3, 3, 8, 2, 4, ("Wave", "Point"), {}, 10.0)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.vision.requires_grad_(False)
    expected = policy.eval().loss(learn.step(0, 0, 4))["loss"]
    setting: Any = SimpleNamespace(data=data, spec=spec, learn=learn, held=held)
    remember_features(config | {"data_dir": str(tmp_path)}, policy, setting, CPU)
    batch = learn.step(0, 0, 4)
    assert batch.observation.features is not None
    assert isinstance(batch.observation.features, tuple) == (size == "own")
    batch = replace(
        batch, observation=replace(batch.observation, images=tuple(one * 0 for one in batch.observation.images))
    )
    assert torch.allclose(policy.eval().loss(batch)["loss"], expected, rtol=1e-5)


# The whole way


def test_from_a_data_set_to_a_robot(uneven: Path, command: Command, tmp_path: Path) -> None:
    run, given = tmp_path / "run", ["dataset=lerobot", f"dataset.root={uneven}", "n_obs_steps=2", "augmentation=camera"]
    code, _, err = command("train", *PLAIN, *given, *WORLD, "dataset.val_fraction=0.4", f"hydra.run.dir={run}")
    assert code == 0, err
    assert (run / "plots" / "chunks.png").is_file()
    code, _, err = command("evaluate", f"checkpoint={run}", "trust=[walks]", f"hydra.run.dir={tmp_path / 'again'}")
    assert code == 0, err
    first, again = ((place / "episodes.csv").read_text() for place in (run, tmp_path / "again"))
    assert first == again
    assert "fault" not in first
    stored = json.loads((run / "policy" / "config.json").read_text())["spec"]
    assert stored["image_size"] == {"front": [48, 64], "wrist": [24, 32]}
    assert (
        "a tuple of tensors uint8, one for each camera in this order: front (1,2,3,48,64); wrist (1,2,3,24,32)"
        in card("x", run / "policy", "policy")
    )
    policy: Any = provla.load(run, device="cpu")
    assert asdict(policy.spec) == asdict(load_policy(run / "policy", CPU)[1])
    seen: Any = fake_observation(policy.spec, 1)
    with reproducible(1, CPU, False):
        expected = policy.act(seen, torch.Generator().manual_seed(0))
    _check_robot(run, seen, expected, tmp_path)
    _check_server(run, seen, expected)
    with pytest.raises(ValueError, match=r"onnx=true: the graph has one input .* \(front 48×64, wrist 24×32\)"):
        export_onnx(run / "policy", tmp_path / "onnx")
    with pytest.raises(
        ValueError,
        match=r"images is \(1, 2, 2, 3, 48, 64\) uint8: the cameras differ in size .* front \(1, 2, 3, 48, 64\)",
    ):
        policy.act(replace(seen, images=torch.stack([seen.images[0]] * 2, 2)))
    with pytest.raises(ValueError, match=r"each of the cameras front, wrist in this order"):
        policy.act(replace(seen, images=seen.images[:1]))


def _check_robot(run: Path, seen: Any, expected: torch.Tensor, tmp_path: Path) -> None:
    """LeRobot's plugin, of a policy that samples nothing: whatever the noise, it acts alike."""
    export_lerobot(run / "policy", tmp_path / "lerobot", CPU)
    said = json.loads((tmp_path / "lerobot" / "config.json").read_text())["input_features"]
    assert [said[f"observation.images.{camera}"]["shape"] for camera in SIZES] == [[3, 48, 64], [3, 24, 32]]
    theirs = ProvlaPolicy.from_pretrained(tmp_path / "lerobot")
    theirs.config.threads = 1
    steps = [
        {f"observation.images.{camera}": one[:, t] / 255 for camera, one in zip(SIZES, seen.images, strict=True)}
        | {"observation.state": seen.state[:, t], "task": seen.instruction}
        for t in (0, 1)
    ]
    together = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0] if key != "task"}
    assert torch.equal(theirs.predict_action_chunk(together | {"task": seen.instruction}), expected)
    theirs.reset()
    action = theirs.select_action(steps[0])
    with reproducible(1, CPU, False):
        first = Observation(
            tuple(one[:, :1].expand(-1, 2, -1, -1, -1) for one in seen.images),
            seen.state[:, :1].expand(-1, 2, -1),
            seen.instruction,
        )
        assert torch.equal(action, provla.load(run, device="cpu").act(first)[:, 0])
    theirs.reset()
    with pytest.raises(ValueError, match=r"through the camera 'wrist' .*, which is missing"):
        theirs.select_action({key: value for key, value in steps[0].items() if "wrist" not in key})
    with pytest.raises(ValueError, match=r"the camera 'wrist' gives pictures of 48×64; .* recorded at 24×32"):
        theirs.select_action(steps[0] | {"observation.images.wrist": torch.zeros(1, 3, 48, 64)})


def _check_server(run: Path, seen: Any, expected: torch.Tensor) -> None:
    from test_serve import get, serving

    pictures = {
        camera: one[0].permute(0, 2, 3, 1).contiguous().numpy() for camera, one in zip(SIZES, seen.images, strict=True)
    }
    message = {"images": pictures, "state": seen.state[0].numpy(), "prompt": seen.instruction[0]}
    with serving(run, threads=1, trust=["walks"]) as port, Client("127.0.0.1", port) as client:
        assert client.facts["image_size"] == {"front": [48, 64], "wrist": [24, 32]}
        assert client.facts["image_shape"]["wrist"] == [2, 24, 32, 3]
        assert np.array_equal(client.infer(message)["actions"], expected[0].numpy())
        shown = cv2.imdecode(np.frombuffer(get(port, "/seen/1.png")[0], np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (48, 64 + 32, 3)
        with pytest.raises(RuntimeError, match="no picture of camera 'wrist'"):
            client.infer({**message, "images": {"front": pictures["front"]}})


# What is refused


def test_a_missing_camera_is_named(two: Spec, uneven: Path, tmp_path: Path) -> None:
    suite = build(compose("dataset=fake", *WORLD)["env"], "env")
    check_fit(suite, two)
    assert all(row.kept for row in check_contract(suite))
    with pytest.raises(ValueError, match=r"camera 'top', which the worlds of \w+ do not have; they have: front, wrist"):
        check_fit(suite, replace(two, cameras=("front", "top"), image_size=(48, 64)))
    with pytest.raises(ValueError, match=r"image size of wrist is \(48, 64\), that of the worlds of \w+ \(24, 32\)"):
        check_fit(suite, replace(two, image_size=(48, 64)))
    data = load(uneven, tmp_path)
    check_data(data, two)
    with pytest.raises(ValueError, match=r"through the camera 'top', which the data set .* it has: front, wrist"):
        check_data(data, replace(two, cameras=("front", "top"), image_size=(48, 64)))
    with pytest.raises(ValueError, match=r"image_size names the cameras front, wrist; there are: front$"):
        replace(two, cameras=("front",))


def test_lerobot_sees_each_camera_of_a_world_at_its_size() -> None:
    world = ProvlaWorld(build(compose("dataset=fake", *WORLD)["env"], "env"), "Wave", 0)
    seen, _ = world.reset(seed=3)
    assert world.observation_space.contains(seen)
    assert {camera: picture.shape[:2] for camera, picture in seen["pixels"].items()} == SIZES
    assert np.array_equal(world.render(), seen["pixels"]["front"])


class OneSize(nn.Module):
    """An encoder, or an augmentation, that knows of one size alone."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()


def test_parts_that_know_of_one_size_are_refused(two: Spec) -> None:
    config = compose(*FAKE, *LIGHT)["policy"]
    for key in ("vision", "augmentation"):
        node = {"_target_": "test_cameras.OneSize"} | ({"_partial_": True} if key == "vision" else {})
        with pytest.raises(
            ValueError, match=rf"{key}: OneSize takes pictures of one size, .* differ \(front 48×64, wrist 24×32\)"
        ):
            build(config | {key: node}, "policy", nn.Module, spec=two, device=CPU)


def test_a_policy_that_was_stored_with_one_size_still_loads(two: Spec, tmp_path: Path) -> None:
    config, spec = compose(*FAKE, *LIGHT), replace(two, image_size=(32, 32))
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    save_policy(tmp_path / "policy", policy, config["policy"], spec)
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["spec"]["image_size"] == [32, 32]
    assert load_policy(tmp_path / "policy", CPU)[1].image_size == (32, 32)
    assert replace(spec, image_size={"front": (32, 32), "wrist": (32, 32)}).image_size == (32, 32)  # they do not differ
