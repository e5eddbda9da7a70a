"""How long a robot would wait."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from provla.core.types import Spec
from provla.run import judging
from provla.run.judging import CALLS, FEW, LEAST, WARM, latency  # as they are for users

CPU = torch.device("cpu")


class Clock:
    """A policy whose calls take what the list says, by a clock that only it moves."""

    def __init__(self, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.now, self.calls, self.settled = seconds, 0.0, 0, 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(judging, "settle", self.settle)

    def settle(self, device: Any) -> None:
        self.settled += 1

    def eval(self) -> None: ...

    def act(self, observation: Any, generator: Any) -> torch.Tensor:
        assert len(observation) == 1
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        return torch.zeros(1)


def test_calls_that_warm_up_count_nothing(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> None:
    rest = [0.001 * (1 + n) for n in range(CALLS)]  # 1 to 100 ms
    policy = Clock([9.0] * WARM + rest, monkeypatch)
    monkeypatch.setattr(judging, "CALLS", CALLS)
    monkeypatch.setattr(judging, "LONG", 100.0)
    found = latency(policy, spec, CPU)
    assert policy.calls == policy.settled == WARM + CALLS
    assert found.median == pytest.approx(50.5)
    assert found.p99 == pytest.approx(99.01)


def test_slow_ones_are_called_less_often(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> None:
    policy = Clock([2.0], monkeypatch)
    monkeypatch.setattr(judging, "CALLS", CALLS)
    found = latency(policy, spec, CPU)
    assert policy.calls == WARM + FEW
    assert found == (pytest.approx(2000), pytest.approx(2000))


def test_a_short_training_is_no_reason_for_a_long_look(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> None:
    monkeypatch.setattr(judging, "CALLS", CALLS)
    policy = Clock([0.025], monkeypatch)
    latency(policy, spec, CPU, trained=2.0)
    assert policy.calls == WARM + LEAST
    for trained in (60.0, 1e4):
        policy = Clock([0.025], monkeypatch)
        latency(policy, spec, CPU, trained)
        assert policy.calls == WARM + CALLS
