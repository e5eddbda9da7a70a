"""How long a command takes to say what needs no torch: python benchmarks/startup.py [rounds]

--help, --cfg job and the error for a wrong key, against the import of what they cannot do without (hydra, omegaconf).
Fresh processes in turns; a line of JSON for each, medians of paired ratios. None of them may import torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

BARE = ["-c", "import hydra, omegaconf"]
ASKED = {"--help": (["--help"], 0), "--cfg job": (["--cfg", "job"], 0), "a wrong key": (["trainer.lrr=1"], 2)}


def seconds(arguments: list[str], expected: int = 0) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode != expected:
        sys.exit(f"{arguments} ended with {done.returncode}, expected {expected}: {done.stderr[-500:]}")
    return taken


def imports_torch(arguments: list[str]) -> bool:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "provla.train", *arguments], capture_output=True)
    return b" torch\n" in done.stderr


def main(rounds: int) -> None:
    if found := [name for name, (arguments, _) in ASKED.items() if imports_torch(arguments)]:
        sys.exit(f"{found[0]} imports torch")
    times: dict[str, list[float]] = {name: [] for name in ["bare", *ASKED]}
    for _ in range(rounds):
        times["bare"].append(seconds(BARE))
        for name, (arguments, code) in ASKED.items():
            times[name].append(seconds(["-m", "provla.train", *arguments], code))
    for name in ASKED:
        ratios = [ours / bare for ours, bare in zip(times[name], times["bare"], strict=True)]
        line = {"what": name, "ours": median(times[name]), "theirs": median(times["bare"]), "ratio": median(ratios)}
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in line.items()} | {"n": rounds}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
