"""What every fusion, head and scheduler costs: python benchmarks/arms.py

On the default policy, one part changed at a time: parameters of the part, FLOPs of a forward pass of the policy per
sample, milliseconds per training step of 64 and per sampled chunk. Rounds alternate between all arms, so that a noisy
machine slows them alike; medians. Writes benchmarks/arms.csv.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from turns import medians

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.files import csv_text, write_text
from provla.core.machine import reproducible
from provla.core.types import Spec, fake_batch, fake_observation
from provla.policy.matched import count_parameters
from provla.run.rehearsal import flops_per_sample

SPEC = Spec(
    ("corner2",), (64, 64), 4, 4, 16, 1, 8, tuple(f"Do task {i}" for i in range(5)), {"all": [0, 1, 2, 3]}, 10.0
)
BATCH, ROUNDS = 64, 15


def policy_of(*overrides: str) -> Any:
    node: Any = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    torch.manual_seed(0)
    return build(node["policy"], "policy", nn.Module, spec=SPEC, device=torch.device("cpu"))


def stepper(module: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One training step: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def arms() -> list[dict[str, Any]]:
    options = [
        (group, file.stem)
        for group in ("fusion", "head", "scheduler")
        for file in sorted((ROOT / "conf" / group).glob("*.yaml"))
    ]
    policies = {f"{group}={option}": policy_of(f"{group}={option}") for group, option in options}
    policies["head=dit, tokens of fusion=perceiver"] = policy_of(
        "head=dit", "head.conditioning=tokens", "fusion=perceiver"
    )
    batch, one = fake_batch(SPEC, BATCH), fake_observation(SPEC, 1)
    train, act = {}, {}
    for name, policy in policies.items():
        policy.fit_normalization(torch.randn(50, 4), torch.rand(50, 4) * 2 - 1)
        train[name] = stepper(policy, lambda policy=policy: policy.loss(batch)["loss"])
        act[name] = lambda policy=policy: policy.act(one, torch.Generator().manual_seed(0))
    training, sampling = medians(train, ROUNDS), medians(act, ROUNDS)
    rows = []
    for name, policy in policies.items():
        group = name.split("=")[0]
        rows.append(
            {
                "arm": name,
                "part_parameters": count_parameters(getattr(policy, group))["total"],
                "policy_parameters": count_parameters(policy)["total"],
                "mflops_per_sample": round(flops_per_sample(policy, SPEC, torch.device("cpu")) / 1e6, 1),
                "ms_per_training_step": round(training[name], 1),
                "ms_per_chunk": round(sampling[name], 1),
            }
        )
    return rows


def main() -> None:
    os.environ.setdefault("PROVLA_ROOT", str(ROOT))
    as_in_a_run = reproducible(2, torch.device("cpu"), deterministic=False)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), as_in_a_run:
        rows = arms()
    write_text(ROOT / "benchmarks" / "arms.csv", csv_text(rows))
    print(
        "| arm | parameters of the arm | MFLOPs per sample | ms per training step | ms per chunk "
        "|\n|---|---|---|---|---|"
    )
    for row in rows:
        size = f"{row['part_parameters'] / 1e6:.2f} M" if row["part_parameters"] else ""
        costs = (row.get(key, "") for key in ("mflops_per_sample", "ms_per_training_step", "ms_per_chunk"))
        print(f"| {row['arm']} | {size} | {' | '.join(map(str, costs))} |")


if __name__ == "__main__":
    main()
