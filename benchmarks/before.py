"""The default run and its evaluation against themselves before: python benchmarks/before.py <commit> [rounds]

Each side in a checkout of its own, in turns, on the same recording. Weights need not be equal (convolutions of another
layout round otherwise); success stands in the line. The evaluation is that of 96 episodes by the policy that
the older side has trained; whether its outcomes are equal stands there too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import seconds, told

from provla.command.entry import ROOT


def run(checkout: Path, module: str, folder: Path, *asked: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "PROVLA_ROOT": str(checkout)}
    asked = (*asked, f"hydra.run.dir={folder}")
    subprocess.run(
        [sys.executable, "-m", module, *asked], check=True, cwd=checkout, env=environment, capture_output=True
    )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def main(commit: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        before = Path(place) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, commit], check=True, cwd=ROOT)
        try:
            compare(before, Path(place), rounds)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], check=True, cwd=ROOT)


def timed(*asked: Any) -> float:
    return seconds(lambda: run(*asked))


def compare(before: Path, place: Path, rounds: int) -> None:
    sides = {"ours": ROOT, "theirs": before}
    taken, rates, endings = [], [], set()
    for number in range(rounds):
        folders = {name: place / f"{name}{number}" for name in sides}
        pair = [timed(sides[name], "provla.train", folder, "logger=csv") for name, folder in folders.items()]
        results = [json.loads((folder / "result.json").read_text()) for folder in folders.values()]
        rates.append([result["objective"]["value"] for result in results])
        taken.append((pair[0], pair[1]))
    told("default run", "itself before", taken, success=rates)
    taken, asked = [], (f"checkpoint={place / 'theirs0'}", "eval_episodes=16")
    for number in range(3 * rounds):
        folders = {name: place / f"judged-{name}{number}" for name in sides}
        pair = [timed(sides[name], "provla.evaluate", folder, *asked) for name, folder in folders.items()]
        endings |= {(folder / "episodes.csv").read_text() for folder in folders.values()}
        taken.append((pair[0], pair[1]))
    told("evaluation of 96 episodes", "itself before", taken, outcomes_equal=len(endings) == 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
