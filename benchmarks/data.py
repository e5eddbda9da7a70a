"""Samples per second of the data path against LeRobotDataset, same content: python benchmarks/data.py

Random access, one process, caches warm; both give an image, a state and a chunk of 16 actions. Writes
benchmarks/data.json.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from hydra import compose, initialize_config_dir
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from omegaconf import OmegaConf

from provla.command.entry import ROOT
from provla.core.build import build
from provla.dataset.sampler import Sampler

HORIZON, SECONDS = 16, 8.0


def rate(one: object, count: int) -> float:
    """Samples per second of calling `one(i)`, each of which gives `count` samples."""
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        one(calls)  # type: ignore[operator]
        calls += 1
    return calls * count / (time.perf_counter() - begun)


def main() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose("analyze"), resolve=True)["dataset"]
    source = build(node, "dataset")
    data = source.load()
    sampler = Sampler(data, data.split(0.0, 0)[0], ["corner2"], HORIZON, 1)
    stamps = {"action": [i / data.fps for i in range(HORIZON)]}
    theirs = LeRobotDataset("provla/metaworld", root=source.root, delta_timestamps=stamps, video_backend="pyav")
    order = np.random.default_rng(0).permutation(len(data.actions))
    sampler.step(0, 0, 64), theirs[0]
    # Alternating, so that a noisy machine disturbs both alike.
    ours_rates, their_rates = [], []
    for _ in range(3):
        ours_rates.append(rate(lambda i: sampler.step(0, i, 64), 64))
        their_rates.append(rate(lambda i: theirs[int(order[i % len(order)])], 1))
    ours, lerobot = float(np.median(ours_rates)), float(np.median(their_rates))
    result = {
        "provla": round(ours),
        "lerobot": round(lerobot),
        "ratio": round(ours / lerobot),
        "image_size": data.image_size,
        "samples": len(sampler),
    }
    (ROOT / "benchmarks" / "data.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"provla {ours:,.0f} samples/s, LeRobotDataset {lerobot:,.0f} samples/s: {ours / lerobot:,.0f} times")


if __name__ == "__main__":
    sys.exit(main())
