"""Which GPU a run takes, and what it says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from provla.core.device import send, settle
from provla.core.machine import environment, find_device, forget_peak_memory
from provla.core.types import fake_batch
from provla.jobs.sweep import share
from provla.trainer.fit import make_accelerator

CPU = torch.device("cpu")


class Cuda:
    """Two GPUs that are not there. told: what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, Any]] = []
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
        for name in ("set_device", "synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, self._note(name))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", str)

    def _note(self, name: str) -> Any:
        def note(device: Any) -> int:
            self.told.append((name, str(device)))
            return 2**20 * (3 if str(device) == "cuda:1" else 5)

        return note


def test_a_job_of_a_sweep_trains_on_the_gpu_of_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    assert [share(number, "auto") for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    device = find_device(share(1, "auto"))
    assert str(device) == "cuda:1"
    assert cuda.told == [("set_device", "cuda:1")]
    cuda.told.clear()
    make_accelerator("none", device)  # whatever has become the present one since
    assert ("set_device", "cuda:1") in cuda.told


def test_a_gpu_without_a_number_is_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    assert str(find_device("cuda")) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(find_device("auto")) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == CPU


def test_the_peak_is_that_of_the_runs_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, device = Cuda(monkeypatch), torch.device("cuda:1")
    forget_peak_memory(device)
    settle(device)
    assert cuda.told == [("reset_peak_memory_stats", "cuda:1"), ("synchronize", "cuda:1")]
    assert environment(device)["peak_gpu_memory_mb"] == 3
    cuda.told.clear()
    forget_peak_memory(CPU)
    settle(CPU)
    assert "peak_gpu_memory_mb" not in environment(CPU)
    assert cuda.told == []


def test_what_goes_to_a_gpu_goes_by_pinned_memory_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, spec: Any
) -> None:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: told.append(("pin", self.dtype)) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: told.append((str(device), how)) or self)
    send(torch.ones(2), torch.device("cuda:0"))
    assert told == [("pin", torch.float32), ("cuda:0", {"non_blocking": True})]
    told.clear()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    send(torch.ones(2), torch.device("cuda:0"))
    assert told == [("cuda:0", {"non_blocking": True})]
    told.clear()
    send(torch.ones(2), CPU)
    assert told == [("cpu", {})]
    told.clear()
    fake_batch(spec, 2).to(torch.device("cuda:0"))
    assert set(map(str, told)) == {"('cuda:0', {'non_blocking': True})"}
