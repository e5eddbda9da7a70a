"""What augmentations cost, as CSV: milliseconds per batch, medians of 15, in which all take turns.

    python benchmarks/augmentation.py > benchmarks/augmentation.csv

Batches of 64 pictures of 64×64 and of 32 of 224×224, one camera, two threads. A part alone is at probability 1.
"""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path

import torch
import yaml
from turns import medians

from provla.augmentation import CameraAugmentation, CropColor, RandomCrop
from provla.core.types import Batch, Observation

OPTION = Path(__file__).parents[1] / "conf" / "augmentation" / "camera.yaml"
SIZES = ((64, 64), (32, 224))


def made(size: int, edge: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 1, 1, 3, edge, edge), generator=g, dtype=torch.uint8)
    draws = [torch.rand(size, 2, generator=g) for _ in range(2)]
    seen = Observation(images, torch.zeros(size, 1, 1), ["a"] * size)
    return Batch(seen, torch.zeros(size, 1, 1), torch.zeros(size, 1, dtype=torch.bool), crop=draws[0], color=draws[1])


def main() -> None:
    torch.set_num_threads(2)
    given = {key: value for key, value in yaml.safe_load(OPTION.read_text()).items() if key != "_target_"}
    arms: dict[str, torch.nn.Module] = {"crop": RandomCrop(2), "crop_color": CropColor(2, 0.3)}
    arms["camera"] = CameraAugmentation(**given)
    for name, part in given.items():
        if name != "pad":
            arms[f"{name} alone"] = CameraAugmentation(**{name: part | {"probability": 1}})
    table = csv.writer(sys.stdout)
    table.writerow(["augmentation", *(f"ms per batch of {size} at {edge}x{edge}" for size, edge in SIZES)])
    batches = [made(size, edge) for size, edge in SIZES]
    taken = [medians({name: partial(arm, batch) for name, arm in arms.items()}, 15) for batch in batches]
    for name in arms:
        table.writerow([name, *(f"{one[name]:.1f}" for one in taken)])


if __name__ == "__main__":
    main()
