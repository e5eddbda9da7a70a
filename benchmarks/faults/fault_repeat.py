"""The default policy at full size, in fresh processes: equal configurations give equal weights."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# 30 steps on 10 demonstrations, recorded once; everything that decides the weights' sizes is the default's.
ASKED = (
    *("env=none", "logger=csv", "trainer.max_steps=30", "trainer.val_every=10", "trainer.val_samples=16", "device=cpu"),
    *("dataset.episodes_per_task=2", "dataset.val_fraction=0.5"),
)


def start(folder: Path, threads: int | None, *more: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own. threads: what the process is started with; None: whatever the machine gives."""
    env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "provla.train", *ASKED, *more, f"hydra.run.dir={folder}"]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "policy" / "weights.safetensors").read_bytes()).hexdigest()[:12]


def fault_threads(place: Path) -> tuple[int, int, str]:
    """The default policy, full size, started with no word of threads (twice), OMP_NUM_THREADS=1, 2 and 4, and killed in
    the middle
    """
    found = {}
    for name, threads in (("first", None), ("again", None), ("1", 1), ("2", 2), ("4", 4)):
        if start(place / name, threads).wait():
            return len(found) + 1, len(found), f"the run {name} failed"
        found[name] = weights(place / name)
    run = start(place / "killed", None)
    while run.poll() is None and not list((place / "killed").glob("checkpoints/step_0000010/manifest.json")):
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    start(place / "killed", 1).wait()
    found["killed"] = weights(place / "killed")
    same = sum(one == found["first"] for one in found.values())
    return (
        len(found),
        same,
        f"sha256 of policy/weights.safetensors {found['first']} in {same} of {len(found)} processes",
    )
