"""Equal computations give equal bits, whatever number of threads a process was started with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import compose
from torch import Tensor

from provla.core.build import build
from provla.core.machine import _multiplies_faster, environment, machine, reproducible
from provla.core.types import Batch, Spec, fake_batch
from provla.trainer.fit import seed_everything

CPU = torch.device("cpu")
# As the default data set has it, three sentences being enough: their gradients are sums over the samples that share
# one.
SPEC = Spec(
    ("corner2",), (64, 64), 4, 4, 16, 1, 8, ("Open the drawer", "Close the drawer", "Press the button"), {}, 80.0
)


def draws(batch: Batch) -> Batch:
    """The batch with fixed draws of a training step."""
    g = torch.Generator().manual_seed(1)
    n = len(batch)
    return replace(
        batch,
        noise=torch.randn(batch.actions.shape, generator=g),
        time=torch.rand(n, generator=g),
        crop=torch.rand(n, 2, generator=g),
    )


def gradients(policy: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    policy.zero_grad()
    seed_everything(0, 1)
    policy(batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fusion", ["concat_mlp", "perceiver"])
def test_gradients_repeat_with_two_threads(fusion: str) -> None:
    """Without torch's deterministic algorithms too: no operation of provla's own leaves the order of a sum to
    chance.
    """
    torch.manual_seed(0)
    node = compose(f"fusion={fusion}", "vision.channels=[8,16]", "head.channels=[16,32]")["policy"]
    policy = build(node, "policy", torch.nn.Module, spec=SPEC, device=CPU).train()
    batch = draws(fake_batch(SPEC, 64))
    torch.set_num_threads(2)
    try:
        first = gradients(policy, batch)
        for _ in range(4):
            again = gradients(policy, batch)
            assert [name for name in first if not torch.equal(first[name], again[name])] == []
    finally:
        torch.set_num_threads(1)
    with reproducible(2, CPU, deterministic=False):
        first, again = gradients(policy, batch), gradients(policy, batch)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


def test_the_number_of_threads_is_pinned_and_given_back() -> None:
    assert torch.get_num_threads() == 1
    with reproducible(2, CPU, deterministic=False):
        assert torch.get_num_threads() == 2
        assert machine(CPU)["threads"] == 2
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with reproducible(1, CPU, deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_matrices_are_multiplied_in_float32_by_whichever_library_is_faster() -> None:
    g, switch = torch.Generator().manual_seed(0), torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    for rows, width, columns in ((1, 768, 768), (2, 3, 5), (392, 768, 3072), (64, 256, 1)):
        a, b = torch.randn(rows, width, generator=g), torch.randn(width, columns, generator=g)
        true, outside = a.double() @ b.double(), a @ b
        with reproducible(2, CPU, deterministic=False):
            inside = a @ b
            assert (switch.fp32_precision == "bf16") == (machine(CPU)["products"] == "oneDNN")
            assert torch.backends.cuda.flash_sdp_enabled() != (machine(CPU)["products"] == "oneDNN")
        size = true.abs().max()
        assert (inside - true).abs().max() <= max(2e-6 * size, 4 * (outside - true).abs().max())
    assert switch.fp32_precision == before
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(
    ("cpu", "rounds", "taken"), [("AMD", False, True), ("AMD", True, False), ("Intel", False, False)]
)
def test_onednn_is_asked_where_mkl_is_slow_and_nothing_is_rounded(
    cpu: str, rounds: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding of the factors is what oneDNN does with AMX, where torch's switch is taken at its word."""
    product = Tensor.__matmul__
    monkeypatch.setattr("provla.core.machine._cpu", lambda: cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    if rounds:
        monkeypatch.setattr(
            Tensor,
            "__matmul__",
            lambda a, b: product(a, b) if a.dtype == torch.double else product(a.bfloat16(), b.bfloat16()).float(),
        )
    assert _multiplies_faster.__wrapped__() is taken


def test_a_result_says_what_it_was_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment(CPU)
    assert set(found["machine"]) == {"cpu", "instruction_set", "products", "threads", "architecture"}
    assert all(found["machine"].values())
    assert found["peak_memory_mb"] > 100
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"]["torch"]
    assert (found["uncommitted"] is None) or found["commit"].endswith("-dirty")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")  # by which MKL rounds otherwise
    assert machine(CPU) == {**found["machine"], "MKL_CBWR": "COMPATIBLE"}


def test_a_process_names_the_code_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    first = environment(CPU)
    monkeypatch.setattr("provla.core.machine.commit", lambda: {"commit": "another", "uncommitted": None})
    second = environment(CPU)
    assert (second["commit"], second["versions"]) == (first["commit"], first["versions"])
