"""Normalisation, composition and act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from conftest import check_split, compose, drawn_batch

from provla.core.build import build
from provla.core.types import Batch, Observation, Spec, Tokens, fake_batch, fake_observation
from provla.policy.matched import count_parameters
from provla.policy.normalize import Mode, Normalizer
from provla.policy.provla import ProVLA

SMALL = ["vision.channels=[8,16]", "vision.width=16", "fusion.width=32", "head.channels=[16,32]", "head.time_width=16"]


def make(spec: Spec, *overrides: str) -> Any:
    torch.manual_seed(0)
    return build(compose(*SMALL, *overrides)["policy"], "policy", ProVLA, spec=spec, device=torch.device("cpu"))


@pytest.mark.parametrize("mode", get_args(Mode))
def test_normalisation_undoes_itself(mode: Mode) -> None:
    values = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1, 100, 1e-3, 0.0]
    ) + torch.tensor([0, 5, -2, 7.0])
    norm = Normalizer(4)
    norm.fit(values, mode)
    torch.testing.assert_close(norm.undo(norm(values)), values)
    assert (norm(values)[:, 3] == 0).all()  # a joint that never moves


def test_normalisation_ranges() -> None:
    values = torch.linspace(0, 10, 1001).unsqueeze(1)
    norm = Normalizer(1)
    norm.fit(values, "min_max")
    assert norm(values).min().item() == -1
    assert norm(values).max().item() == 1
    norm.fit(values, "mean_std")
    assert norm(values).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    norm.fit(values, "quantiles")
    torch.testing.assert_close(norm(torch.tensor([[0.1], [9.9]])), torch.tensor([[-1.0], [1.0]]))


@pytest.mark.parametrize("kind", ["provla", "diffusion"])
@pytest.mark.parametrize(("mode", "share"), [("mean_std", r"\d\d\.\d%"), ("quantiles", r"[12]\.\d%")])
def test_targets_that_a_clipping_sampler_cannot_reach_are_refused(mode: str, share: str, kind: str, spec: Spec) -> None:
    key = "scheduler.clip_sample" if kind == "provla" else "policy.options.clip_sample"
    states, actions = torch.randn(500, 3), torch.randn(500, 4)
    given = [f"policy={kind}", f"policy.normalization.action={mode}"]
    build_it = (
        make
        if kind == "provla"
        else lambda s, *o: build(
            compose(*o, "policy.options.down_dims=[16,32]")["policy"], "policy", spec=s, device=torch.device("cpu")
        )
    )
    with pytest.raises(
        ValueError,
        match=rf"action={mode} leaves {share} of the training actions beyond ±1.*set "
        rf"policy.normalization.action=min_max, or {key}=false",
    ):
        build_it(spec, *given).fit_normalization(states, actions)
    build_it(spec, *given, f"{key}=false").fit_normalization(states, actions)
    build_it(spec, f"policy={kind}").fit_normalization(states, actions)
    if kind == "provla":
        build_it(spec, *given, "scheduler=flow").fit_normalization(states, actions)


def test_overfits_one_batch(spec: Spec) -> None:
    """Learns four chunks by heart and says each to its own observation, in the robot's units."""
    policy = make(spec, "fusion=concat_mlp", "augmentation=none")
    batch = fake_batch(spec, 4)
    batch = Batch(batch.observation, batch.actions * 3 + 10, torch.zeros_like(batch.is_pad))
    policy.fit_normalization(batch.observation.state.flatten(0, 1), batch.actions.flatten(0, 1))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(150):
        # Many noise draws for every sample make the learning fast.
        rows = [i for i in range(4) for _ in range(4)]
        many = Batch(
            type(batch.observation)(
                batch.observation.images[rows],
                batch.observation.state[rows],
                [batch.observation.instruction[i] for i in rows],
            ),
            batch.actions[rows],
            batch.is_pad[rows],
        )
        optimizer.zero_grad()
        policy.loss(many)["loss"].backward()
        optimizer.step()
    policy.eval()
    error = (policy.act(batch.observation, torch.Generator().manual_seed(1)) - batch.actions).abs().mean()
    assert error < 0.15 * (batch.actions - batch.actions.mean(0)).abs().mean()


def test_each_distinct_instruction_is_encoded_once(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(spec, "text=task_embedding")
    seen: list[list[str]] = []
    inner = policy.text.forward

    def spy(instructions: list[str]) -> Tokens:
        seen.append(instructions)
        return inner(instructions)  # type: ignore[no-any-return]

    monkeypatch.setattr(policy.text, "forward", spy)
    policy.loss(fake_batch(spec, 6))
    assert seen == [list(spec.instructions)]


def test_act_is_a_function_of_its_generators(spec: Spec) -> None:
    policy = make(spec).eval()
    observation = fake_observation(spec, 2)
    first, again, other = (
        policy.act(observation, [torch.Generator().manual_seed(s), torch.Generator().manual_seed(9)]) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], other[0])
    torch.testing.assert_close(first[1], other[1])


def test_augmentation_only_in_training(spec: Spec) -> None:
    policy = make(spec)
    batch = fake_batch(spec, 4)
    shifted = [
        Batch(
            batch.observation,
            batch.actions,
            batch.is_pad,
            torch.zeros(4, 8, 4),
            torch.full((4,), 0.5),
            torch.full((4, 2), c),
        )
        for c in (0.0, 0.99)
    ]
    policy.eval()
    assert policy.loss(shifted[0])["loss"] == policy.loss(shifted[1])["loss"]
    policy.train()
    assert policy.loss(shifted[0])["loss"] != policy.loss(shifted[1])["loss"]


def test_crop_shifts_whole_samples_by_whole_pixels() -> None:
    from provla.augmentation import RandomCrop

    images = torch.randint(0, 256, (2, 2, 1, 3, 8, 8), dtype=torch.uint8)
    seen = Observation(images, torch.zeros(2, 2, 1), ["a", "b"])

    def crop(draws: torch.Tensor) -> torch.Tensor:
        return RandomCrop(2)(Batch(seen, torch.zeros(2, 1, 1), torch.zeros(2, 1, dtype=torch.bool), crop=draws))  # type: ignore[no-any-return]

    assert torch.equal(crop(torch.full((2, 2), 0.5)), images)  # the middle of five positions
    down = crop(torch.tensor([[0.99, 0.5], [0.5, 0.0]]))
    assert torch.equal(down[0, :, :, :, :6], images[0, :, :, :, 2:])
    assert torch.equal(down[1, ..., 2:], images[1, ..., :6])
    assert torch.equal(down[1, ..., 0], images[1, ..., 0])  # edges repeat


def test_color_changes_brightness_and_contrast_of_whole_samples() -> None:
    from provla.augmentation import CropColor

    images = torch.randint(80, 120, (3, 2, 1, 3, 8, 8), dtype=torch.uint8)
    seen = Observation(images, torch.zeros(3, 2, 1), ["a", "b", "c"])
    color = torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 1.0]])  # nothing, brighter, more contrast
    batch = Batch(
        seen, torch.zeros(3, 1, 1), torch.zeros(3, 1, dtype=torch.bool), crop=torch.full((3, 2), 0.5), color=color
    )
    found, pixels = CropColor(2, 0.3)(batch).float(), images.float()
    torch.testing.assert_close(found[0], pixels[0], atol=1, rtol=0)
    torch.testing.assert_close(found[1], 1.3 * pixels[1], atol=1, rtol=0)
    assert found[2].std() == pytest.approx(1.3 * pixels[2].std().item(), rel=0.05)


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_color", "camera"])
def test_splitting_a_batch_changes_no_gradient(augmentation: str, spec: Spec) -> None:
    check_split(make(spec, f"augmentation={augmentation}"), drawn_batch(spec, 8))


def test_count_parameters_counts_packed_weights_as_what_they_stand_for(spec: Spec) -> None:
    plain, packed = (count_parameters(make(spec, *o)) for o in (["adapter=frozen"], ["quant=4bit", "adapter=frozen"]))
    assert {key: plain[key] for key in ("trainable", "total")} == {key: packed[key] for key in ("trainable", "total")}
    assert packed["bytes"] < plain["bytes"]


def test_an_observation_that_is_not_the_policys_is_refused(spec: Spec) -> None:
    """A camera too few used to be taken for all of them."""
    policy, seen = make(spec).eval(), fake_observation(spec, 2)
    shape = r"expected \(B,T,C,3,h,w\) = \(2, 2, 2, 3, 32, 32\) uint8, the pictures of the cameras left, right in this"
    for changes, message in (
        ({"images": seen.images[:, :, :1]}, rf"images is \(2, 2, 1, 3, 32, 32\) uint8: {shape}"),
        ({"images": seen.images[:, :1]}, rf"images is \(2, 1, 2, 3, 32, 32\) uint8: {shape}"),
        ({"images": seen.images / 255}, rf"images is \(2, 2, 2, 3, 32, 32\) float32: {shape}"),
        ({"state": seen.state[:, :1]}, r"state is \(2, 1, 3\): expected \(B,T,S\) = \(2, 2, 3\) in the robot's units"),
        ({"past_actions": torch.zeros(2, 1, spec.action_size)}, r"past_actions: this policy reads none"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(replace(seen, **changes))
