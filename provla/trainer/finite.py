"""Numbers that are not finite: noticed without stopping a GPU at every step, and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from provla.core.files import write_json

Agree = Callable[[Tensor], Tensor]  # which tensors are finite → which are on all ranks, where each sees a part of them


def not_finite(tensors: Mapping[str, Tensor], agree: Agree | None = None) -> list[str]:
    """The names of the tensors that hold NaN or infinity. Stops a GPU once."""
    held = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not held:
        return []
    found = [tensor.isfinite().all() for tensor in held.values()]
    flags = torch.stack([flag.to(found[0].device) for flag in found])
    flags = flags if agree is None else agree(flags)
    return [name for name, finite in zip(held, flags.tolist(), strict=True) if not finite]


class Gauge:
    """Sums of a training's loss and gradient norm since the last logged step, and the first step at which one was not
    finite.

    All of it stays on the device, in float64 where that has it, until `read` or `broken` ask for it, and always in the
    same place, where a graph of a step finds it.
    """

    def __init__(self, device: torch.device, sums: Sequence[float], scaled: bool) -> None:
        """sums: `read` of a gauge that this one goes on from. scaled: fp16, whose loss scaling sees to gradients that
        overflow.
        """
        self.sums = torch.tensor(sums, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self.bad = torch.zeros((), device=device)  # 1 from the first bad step on
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._scaled = scaled

    def add(self, step: int | Tensor, loss: Tensor, norm: Tensor) -> None:
        """A step's loss and the norm of its gradient; what is not finite is not summed. step: its number, which a graph
        has on the device.
        """
        found = torch.stack([loss.to(self.sums.dtype), norm.to(self.sums.dtype), torch.ones_like(self.sums[0])])
        finite = found.isfinite()
        self.sums += torch.where(finite.all(), found, 0.0)
        bad = ~(finite[0] if self._scaled else finite.all())
        self._first.copy_(torch.where(bad & (self.bad == 0), step, self._first))
        self.bad.copy_(torch.maximum(self.bad, bad.to(self.bad.dtype)))

    def broken(self) -> int | None:
        """The first bad step. Stops a GPU."""
        return int(self._first) if bool(self.bad) else None

    def forgive(self) -> None:
        """Forgets the bad step."""
        self.bad.zero_()

    def read(self) -> list[float]:
        """The sums of loss and gradient norm, and over how many steps. Stops a GPU."""
        found: list[float] = self.sums.tolist()
        return found

    def clear(self) -> None:
        """Starts a new sum."""
        self.sums.zero_()


def name_bad(weights: Mapping[str, Parameter], backward: Callable[[], Tensor], agree: Agree | None = None) -> str:
    """What is not finite at a step: a weight, the loss or a gradient. backward: the step once more up to its gradients;
    its loss.
    """
    if bad := not_finite({name: weight.detach() for name, weight in weights.items()}, agree):
        return f"the weight {_some(bad)}"
    loss = float(backward())
    if not math.isfinite(loss):
        return f"the loss ({loss})"
    bad = not_finite({name: weight.grad for name, weight in weights.items() if weight.grad is not None}, agree)
    return f"the gradient of {_some(bad)}" if bad else "the norm of all gradients"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and of {len(names) - 1} others"


def keep_batch(folder: Path, train: Any, seed: int, step: int, size: int, what: str) -> Path:
    """Writes which episodes and frames a step saw, and how to have its batch again. train: the `Sampler`. Returns the
    file.
    """
    rows = train.rows_at(seed, step, size)
    episodes = np.searchsorted(train.data.starts, rows, side="right") - 1
    frames = rows - train.data.starts[episodes]
    where = {"episodes": episodes.tolist(), "frames": frames.tolist(), "rows": rows.tolist()}
    path = folder / f"step_{step + 1:07d}.json"
    again = {"seed": seed, "step": step, "size": size}  # the arguments of `Sampler.step`
    write_json(
        path, {"step": step + 1, "not_finite": what, "dataset": train.data.source, "sampler.step": again} | where
    )
    return path
