"""Several policies judged by one command, against a command for each:

    python benchmarks/together.py [<folder of a run> …] [--rounds 3]

24 episodes of each policy; without folders, of three default ones after 300 steps. Outcomes of the two ways are held
against each other first, and which files they leave.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from before import run
from turns import seconds, told

from provla.command.entry import ROOT
from provla.run.several import name_runs

ASKED = ["eval_episodes=4"]  # of six tasks


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
    files = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if ".hydra" not in one.parts)
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


def main(given: Sequence[Path], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        runs = [one.resolve() for one in given] or trained(Path(name))
        judged(runs, Path(name), rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path, help="the folders of two runs or more")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.runs, given.rounds)
