"""How long a command takes to say what needs no torch: python benchmarks/startup.py [rounds]

--help, --cfg job and the error for a wrong key, against the import of what they cannot do without (hydra, omegaconf).
Fresh processes in turns; a line of JSON for each, medians of paired ratios. None of them may import torch.
"""

from __future__ import annotations

import subprocess
import sys

from turns import seconds, told

BARE = ["-c", "import hydra, omegaconf"]
ASKED = {"--help": (["--help"], 0), "--cfg job": (["--cfg", "job"], 0), "a wrong key": (["trainer.lrr=1"], 2)}


def run(arguments: list[str], expected: int) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != expected:
        sys.exit(f"{arguments} ended with {done.returncode}, expected {expected}: {done.stderr[-500:]}")


def timed(arguments: list[str], expected: int = 0) -> float:
    return seconds(lambda: run(arguments, expected))


def imports_torch(arguments: list[str]) -> bool:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "provla.train", *arguments], capture_output=True)
    return b" torch\n" in done.stderr


def main(rounds: int) -> None:
    if found := [name for name, (arguments, _) in ASKED.items() if imports_torch(arguments)]:
        sys.exit(f"{found[0]} imports torch")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ASKED}
    for _ in range(rounds):
        bare = timed(BARE)
        for name, (arguments, code) in ASKED.items():
            taken[name].append((timed(["-m", "provla.train", *arguments], code), bare))
    for name, pairs in taken.items():
        told(name, "import hydra, omegaconf", pairs, share=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
