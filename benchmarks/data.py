"""Samples per second of the data path against LeRobotDataset, same content: python benchmarks/data.py [default] [large]

Random access, one process, caches warm; both give an image, a state and a chunk of 16 actions. default: the recording
of the default run (64×64 stored), into benchmarks/data.json. large: one camera of 480×640 stored, 224×224 delivered, of
a data set that LeRobot writes first; states, chunks and masks are equal to the bit, and pictures after the same resize.
Its first epoch too: provla's with the making of the frame cache, LeRobot's without anything before it. Lines of JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from omegaconf import OmegaConf
from turns import chosen, seconds, told

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.files import write_json
from provla.dataset.cache import small
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.sampler import Sampler

HORIZON, SECONDS, BATCH, ROUNDS = 16, 8.0, 64, 3


def rate(one: Callable[[int], Any], count: int) -> float:
    """Samples per second of calling `one(i)`, each of which gives `count` samples."""
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        one(calls)
        calls += 1
    return calls * count / (time.perf_counter() - begun)


def backend() -> str:
    """torchcodec where FFmpeg is there."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return "pyav"
    return "torchcodec"


def opened(root: Path, fps: float) -> Any:
    stamps = {"action": [i / fps for i in range(HORIZON)]}
    return LeRobotDataset("provla/benchmark", root=root, delta_timestamps=stamps, video_backend=backend())


def warm(what: str, sampler: Sampler, theirs: Any, seen: Callable[[Any], Any]) -> dict[str, Any]:
    order = np.random.default_rng(0).permutation(len(theirs))
    sampler.step(0, 0, BATCH), theirs[0]
    pairs = []
    for _ in range(ROUNDS):  # alternating, so that a noisy machine disturbs both alike
        ours = rate(lambda i: sampler.step(0, i, BATCH), BATCH)
        pairs.append((ours, rate(lambda i: seen(theirs[int(order[i % len(order)])]), 1)))
    told(what, f"LeRobotDataset, {backend()}", [(1 / a, 1 / b) for a, b in pairs], unit="s a sample")
    ours, lerobot = (float(np.median(rates)) for rates in zip(*pairs, strict=True))
    return {"provla": round(ours), "lerobot": round(lerobot), "ratio": round(ours / lerobot), "samples": len(sampler)}


def default() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("analyze"), resolve=True)
    source = build(node["dataset"], "dataset")
    data = source.load()
    sampler = Sampler(data, data.split(0.0, 0)[0], ["corner2"], HORIZON, 1)
    found = warm("data path, default run", sampler, opened(source.root, data.fps), lambda item: item)
    write_json(ROOT / "benchmarks" / "data.json", {**found, "image_size": list(data.image_size)})


def write(root: Path) -> None:
    """10 episodes of 200 steps, seen by one camera of 480×640, as LeRobot encodes them by itself."""
    vector = {"dtype": "float32", "shape": (14,), "names": [f"joint_{i}" for i in range(14)]}
    picture = {"dtype": "video", "shape": (480, 640, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "observation.images.high": picture}
    data = LeRobotDataset.create(
        "provla/benchmark", fps=30, features=features, root=root, rgb_encoder=RGBEncoderConfig(preset=12)
    )
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:480, :640]
    for _ in range(10):
        for t in range(200):
            waves = 127 + 60 * np.sin(0.03 * x + 0.1 * t) + 60 * np.cos(0.02 * y - 0.05 * t)
            pixels = np.repeat(waves.astype(np.uint8)[..., None], 3, 2)
            pixels[100 : 100 + 80, t : t + 80] = (200, 50, t)
            numbers = {key: rng.standard_normal(14).astype(np.float32) for key in ("observation.state", "action")}
            data.add_frame({**numbers, "observation.images.high": pixels, "task": "Put it there"})
        data.save_episode(parallel_encoding=False)
    data.finalize()


def pixels_of(item: Any) -> Any:
    """The picture of one of LeRobot's items, reduced as provla's frame cache does it."""
    image = (item["observation.images.high"] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return small(image, (224, 224))


def check(sampler: Sampler, theirs: Any) -> None:
    rows = np.random.default_rng(1).permutation(len(theirs))[:BATCH]
    batch = sampler.gather(rows)
    for place, row in enumerate(rows):
        item = theirs[int(row)]
        assert torch.equal(batch.observation.state[place, 0], item["observation.state"])
        assert torch.equal(batch.actions[place], item["action"])
        assert torch.equal(batch.is_pad[place], item["action_is_pad"])
        picture = batch.observation.images[place, 0, 0].numpy()
        assert (picture == pixels_of(item)).all(), f"pictures of row {row} differ"


def large() -> None:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "data")
        theirs = opened(Path(place) / "data", 30)
        order = np.random.default_rng(0).permutation(len(theirs))

        def load() -> Sampler:
            data = LeRobotSource(place, 0.0, 0, root=f"{place}/data", image_size=(224, 224)).load()  # type: ignore[arg-type]
            return Sampler(data, np.arange(len(data.task)), list(data.frames), HORIZON, 1)

        def first_epoch() -> None:
            sampler = load()
            for step in range(len(sampler) // BATCH):
                sampler.step(0, step, BATCH)

        pair = seconds(first_epoch), seconds(lambda: [pixels_of(theirs[int(row)]) for row in order])
        told("data path, first epoch of 480×640", f"LeRobotDataset, {backend()}", [pair])
        sampler = load()
        check(sampler, theirs)
        warm("data path, 480×640 to 224×224", sampler, theirs, pixels_of)


if __name__ == "__main__":
    chosen({"default": default, "large": large})
