"""Encoders, fusions and heads keep their shapes, pass gradients, honour masks; heads see time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, compose, local
from torch import nn

from provla.core.build import build
from provla.core.types import Spec, Tokens, fake_observation
from provla.policy.matched import build_matched


def options(group: str, *without: str) -> list[str]:
    return [f.stem for f in sorted((ROOT / "conf" / group).glob("*.yaml")) if f.stem not in without]


def part(group: str, option: str, overrides: Sequence[str] = (), **sizes: Any) -> Any:
    torch.manual_seed(0)
    node = {
        key: value
        for key, value in compose(f"{group}={option}", *overrides)[group].items()
        if key not in ("adapter", "quant")
    }
    return build_matched(node, group, sizes) if group == "fusion" else build(node, group, nn.Module)(**sizes)


def trained(module: nn.Module) -> Any:
    """The module with nothing left at 0: gates and modulations that start closed would hide what is behind them."""
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return module


def gradients(module: nn.Module, out: torch.Tensor) -> None:
    (out * torch.randn_like(out)).sum().backward()
    # The last layer's queries of a causal model and the like may stay unused; most weights must not.
    named = [p for p in module.parameters() if p.requires_grad]
    touched = [p for p in named if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(touched) >= 0.8 * len(named)


@pytest.mark.parametrize("option", options("vision"))
def test_vision_shapes_and_gradients(option: str, spec: Spec, backbones: Path) -> None:
    encoder = part("vision", option, local(option, backbones), num_images=4, image_size=spec.image_size)
    images = fake_observation(spec, 3).images
    tokens = encoder(images)
    assert tokens.features.shape == (3, tokens.mask.shape[1], encoder.width)
    assert tokens.mask.all()
    gradients(encoder, tokens.features)
    # Samples do not see each other.
    torch.testing.assert_close(encoder(images[:1]).features, tokens.features[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["spatial_softmax", "cells"])
@pytest.mark.parametrize("option", ["conv_small", "resnet18"])
def test_convolutional_tokens(option: str, pool: str) -> None:
    encoder = part("vision", option, [f"vision.pool={pool}"], num_images=1, image_size=(64, 64))
    count = {"spatial_softmax": 64 if option == "conv_small" else 32, "cells": 256 if option == "conv_small" else 4}[
        pool
    ]
    assert encoder(torch.zeros(2, 1, 1, 3, 64, 64, dtype=torch.uint8)).features.shape == (2, count, encoder.width)


def test_spatial_softmax_finds_a_bright_spot() -> None:
    from provla.vision.parts import Tokenizer2d

    torch.manual_seed(0)
    tokens = Tokenizer2d(1, 2, "spatial_softmax", 1)
    nn.init.constant_(tokens.attention.weight, 50.0)
    nn.init.zeros_(tokens.feature.weight)
    nn.init.zeros_(tokens.feature.bias)
    nn.init.zeros_(tokens.identity)
    tokens.position.data = torch.eye(2).unsqueeze(0)
    maps = torch.zeros(1, 1, 5, 9)
    maps[0, 0, 4, 2] = 1.0
    torch.testing.assert_close(tokens(maps)[0, 0], torch.tensor([1.0, -0.5]))


@pytest.mark.parametrize("option", options("text"))
def test_text_shapes_masks_and_gradients(option: str, spec: Spec, backbones: Path) -> None:
    encoder = part("text", option, local(option, backbones), instructions=spec.instructions).eval()
    both, short = encoder(list(spec.instructions)), encoder([spec.instructions[0]])
    assert both.features.shape == (2, both.mask.shape[1], encoder.width)
    # A longer neighbour, hence padding, changes nothing.
    n = short.mask.shape[1]
    torch.testing.assert_close(both.features[0, :n], short.features[0], rtol=1e-4, atol=1e-5)
    assert not both.mask[0, n:].any()
    if option != "none":
        gradients(encoder, both.features * both.mask.unsqueeze(-1))
        assert not torch.allclose(both.mean()[0], both.mean()[1])


def test_task_embedding_refuses_unknown_instructions(spec: Spec) -> None:
    with pytest.raises(ValueError, match=r"does not know the instruction 'Dance'[\s\S]*text=qwen_tiny"):
        part("text", "task_embedding", instructions=spec.instructions)(["Dance"])


def inputs(mask_text: int = 2) -> tuple[Tokens, Tokens, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    vision = Tokens.full(torch.randn(3, 7, 12, generator=g))
    text = Tokens(torch.randn(3, 5, 10, generator=g), torch.arange(5).expand(3, 5) < 5 - mask_text)
    return vision, text, torch.randn(3, 2, 4, generator=g)


@pytest.mark.parametrize("option", options("fusion"))
class TestFusion:
    def make(self, option: str) -> Any:
        return part("fusion", option, vision_width=12, text_width=10, state_size=8)

    def test_shapes_and_gradients(self, option: str) -> None:
        fusion = trained(self.make(option))
        context = fusion(*inputs())
        assert context.features.shape == (3, context.mask.shape[1], fusion.width)
        gradients(fusion, context.features)

    def test_masked_tokens_change_nothing(self, option: str) -> None:
        fusion = self.make(option)
        for p in fusion.parameters():  # FiLM starts as the identity, which would hide the text altogether
            nn.init.normal_(p, std=0.1)
        vision, text, state = inputs()
        other = Tokens(torch.where(text.mask.unsqueeze(-1), text.features, 100.0), text.mask)
        shorter = Tokens(text.features[:, :3], text.mask[:, :3])

        def seen(*given: Any) -> torch.Tensor:
            context = fusion(*given)
            return torch.as_tensor(context.features[context.mask])

        expected = seen(vision, text, state)
        torch.testing.assert_close(seen(vision, other, state), expected)
        torch.testing.assert_close(seen(vision, shorter, state), expected)
        blind = Tokens(vision.features, vision.mask & (torch.arange(7) < 4))
        noise = Tokens(torch.where(blind.mask.unsqueeze(-1), vision.features, -50.0), blind.mask)
        torch.testing.assert_close(seen(noise, text, state), seen(blind, text, state))

    def test_every_modality_matters(self, option: str) -> None:
        fusion = self.make(option)
        for p in fusion.parameters():
            nn.init.normal_(p, std=0.1)
        vision, text, state = inputs()
        base = fusion(vision, text, state).features
        for changed in (
            (Tokens.full(vision.features.flip(-1)), text, state),
            (vision, Tokens(text.features.flip(-1), text.mask), state),
            (vision, text, state + 1),
        ):
            assert not torch.allclose(fusion(*changed).features, base, atol=1e-4)

    def test_works_without_text(self, option: str) -> None:
        vision, _, state = inputs()
        fusion = part("fusion", option, vision_width=12, text_width=1, state_size=8)
        assert fusion(vision, Tokens.full(torch.zeros(3, 0, 1)), state).features.isfinite().all()


def test_film_follows_its_equation() -> None:
    from provla.fusion import FiLM

    vision, text, state = inputs()
    film = FiLM(12, 10, 8, width=6, depth=1)
    block, leave = film.blocks[0], film.leave
    features = film.enter(vision.features)
    plain = film.norm((features + block(features)).mean(1))
    # The identity at the start.
    torch.testing.assert_close(
        film(vision, text, state).features[:, 0], leave(torch.cat([plain, state.flatten(1)], -1))
    )
    nn.init.normal_(film.modulations[0].weight)  # type: ignore[arg-type]
    gamma, beta = film.modulations[0](text.mean()).chunk(2, -1)
    modulated = film.norm((features + block((1 + gamma[:, None]) * features + beta[:, None])).mean(1))
    torch.testing.assert_close(
        film(vision, text, state).features[:, 0], leave(torch.cat([modulated, state.flatten(1)], -1))
    )


@pytest.mark.parametrize("option", options("head"))
class TestHead:
    @pytest.mark.parametrize("horizon", [1, 7, 16])
    def test_shapes_and_gradients(self, option: str, horizon: int) -> None:
        head = trained(part("head", option, action_size=3, horizon=horizon, context_width=10))
        out = head(torch.randn(2, horizon, 3), torch.tensor([0, 99]), Tokens.full(torch.randn(2, 4, 10)))
        assert out.shape == (2, horizon, 3)
        gradients(head, out)

    def test_sees_time_and_context(self, option: str) -> None:
        head = trained(part("head", option, action_size=3, horizon=8, context_width=10))
        actions, context = torch.randn(1, 8, 3), Tokens.full(torch.randn(1, 4, 10))
        out = head(actions, torch.tensor([0]), context)
        assert (head(actions, torch.tensor([99]), context) - out).abs().max() > 1e-3
        assert (head(actions, torch.tensor([0]), Tokens.full(context.features + 1)) - out).abs().max() > 1e-3

    def test_masked_context_changes_nothing(self, option: str) -> None:
        head = trained(part("head", option, action_size=3, horizon=8, context_width=10))
        features, mask = torch.randn(1, 4, 10), torch.tensor([[True, True, False, False]])
        other = torch.where(mask.unsqueeze(-1), features, 9.0)
        actions, time = torch.randn(1, 8, 3), torch.tensor([5])
        torch.testing.assert_close(
            head(actions, time, Tokens(features, mask)), head(actions, time, Tokens(other, mask))
        )


def test_mish_is_torchs_with_its_slope() -> None:
    from provla.head.parts import Mish

    x = torch.cat([torch.linspace(-100, 100, 2001), torch.tensor([-1e30, 1e30, 0.0])]).requires_grad_()
    (ours,) = torch.autograd.grad((mine := Mish()(x)).sum(), x)
    (theirs,) = torch.autograd.grad((other := torch.nn.functional.mish(x)).sum(), x)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
    with torch.no_grad():
        assert torch.equal(Mish()(x), torch.nn.functional.mish(x))
    assert Mish()(x.half()).dtype == torch.float16
