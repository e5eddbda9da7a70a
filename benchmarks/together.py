"""Several policies judged by one command, against a command for each:

    python benchmarks/together.py [<folder of a run> …] [--rounds 3]

24 episodes of each policy; without folders, of three default ones after 300 steps. Outcomes and videos of the two ways
are held against each other first. Then what was not built: a sampler's step of two policies' heads as one forward over
stacked weights (vmap), against one after the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from before import run
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from turns import in_turns, seconds, told

from provla import load
from provla.command.entry import ROOT
from provla.core.machine import reproducible
from provla.core.types import Tokens
from provla.run.several import name_runs

ASKED = ["eval_episodes=4"]  # of six tasks
BATCH = 10


def trained(place: Path) -> list[Path]:
    folders = [place / f"seed={seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        asked = [f"seed={seed}", "trainer.max_steps=300", "logger=none", "eval_episodes=1", "env.videos_per_task=0"]
        run(ROOT, "provla.train", folder, *asked)
    return folders


def timed(folder: Path, asked: str) -> float:
    return seconds(lambda: run(ROOT, "provla.evaluate", folder, asked, *ASKED))


def outcomes(folder: Path) -> dict[str, Any]:
    """A judgement without its clocks, and which files it left."""
    result = json.loads((folder / "result.json").read_text())
    with (folder / "episodes.csv").open(newline="") as file:
        episodes = [*csv.reader(file)]
    files = {str(one.relative_to(folder)): one.stat().st_size for one in folder.rglob("*.mp4")}
    return {"episodes": episodes, "files": files, **{key: result[key] for key in ("success", "metrics", "config_hash")}}


def judged(runs: Sequence[Path], place: Path, rounds: int) -> None:
    names, taken = name_runs(runs), []
    for number in range(rounds):
        ours, theirs = place / f"together{number}", place / f"alone{number}"
        listed = ",".join(f'"{one}"' for one in runs)
        mine, other = timed(ours, f"checkpoint=[{listed}]"), 0.0
        for name, one in names.items():
            other += timed(theirs / name, f"checkpoint={one}")
            assert outcomes(ours / name) == outcomes(theirs / name), name
        taken.append((mine, other))
    told(f"{len(names)} policies, 24 episodes each", "a command for each", taken, outcomes_equal=True)


def stacked(runs: Sequence[Path]) -> None:
    policies = [load(one, device="cpu") for one in runs[:2]]
    heads, spec = [policy.head for policy in policies], policies[0].spec
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn(2, BATCH, spec.horizon, spec.action_size, generator=generator)
    time = torch.full((2, BATCH), 50)
    block = heads[0].down[0][0].condition
    width = block.in_features - heads[0].time(time[0]).shape[-1]
    features = torch.randn(2, BATCH, 1, width, generator=generator)
    mask = torch.ones(BATCH, 1, dtype=torch.bool)
    weights, buffers = stack_module_state(heads)

    def one(weights: Any, buffers: Any, actions: Tensor, time: Tensor, features: Tensor) -> Any:
        return functional_call(heads[0], (weights, buffers), (actions, time, Tokens(features, mask)))

    def at_once() -> Tensor:
        return vmap(one)(weights, buffers, actions, time, features)

    def in_turn() -> Tensor:
        inputs = zip(heads, actions, time, features, strict=True)
        return torch.stack([head(a, t, Tokens(f, mask)) for head, a, t, f in inputs])

    with torch.no_grad(), reproducible(2, torch.device("cpu"), False):
        torch.testing.assert_close(at_once(), in_turn(), atol=1e-5, rtol=1e-4)
        in_turns("a step of two heads, stacked", "one after the other", at_once, in_turn, rounds=50)


def main(given: Sequence[Path], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        runs = [one.resolve() for one in given] or trained(Path(name))
        judged(runs, Path(name), rounds)
        stacked(runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path, help="the folders of two runs or more")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.runs, given.rounds)
