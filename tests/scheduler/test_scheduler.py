"""The objective and the samplers, against closed forms."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from conftest import compose
from torch import Tensor

from provla.core.build import build
from provla.core.types import Tokens
from provla.scheduler.parts import first_noise, masked_mean

CONTEXT = Tokens.full(torch.zeros(2, 1, 1))


def scheduler(option: str, **changes: Any) -> Any:
    return build(compose(f"scheduler={option}")["scheduler"] | changes, "scheduler")


def test_first_noise_is_diffusers_own_and_flow_needs_no_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    def drawn() -> list[Any]:
        return [torch.Generator().manual_seed(4), [torch.Generator().manual_seed(seed) for seed in (1, 2)]]

    for mine, theirs in zip(drawn(), drawn(), strict=True):
        assert torch.equal(first_noise(CONTEXT, (2, 8, 3), mine), randn_tensor((2, 8, 3), theirs, dtype=torch.float32))
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    for option in ("flow", "l1", "mip"):
        found = scheduler(option).sample(lambda x, t, context: x, CONTEXT, (2, 8, 3), torch.Generator())
        assert found.shape == (2, 8, 3)


def test_masked_mean_counts_only_real_steps() -> None:
    error = torch.arange(12.0).view(2, 3, 2)
    is_pad = torch.tensor([[False, True, True], [False, False, True]])
    assert masked_mean(error, is_pad).item() == pytest.approx((0 + 1 + 6 + 7 + 8 + 9) / 6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("option", ["ddim", "ddpm", "dpm_solver"])
def test_a_perfect_denoiser_samples_the_action(option: str, prediction_type: str) -> None:
    truth = torch.rand(2, 8, 3) * 1.6 - 0.8
    chosen = scheduler(option, prediction_type=prediction_type)
    alphas = chosen._scheduler.alphas_cumprod

    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        """What an infinitely trained head predicts when the data is this one chunk."""
        a = alphas[t].view(-1, 1, 1)
        noise = (x - a.sqrt() * truth) / (1 - a).sqrt()
        return {"epsilon": noise, "sample": truth, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * truth}[
            prediction_type
        ]

    found = chosen.sample(head, CONTEXT, (2, 8, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, truth, atol=2e-3, rtol=0)
    assert chosen.loss(head, truth, CONTEXT, torch.zeros(2, 8, dtype=torch.bool)).item() < 1e-4


def test_padded_steps_carry_no_loss_and_no_gradient() -> None:
    actions, is_pad = torch.randn(2, 8, 3), torch.zeros(2, 8, dtype=torch.bool)
    is_pad[:, 5:] = True
    weight = torch.ones(8, 1, requires_grad=True)
    noise, time = torch.randn(2, 8, 3), torch.rand(2)
    loss = scheduler("ddim").loss(lambda x, t, c: x * weight, actions, CONTEXT, is_pad, noise, time)
    loss.backward()
    assert weight.grad is not None
    assert (weight.grad[5:] == 0).all()
    assert (weight.grad[:5] != 0).all()


def test_what_never_changes_goes_to_a_device_once() -> None:
    chosen = scheduler("ddim")
    chosen._scheduler.set_timesteps(chosen.num_inference_steps)
    cpu, other = torch.device("cpu"), torch.device("meta")
    signal, clock = chosen._signal(cpu), chosen._clock(cpu)
    assert chosen._signal(cpu) is signal
    assert chosen._clock(cpu) is clock
    assert torch.equal(signal, chosen._scheduler.alphas_cumprod)
    assert chosen._signal(other) is chosen._signal(other)
    assert (chosen._signal(other).device, chosen._clock(other).device) == (other, other)
    chosen.num_inference_steps = 3  # as an evaluation may ask
    chosen._scheduler.set_timesteps(3)
    assert chosen._clock(cpu).tolist() == chosen._scheduler.timesteps.tolist()


def test_a_row_of_a_batch_is_sampled_as_if_alone() -> None:
    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        return 0.3 * x

    for option in ("ddim", "ddpm", "dpm_solver", "flow", "l1", "mip"):
        chosen = scheduler(option)
        seeds = [torch.Generator().manual_seed(i) for i in (3, 4)]
        both = chosen.sample(head, CONTEXT, (2, 8, 3), seeds)
        alone = chosen.sample(head, Tokens.full(torch.zeros(1, 1, 1)), (1, 8, 3), [torch.Generator().manual_seed(4)])
        torch.testing.assert_close(both[1:], alone)


@pytest.mark.parametrize("option", ["ddim", "ddpm", "dpm_solver", "flow", "l1", "mip"])
def test_noise_and_steps_are_float32_whatever_the_head_computes_in(option: str) -> None:
    """The same rounded head, once with bf16 answers to a bf16 context, as autocast and bf16 weights give them, once in
    float32.
    """
    seen: list[torch.dtype] = []

    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        seen.append(x.dtype)
        return (0.3 * x + 0.1).bfloat16()

    half = Tokens(CONTEXT.features.bfloat16(), CONTEXT.mask)
    chosen, noise = scheduler(option), [torch.Generator().manual_seed(s) for s in (1, 1)]
    found = chosen.sample(head, half, (2, 8, 3), noise[0])
    expected = chosen.sample(lambda x, t, c: head(x, t, c).float(), CONTEXT, (2, 8, 3), noise[1])
    assert found.dtype == torch.float32
    assert set(seen) == {torch.float32}
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0: expected a whole number from 1 to 100,000"),
        ({"num_inference_steps": 101}, "between 1 and scheduler.num_train_timesteps=100"),
        ({"prediction_type": "noise"}, "expected one of: epsilon, sample, v_prediction"),
        ({"sampler": "Magic"}, "expected one of: DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler"),
    ],
)
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler("ddim", **changes)
