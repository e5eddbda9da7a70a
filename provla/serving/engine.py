"""Forward passes for several clients at once, one after the other, in the thread that owns the policy."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from provla.core.build import first_line
from provla.core.cameras import Looks
from provla.core.types import Spec, fake_observation
from provla.env.rollout import act
from provla.execution import Array
from provla.serving.observed import Observed
from provla.serving.wire import Refused


class Answer(NamedTuple):
    """A chunk (H,A), how long it waited for its turn and how long the forward pass took [s], and whose it was too."""

    chunk: NDArray[np.float32]
    waited: float
    took: float
    together: int


@dataclass
class Asked:
    """One client's look; a `rollout.Looking`."""

    seen: Observed
    generator: torch.Generator
    answer: Future[Answer] = field(default_factory=Future)
    at: float = field(default_factory=time.perf_counter)

    @property
    def images(self) -> Looks:
        return self.seen.images

    @property
    def state(self) -> Array:
        return self.seen.state

    @property
    def past(self) -> list[Array]:
        return list(self.seen.past)

    @property
    def instruction(self) -> str:
        return self.seen.instruction

    def anchor(self) -> tuple[Array, Array] | None:
        return self.seen.held


class Engine:
    """Answers whoever has asked, up to `most` in one forward pass: who asks while one runs is in the next.

    Everybody's noise comes from a generator of their own, so an answer does not depend on who else asks, but for
    rounding: sums over rows of another number are rounded otherwise (with `most=1` not even that). Chunks that continue
    others are sampled by themselves, because a sampler goes another way with an anchor, be its weight 0. gather:
    seconds that a pass waits for those who are there and have not asked yet: else robots that were answered together
    would never be again, and a pass for eight takes little longer than one for four. present: how many are there.
    """

    def __init__(
        self,
        policy: Any,
        spec: Spec,
        device: torch.device,
        most: int,
        gather: float = 0.0,
        present: Callable[[], int] = lambda: 1,
    ) -> None:
        self._policy, self._spec, self._device, self._most = policy.eval(), spec, device, most
        self._gather, self.present = gather, present
        self._shown = most if getattr(policy, "compiled", False) else 0
        self._asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._waiting: deque[Asked] = deque()
        self._ended = False

    def warm(self) -> None:
        """What the first clients would wait for: kernels are chosen and sentences read before anybody asks."""
        for size in {1, self._most}:
            observation = fake_observation(self._spec, size).to(self._device)
            self._policy.act(observation, [torch.Generator() for _ in range(size)])

    def ask(self, seen: Observed, generator: torch.Generator) -> Future[Answer]:
        """From any thread. The future fails with `Refused` where the policy cannot answer."""
        asked = Asked(seen, generator)
        self._asked.put(asked)
        if self._ended:
            self._refuse_all()
        return asked.answer

    def stop(self) -> None:
        """From any thread: `run` ends after the pass that it is in."""
        self._asked.put(None)

    def run(self) -> None:
        """Until `stop`, or a signal."""
        try:
            while batch := self._next():
                self._answer(batch)
        finally:
            self._ended = True
            for one in self._waiting:
                _refuse(one)
            self._refuse_all()

    def _next(self) -> list[Asked]:
        """Those whose turn it is; none at the end."""
        until = None if not self._waiting else time.perf_counter()
        while until is None or not self._asked.empty() or len(self._waiting) < min(self._most, self.present()):
            try:
                one = self._asked.get(timeout=None if until is None else max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if one is None:
                return []
            self._waiting.append(one)
            until = until or time.perf_counter() + self._gather
        alike = [one for one in self._waiting if (one.anchor() is None) == (self._waiting[0].anchor() is None)]
        batch = alike[: self._most]
        self._waiting = deque(one for one in self._waiting if not any(one is other for other in batch))
        # Who has gone in the meantime is not answered.
        return [one for one in batch if one.answer.set_running_or_notify_cancel()] or self._next()

    def _answer(self, batch: Sequence[Asked]) -> None:
        states = [one.generator.get_state() for one in batch]
        begun = time.perf_counter()
        try:
            chunks = act(self._policy, batch, self._spec, self._device, self._shown)
        except Exception as error:  # whatever library a part is made of
            if len(batch) == 1:
                batch[0].answer.set_exception(Refused(f"the policy cannot answer this: {first_line(error)}"))
                return
            # Somebody's observation is at fault, and only theirs fails.
            for one, state in zip(batch, states, strict=True):
                one.generator.set_state(state)
                self._answer([one])
            return
        took = time.perf_counter() - begun
        for one, chunk in zip(batch, chunks, strict=True):
            if np.isfinite(chunk).all():
                one.answer.set_result(Answer(chunk, begun - one.at, took, len(batch)))
            else:
                one.answer.set_exception(Refused("the policy's actions are not finite for this observation"))

    def _refuse_all(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (one := self._asked.get_nowait()) is not None:
                    _refuse(one)


def _refuse(asked: Asked) -> None:
    if asked.answer.set_running_or_notify_cancel():
        asked.answer.set_exception(Refused("the server ends"))
