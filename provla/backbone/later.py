"""Weights that come when somebody asks for them, and what answers in their place until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_putting_off, _standing_in = ContextVar("putting_off", default=False), ContextVar("standing_in", default=False)


@contextmanager
def _inside(switch: ContextVar[bool], value: bool) -> Iterator[None]:
    token = switch.set(value)
    try:
        yield
    finally:
        switch.reset(token)


def put_off(may: bool) -> AbstractContextManager[None]:
    """may: towers that are made inside rest until they are asked; of nothing that changes their weights."""
    return _inside(_putting_off, may)


def putting_off() -> bool:
    return _putting_off.get()


def standing_in() -> AbstractContextManager[None]:
    """Inside, towers that rest are not woken: zeros of the right shapes stand for what they would say."""
    return _inside(_standing_in, True)


def is_standing_in() -> bool:
    return _standing_in.get()


class StandIn:
    """A model without weights. It goes through all of the model's operations, which are counted as they would be, by
    torch's tensors that have a shape and no numbers; it says zeros.
    """

    def __init__(self, outline: Callable[[torch.device], Any], device: torch.device) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode  # transformers has imported it

        self._mode, self._device = FakeTensorMode(), device
        with self._mode:
            self.model = outline(device).requires_grad_(False).eval()
        self.dtype = self.model.dtype

    def __call__(self, **inputs: Any) -> Any:
        with self._mode:
            given = {k: self._mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            found = self.model(**given)
        blank = {
            key: torch.zeros(value.shape, dtype=value.dtype, device=self._device)
            for key, value in found.items()
            if isinstance(value, Tensor)
        }
        return type(found)(**blank)
