"""The default run and its evaluation against themselves before:

    python benchmarks/before.py <commit> [run|evaluation] [--rounds 1] [--of <folder of a run to evaluate>]

Each side in a checkout of its own, in turns, on the same recording. Weights need not be equal (convolutions of another
layout round otherwise); success stands in the line. The evaluation is that of 96 episodes by the policy that the older
side has trained, or of a run that is there; whether all ended alike stands there too, and how many took another number
of steps: since then sentences are read and matrices multiplied otherwise, which rounds otherwise. Without a word, both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turns import seconds, told

from provla.command.entry import ROOT
from provla.core.result import read_episodes


def run(checkout: Path, module: str, folder: Path, *asked: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout), "PROVLA_ROOT": str(checkout)}
    asked = (*asked, f"hydra.run.dir={folder}")
    subprocess.run(
        [sys.executable, "-m", module, *asked], check=True, cwd=checkout, env=environment, capture_output=True
    )


def timed(*asked: Any) -> float:
    return seconds(lambda: run(*asked))


SIDES = ("ours", "theirs")


def trained(checkouts: Mapping[str, Path], place: Path, rounds: int) -> None:
    taken, rates = [], []
    for number in range(rounds):
        folders = {side: place / f"{side}{number}" for side in SIDES}
        pair = [timed(checkouts[side], "provla.train", folder, "logger=csv") for side, folder in folders.items()]
        results = [json.loads((folder / "result.json").read_text()) for folder in folders.values()]
        rates.append([result["objective"]["value"] for result in results])
        taken.append((pair[0], pair[1]))
    told("default run", "itself before", taken, success=rates)


def judged(checkouts: Mapping[str, Path], place: Path, rounds: int, checkpoint: Path) -> None:
    asked, taken, played = (f"checkpoint={checkpoint}", "eval_episodes=16"), [], []
    for number in range(3 * rounds):
        folders = {side: place / f"judged-{side}{number}" for side in SIDES}
        pair = [timed(checkouts[side], "provla.evaluate", folder, *asked) for side, folder in folders.items()]
        played += [folder / "episodes.csv" for folder in folders.values()]
        taken.append((pair[0], pair[1]))
    ends, rows = [read_episodes(file) for file in played], [set(file.read_text().splitlines()) for file in played]
    equal, other = all(end == ends[0] for end in ends), max(len(found - rows[0]) for found in rows)
    told("evaluation of 96 episodes", "itself before", taken, outcomes_equal=equal, other_length=other)


def main(commit: str, what: str, rounds: int, trained_by: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        place, before = Path(name), Path(name) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, commit], check=True, cwd=ROOT)
        checkouts = {"ours": ROOT, "theirs": before}
        try:
            if what != "evaluation":
                trained(checkouts, place, rounds)
            elif trained_by is None:
                run(before, "provla.train", place / "theirs0", "logger=csv")
            if what != "run":
                judged(checkouts, place, rounds, trained_by or place / "theirs0")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], check=True, cwd=ROOT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("commit")
    parser.add_argument("what", nargs="?", default="both", choices=("run", "evaluation", "both"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--of", type=Path, help="the folder of a run to evaluate")
    given = parser.parse_args()
    if given.of and not given.of.is_dir():
        parser.error(f"--of {given.of}: no such folder")
    main(given.commit, given.what, given.rounds, given.of and given.of.resolve())
