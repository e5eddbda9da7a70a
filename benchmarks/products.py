"""Whose float32 products a run computes with: python benchmarks/products.py

A product of two matrices of 2048×2048 as a run multiplies them, against MKL's, with billions of operations a second;
and a training step of 64 with head=dit as a run takes it (oneDNN's products, attention that keeps its weights), against
torch by itself (MKL's products, flash attention), and against oneDNN's products under flash attention. Two threads,
deterministic as in a run. Results are equal to 1e-4, or nothing is measured; nor is it where a run stays with MKL's
products (see `provla.core.machine`). Prints lines of JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from arms import BATCH, SPEC, policy_of, stepper
from hydra import initialize_config_dir
from turns import seconds, told

from provla.command.entry import ROOT
from provla.core.machine import machine, reproducible
from provla.core.types import fake_batch

SIZE, ROUNDS = 2048, 12
MKL, ONEDNN = "ieee", "bf16"  # as torch calls them


def by[T](products: str, call: Callable[[], T]) -> Callable[[], T]:
    """The call with these products, and with flash attention."""

    def called() -> T:
        kept: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before, flash = kept.fp32_precision, torch.backends.cuda.flash_sdp_enabled()
        kept.fp32_precision = products
        torch.backends.cuda.enable_flash_sdp(True)
        try:
            return call()
        finally:
            kept.fp32_precision = before
            torch.backends.cuda.enable_flash_sdp(flash)

    return called


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any]) -> list[tuple[float, float]]:
    return [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS + 1)][1:]  # the first warms up


def product() -> None:
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)

    def ours() -> torch.Tensor:
        return a @ b

    torch.testing.assert_close(ours(), by(MKL, ours)(), atol=1e-3, rtol=1e-4)
    taken = pairs(ours, by(MKL, ours))
    mine, theirs = (round(2 * SIZE**3 / median(side) / 1e9) for side in zip(*taken, strict=True))
    told("float32 product", "MKL's", taken, gflops={"ours": mine, "theirs": theirs})


def dit() -> None:
    policy, batch = policy_of("head=dit"), fake_batch(SPEC, BATCH)
    policy.fit_normalization(torch.randn(50, 4), torch.rand(50, 4) * 2 - 1)

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        found: torch.Tensor = policy.loss(batch)["loss"]
        return found

    step = stepper(policy, loss)
    for products, against in ((MKL, "torch by itself: MKL, flash attention"), (ONEDNN, "oneDNN, flash attention")):
        torch.testing.assert_close(loss(), by(products, loss)(), atol=1e-4, rtol=1e-4)
        told("training step, head=dit", against, pairs(step, by(products, step)))


def main() -> None:
    os.environ.setdefault("PROVLA_ROOT", str(ROOT))
    cpu = torch.device("cpu")
    if machine(cpu)["products"] != "oneDNN":
        sys.exit(f"a run stays with MKL's products on this CPU ({machine(cpu)['cpu']}): there is nothing to compare")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), reproducible(2, cpu, deterministic=False):
        product()
        dit()


if __name__ == "__main__":
    main()
