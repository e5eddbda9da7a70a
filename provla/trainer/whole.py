"""The weights of a training with their optimiser and their average, whole on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from provla.core.ranks import Ranks
from provla.policy.weights import count_bytes, load_state, own_state
from provla.trainer.fit import load_optimizer, make_optimizer, optimizer_tensors

if TYPE_CHECKING:
    from provla.trainer.options import Trainer

Tensors = dict[str, dict[str, Tensor]]  # of a checkpoint: file stem → its tensors


class Whole:
    """What a loop knows of where its weights lie.

    policy: whole, on rank 0 at least; what is validated, stored and judged. trained: the module that learns; model: the
    same, as accelerate prepares it. named: what trains, as the optimiser sees it; average: of it, and of the same
    shapes.
    """

    def __init__(self, policy: Any, options: Trainer, accelerator: Any, ranks: Ranks, device: torch.device) -> None:
        self.policy, self.options, self.device = policy, options, device
        self.accelerator, self.ranks = accelerator, ranks
        self.trained, self.named = self._place()
        if not self.named:
            raise ValueError("no weight of this policy trains")
        optimizer = make_optimizer(self.named, options.lr, options.betas, options.weight_decay)
        self.model, self.optimizer = self._prepare(optimizer)
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if options.ema_decay else {}

    def _place(self) -> tuple[nn.Module, dict[str, Parameter]]:
        return self.policy, trainable(self.policy)

    def _prepare(self, optimizer: Any) -> tuple[Any, Any]:
        model, prepared = self.accelerator.prepare(self.trained, optimizer)
        return model, prepared

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Around the passes of one part of a step: the gradients go around once, with the last."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def take(self) -> None:
        """A step's gradients are there."""

    def clip(self) -> Tensor:
        """Clips them; the norm that they had."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self.named.values(), self.options.grad_clip)
        return norm

    def agreed(self, flags: Tensor) -> Tensor:
        """Which of the tensors of `named`'s names are finite; here every rank sees all of each."""
        return flags

    def same(self) -> None:
        """`ValueError` where the ranks' weights have come apart."""
        if self.ranks.size > 1:
            weights = [p.detach().sum(dtype=torch.float64) for p in self.named.values()]
            self.ranks.check_equal(float(torch.stack(weights).sum()), "the sums of the weights")

    def collect(self, step: int) -> None:
        """All ranks come here before rank 0 validates or stores the weights of a step."""

    def tensors(self) -> Tensors:
        """Rank 0's, for a checkpoint."""
        optimizer = optimizer_tensors(self.optimizer, self.named)
        return {"weights": own_state(self.policy), "average": self.average, "optimizer": optimizer}

    def size(self) -> int:
        """Bytes of a checkpoint, as rank 0 knows before there is one."""
        return count_bytes(own_state(self.policy), *[trainable(self.policy)] * (2 + bool(self.average)))

    def load(self, tensors: Mapping[str, dict[str, Tensor]], source: Path) -> None:
        """`tensors` of a checkpoint. source: for messages."""
        self._put(tensors, source)
        load_optimizer(self.optimizer, self.named, tensors["optimizer"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In this block the policy has the averaged weights."""
        swap(self.policy, self.average)
        try:
            yield
        finally:
            swap(self.policy, self.average)

    def finish(self, step: int) -> None:
        """Leaves the averaged weights in the policy."""
        swap(self.policy, self.average)

    def finish_as(self, tensors: Mapping[str, dict[str, Tensor]], source: Path) -> None:
        """Leaves those of a checkpoint there; on rank 0."""
        self._put(tensors, source)
        swap(self.policy, self.average)

    def _put(self, tensors: Mapping[str, dict[str, Tensor]], source: Path) -> None:
        load_state(self.policy, tensors["weights"], source)
        self.average.update({name: tensors["average"][name].to(self.device) for name in self.average})


def trainable(policy: nn.Module) -> dict[str, Parameter]:
    """What of a policy trains, by name."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def swap(policy: nn.Module, average: dict[str, Tensor]) -> None:
    """Exchanges weights with their average."""
    named = dict(policy.named_parameters()) if average else {}
    for name, other in average.items():
        weights = named[name].data
        named[name].data, average[name] = other, weights
