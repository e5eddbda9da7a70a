"""A default training step by how long torch's threads wait awake for each other: python benchmarks/waits.py

One training alone, against threads that sleep after a thousand turns; and two trainings on the same two cores, against
threads that wait awake whoever else wants them. A process each, as a run has it; their losses are equal, or nothing is
told. Prints lines of JSON, of seconds a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

import torch
from arms import BATCH, SPEC, policy_of, stepper
from hydra import initialize_config_dir
from turns import seconds, told

from provla.command.entry import ROOT
from provla.core.awake import LONG, SHORT
from provla.core.machine import reproducible
from provla.core.types import fake_batch

SETTLED, MEASURED = 4.0, 8.0  # seconds
UNWATCHED = str(int(LONG) + 1)  # as long, but said by a user, so that nobody takes it back


def step(start: float) -> None:
    """Seconds of a step, after a start that several can share, and the first steps' loss."""
    cpu = torch.device("cpu")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), reproducible(2, cpu, deterministic=False):
        policy, batch = policy_of(), fake_batch(SPEC, BATCH)
        policy.fit_normalization(torch.randn(50, 4), torch.rand(50, 4) * 2 - 1)
        once = stepper(policy, lambda: policy.loss(batch)["loss"])
        for _ in range(3):
            once()
        with torch.no_grad():
            loss = float(policy.loss(batch)["loss"])
        taken = []
        while time.time() < start + SETTLED + MEASURED:
            took = seconds(once)
            if time.time() > start + SETTLED:
                taken.append(took)
    print(json.dumps([median(taken), loss]))


def trainings(count: int, spins: str) -> tuple[float, set[float]]:
    """Seconds of a step in trainings at the same time; their losses."""
    command = [sys.executable, __file__, str(time.time() + 12)]  # by then all have imported
    environment = os.environ | {"GOMP_SPINCOUNT": spins, "OMP_DYNAMIC": "false", "PROVLA_ROOT": str(ROOT)}
    environment.pop("OMP_WAIT_POLICY", None)
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    found = [json.loads(child.communicate()[0]) for child in children]
    return median(took for took, _ in found), {loss for _, loss in found}


def main() -> None:
    for count, what, spins, against in (
        (1, "a training alone, a step", SHORT, "threads that sleep soon"),
        (2, "two trainings at once, a step of each", UNWATCHED, "threads that wait awake whoever else does"),
    ):
        pairs = [[trainings(count, LONG), trainings(count, spins)] for _ in range(3)]
        losses = set.union(*(seen for pair in pairs for _, seen in pair))
        assert len(losses) == 1, losses
        told(what, against, [(mine, other) for (mine, _), (other, _) in pairs])


if __name__ == "__main__":
    if sys.argv[1:]:
        step(float(sys.argv[1]))
    else:
        main()
