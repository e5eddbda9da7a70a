"""Ten short runs as one sweep and as ten processes: python benchmarks/sweeps.py [steps]

The default policy without a simulation, ten seeds of so many steps (20). Weights are equal, or nothing is said. The
line also has how many seconds of a sweep's run are not steps.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import seconds, told

RUNS = 10


def command(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "provla.train", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "policy" / "weights.safetensors").read_bytes()).hexdigest()


def main(steps: int) -> None:
    asked = ["env=none", "logger=csv", f"trainer.max_steps={steps}", "trainer.val_every=100000"]
    with tempfile.TemporaryDirectory() as place:
        sweep, alone = Path(place) / "sweep", Path(place) / "alone"
        command(*asked, f"hydra.run.dir={Path(place) / 'warm'}")  # the recording and its frame cache are there
        ours = seconds(lambda: command("-m", *asked, f"seed=range({RUNS})", f"hydra.sweep.dir={sweep}"))
        theirs = seconds(
            lambda: [command(*asked, f"seed={seed}", f"hydra.run.dir={alone / str(seed)}") for seed in range(RUNS)]
        )
        found = {json.loads(file.read_text())["seed"]: file.parent for file in sweep.glob("*/result.json")}
        if wrong := [seed for seed in range(RUNS) if weights(found[seed]) != weights(alone / str(seed))]:
            sys.exit(f"seed {wrong[0]} has other weights in a sweep than alone")
        learned = sum(json.loads((folder / "result.json").read_text())["train_seconds"] for folder in found.values())
        told(
            "ten short runs", "ten processes", [(ours, theirs)], seconds_beside_steps=round((ours - learned) / RUNS, 2)
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
