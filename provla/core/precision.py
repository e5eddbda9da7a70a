"""The precision of deployment: what a policy's own weights are stored in, without autocast, in validation, episodes,
`evaluate` and latency alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from provla.core.device import seed_torch
from provla.core.interfaces import Generators
from provla.core.types import Anchor, Observation

Act = Callable[[Any, Observation, Generators, Anchor | None], Tensor]


def deployed(act: Act) -> Act:
    """`act` without gradients and outside any autocast, so that a policy acts the same whoever asks it."""

    @wraps(act)
    def asked(
        self: Any, observation: Observation, generator: Generators = None, anchor: Anchor | None = None
    ) -> Tensor:
        with torch.no_grad(), torch.autocast(observation.state.device.type, enabled=False):
            return act(self, observation, generator, anchor)

    return asked


@contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """The precision of deployment, without gradients; what draws inside a module draws by `seed`, and torch's
    generators stay as they were.
    """
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        seed_torch(seed, device)
        yield


def describe_precision(policy: nn.Module) -> str:
    """`float32`, or what else the weights of which parts are stored in: `float32; bfloat16 weights in vision, text`."""
    found: dict[str, list[str]] = {}
    for name, part in policy.named_children():
        for dtype in sorted({str(p.dtype).removeprefix("torch.") for p in part.parameters() if p.is_floating_point()}):
            found.setdefault(dtype, []).append(name)
    others = [f"{dtype} weights in {', '.join(parts)}" for dtype, parts in found.items() if dtype != "float32"]
    return "; ".join(["float32", *others])
