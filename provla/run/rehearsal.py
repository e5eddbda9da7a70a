"""A policy's first step, before anything slow begins: what somebody else's library would say of it after an hour, it
says now.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from provla.backbone.later import standing_in
from provla.backbone.tower import towers
from provla.core.build import first_line
from provla.core.types import Spec, fake_batch, fake_observation


def rehearse_policy(policy: Any, spec: Spec, device: torch.device) -> int:
    """Takes the objective and samples a chunk on made-up data; returns `flops_per_sample`. `ValueError` names the part
    that fails. Towers that rest are not woken for it: their weights were read when they were fetched, and what they do
    to pictures and sentences shows when the first is encoded, before the training.
    """
    entered = ["policy"]
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        for name, part in policy.named_children()
    ]
    try:
        if any(tower.resting for _, tower in towers(policy)):
            with suppress(Exception), standing_in():  # what goes wrong there is looked at with the weights
                return _first_step(policy, spec, device)
        return _first_step(policy, spec, device)
    except Exception as error:  # whatever library a part is made of
        raise broken(entered[-1], "on one made-up sample", error) from error
    finally:
        for hook in hooks:
            hook.remove()


def broken(part: str, where: str, error: Exception) -> ValueError:
    return ValueError(f"{part} does not work as configured, {where}: {first_line(error)}; look at the values of {part}")


def _first_step(policy: Any, spec: Spec, device: torch.device) -> int:
    flops = flops_per_sample(policy, spec, device)  # first: a sentence that was read once is not read again
    policy.act(fake_observation(spec, 1).to(device), torch.Generator().manual_seed(0))
    return flops


def flops_per_sample(policy: nn.Module, spec: Spec, device: torch.device) -> int:
    """Floating-point operations of the objective's forward pass on one sample, as torch counts them (a multiply-add is
    two).
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    policy.eval()
    with counter:  # under no_grad its hooks fail on a learned token
        policy.loss(fake_batch(spec, 1).to(device))  # type: ignore[operator]
    return int(counter.get_total_flops())
