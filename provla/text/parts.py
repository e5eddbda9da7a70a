"""What text encoders share: sentences that were brought to the device already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

KEPT = 1024  # lists of sentences


class Spelled[T]:
    """What an encoder makes of lists of sentences before its weights read them, on their device; made once, for a step
    that makes it anew would wait for the host.
    """

    def __init__(self, make: Callable[[list[str], torch.device], T]) -> None:
        self._make = make
        self._known: dict[tuple[torch.device, tuple[str, ...]], T] = {}

    def __call__(self, sentences: Sequence[str], device: torch.device) -> T:
        key = device, tuple(sentences)
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known = {}
            self._known[key] = self._make(list(sentences), device)
        return self._known[key]
