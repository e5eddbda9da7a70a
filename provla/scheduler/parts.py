"""What schedulers share: masked errors, draws, and steps in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from provla.core.interfaces import Generators, Head
from provla.core.types import Anchor, Tokens


def masked_mean(error: Tensor, is_pad: Tensor) -> Tensor:
    """Mean of error (B,H,A) over the steps that are not padding; a scalar."""
    valid = (~is_pad).unsqueeze(-1).to(error.dtype)
    return (error * valid).sum() / (valid.sum() * error.shape[-1]).clamp(min=1)


def squared(prediction: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
    """Mean squared error over the unpadded steps, in float32."""
    return masked_mean((prediction.float() - target.float()).square(), is_pad)


def draw(actions: Tensor, noise: Tensor | None, time: Tensor | None) -> tuple[Tensor, Tensor]:
    """The noise (B,H,A) and time (B,) of a training step: those given, or new ones."""
    noise = torch.randn_like(actions) if noise is None else noise
    return noise, torch.rand(len(actions), device=actions.device) if time is None else time


def first_noise(context: Tokens, shape: tuple[int, int, int], generator: Generators) -> Tensor:
    """(B,H,A) float32, drawn where its generator lies, or row by row where B of them do: diffusers' `randn_tensor`,
    whose import takes a second.
    """
    device = context.features.device
    if isinstance(generator, list):
        rows = [
            torch.randn((1, *shape[1:]), generator=one, device=one.device, dtype=torch.float32) for one in generator
        ]
        return torch.cat(rows).to(device)
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where, dtype=torch.float32).to(device)


def pulled(clean: Tensor, anchor: Anchor | None) -> Tensor:
    """A predicted clean chunk (B,H,A), pulled to the anchor where there is one."""
    return clean if anchor is None else anchor.pull(clean)


def in_float32(head: Head) -> Head:
    """The head with its answers in float32: samplers draw and step in float32, whatever a head computes in."""
    return lambda actions, time, context: head(actions, time, context).float()
