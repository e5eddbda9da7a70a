"""How chunks become the robot's actions: when the policy looks again, and what is done of what it predicted.

Chunk: each chunk for `n_action_steps`.
Ensemble: a new chunk at every look, averaged with those of before.
RealTime: a new chunk continues what is still being executed.

`delay`: a chunk arrives that many control steps after its picture, as on a robot that goes on while its policy
computes. Until then the chunk before is executed; of the new one, what was meant for those steps is left out. A robot
does not move before its first chunk. "measured": as many as the milliseconds per chunk take, on the device that judges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from provla.core.checks import Depth, Fraction, Natural, NonNegative
from provla.core.types import Spec

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Execution(ABC):
    """smoothing: share of the action before in the one that is executed, an exponential low pass; 0: none."""

    interval: ClassVar[str] = "n_action_steps"  # the key that says how often the policy looks
    delay: Natural | Literal["measured"] = 0
    smoothing: Fraction = 0.0

    @abstractmethod
    def stride(self, spec: Spec) -> int:
        """Control steps from one look to the next."""

    def settled(self, spec: Spec, milliseconds: float) -> Self:
        """With its delay in control steps. milliseconds: that a chunk takes."""
        if self.delay != "measured":
            return self
        return replace(self, delay=int(np.ceil(milliseconds * spec.fps / 1000)))

    def check(self, spec: Spec) -> None:
        """`ValueError` where a chunk is too short for what is asked of it."""
        if self.delay == "measured":
            return
        every, spare = self.stride(spec), spec.horizon - self.stride(spec)
        if self.delay > min(every, spare):
            why, way = "a chunk would arrive after the next look", f"look less often ({self.interval})"
            if self.delay > spare:
                why = f"a chunk of horizon={spec.horizon} is used up before the next arrives"
                way = f"look more often ({self.interval}), or predict more (horizon)"
            raise ValueError(
                f"execution.delay={self.delay}: with a look every {every} control steps, {why}; valid: 0 to "
                f"{min(every, spare)}, or {way}"
            )

    @abstractmethod
    def begin(self, spec: Spec) -> Track: ...


@dataclass
class Track(ABC):
    """One episode's chunks. It is asked for an anchor before each look, and then given the chunk."""

    how: Any
    spec: Spec
    last: Array | None = None

    def anchor(self) -> tuple[Array, Array] | None:
        """What the next chunk is to continue (see `types.Anchor`): actions (H,A) and weight (H,); None: nothing."""
        return None

    def take(self, chunk: Array) -> Array:
        """chunk (H,A), of what is seen now → actions (n,A) to execute until the next look, in the robot's units."""
        actions = self.plan(chunk)
        if self.how.smoothing:
            actions = np.stack([self._smooth(action) for action in actions])
        return actions

    def _smooth(self, action: Array) -> Array:
        share = self.how.smoothing
        self.last = action if self.last is None else share * self.last + (1 - share) * action
        return self.last

    @abstractmethod
    def plan(self, chunk: Array) -> Array: ...


@dataclass
class _One(Track):
    """One chunk after the other. rest: of the chunk before, from now on."""

    rest: Array | None = None

    def plan(self, chunk: Array) -> Array:
        n = self.spec.n_action_steps
        late = 0 if self.rest is None else self.how.delay
        actions = chunk[:n] if self.rest is None else np.concatenate([self.rest[:late], chunk[late:n]])
        self.rest = chunk[n:]
        return actions


@dataclass(frozen=True, kw_only=True)
class Chunk(Execution):
    """`execution=chunk`: `n_action_steps` of each, then the policy looks again (Chi et al. 2023, arXiv:2303.04137)."""

    def stride(self, spec: Spec) -> int:
        return spec.n_action_steps

    def begin(self, spec: Spec) -> Track:
        return _One(self, spec)


def continued(rest: Array, delay: int, horizon: int) -> tuple[Array, Array]:
    """What a chunk is to continue (see `types.Anchor`): actions (H,A) and weight (H,). rest: (n,A), n ≥ 1, of the chunk
    before, from now on. delay: control steps until the new chunk arrives.
    """
    kept, place = len(rest), np.arange(horizon)
    c = (kept - place) / (kept - delay + 1)  # from almost 1, where the new chunk takes over, to 0
    weight = np.where(place < delay, 1.0, np.where(place < kept, c * np.expm1(c) / np.expm1(1), 0.0))
    actions = np.concatenate([rest, np.repeat(rest[-1:], horizon - kept, 0)])
    return actions.astype(np.float32), weight.astype(np.float32)


@dataclass
class _Anchored(_One):
    def anchor(self) -> tuple[Array, Array] | None:
        if self.rest is None or not len(self.rest):
            return None
        return continued(self.rest, self.how.delay, self.spec.horizon)


@dataclass(frozen=True, kw_only=True)
class RealTime(Chunk):
    """`execution=rtc`: real-time chunking (Black et al. 2025, arXiv:2506.07339). What will be executed before a chunk
    arrives is fixed, and what else the chunk before says of the same steps counts with a weight that decays (their
    equation 5).

    In each step of the sampler the predicted clean chunk is brought that near to the chunk before; the paper corrects
    the velocity by a gradient through the network (ΠGDM) instead, which costs a backward pass a step. So diffusion,
    flow and regressions are served alike.
    """

    def begin(self, spec: Spec) -> Track:
        return _Anchored(self, spec)


@dataclass
class _Average(Track):
    """now: control steps so far. chunks: (when it was looked at, chunk) of those that reach beyond now."""

    now: int = 0
    chunks: list[tuple[int, Array]] = field(default_factory=list)

    def plan(self, chunk: Array) -> Array:
        h, every, late = self.spec.horizon, self.how.every, self.how.delay
        self.chunks = [(at, old) for at, old in self.chunks if at + h > self.now] + [(self.now, chunk)]
        actions = []
        for t in range(self.now, self.now + every):
            told = [old[t - at] for at, old in self.chunks if (at == 0 or at + late <= t) and t < at + h]
            weight = np.exp(-self.how.decay * np.arange(len(told)))  # the oldest first
            actions.append((np.stack(told) * (weight / weight.sum())[:, None]).sum(0))
        self.now += every
        return np.stack(actions).astype(chunk.dtype)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Execution):
    """`execution=ensemble`: temporal ensembling (Zhao et al. 2023, arXiv:2304.13705). A look every `every` control
    steps; what is executed is the mean of all that was predicted for a step, exp(−decay · i) the weight of the i-th
    oldest prediction.
    """

    interval: ClassVar[str] = "execution.every"
    every: Depth = 1
    decay: NonNegative = 0.01

    def stride(self, spec: Spec) -> int:
        return self.every

    def check(self, spec: Spec) -> None:
        if spec.horizon <= self.every:
            raise ValueError(
                f"execution.every={self.every} with horizon={spec.horizon}: no two chunks speak of the same step, so "
                f"there is nothing to average; valid: 1 to {spec.horizon - 1}"
                if spec.horizon > 1
                else "execution=ensemble with horizon=1: a chunk of one action overlaps with no other, so there is "
                "nothing to average; use execution=chunk, or a longer horizon"
            )
        super().check(spec)

    def begin(self, spec: Spec) -> Track:
        return _Average(self, spec)
