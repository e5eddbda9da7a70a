"""Pictures of chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from provla.run.chunks import CELL, plot_chunks, scale
from provla.run.plots import MOST_JOINTS


@pytest.mark.parametrize(("cameras", "joints", "padded"), [(1, 4, 3), (2, 30, 0), (1, 1, 8)])
def test_every_observation_has_its_panels(cameras: int, joints: int, padded: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(2, 8, joints)).astype(np.float32)
    pads = np.zeros((2, 8), dtype=bool)
    pads[1, 8 - padded :] = padded > 0
    pictures = rng.integers(0, 255, (cameras, 2, 16, 24, 3), dtype=np.uint8)
    names = [f"joint {j}" for j in range(joints)]
    file = plot_chunks(
        actions[:, None] + rng.normal(size=(2, 4, 8, joints)),
        actions,
        pads,
        pictures,
        ["Push and close a drawer", "Wave"],
        names,
        ["front", "wrist"][:cameras],
        tmp_path / "chunks.png",
    )
    with Image.open(file) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    lines = -(-min(joints, MOST_JOINTS) // 7)
    assert abs(seen.shape[1] - 130 * CELL[0] * (cameras + min(joints, 7))) <= 2
    assert seen.shape[0] > 130 * CELL[1] * 2 * lines
    blue, orange = (np.abs(seen - colour).max(-1) < 40 for colour in ((0x2F, 0x6D, 0xB5), (0xD9, 0x82, 0x2B)))
    panels = seen.shape[1] * cameras // (cameras + min(joints, 7))  # where pictures end
    assert blue[:, panels:].sum() > 50
    assert orange[:, panels:].sum() > 50
    edge = np.concatenate([seen[:3].reshape(-1, 3), seen[-3:].reshape(-1, 3), seen[:, -3:].reshape(-1, 3)])
    assert (edge == 255).all()  # nothing is cut off


@pytest.mark.parametrize(
    ("ends", "labels"),
    [
        ((-0.5, 15.5), ["0", "4", "8", "12"]),
        ((-0.42, 0.31), ["−0.4", "−0.2", "0.0", "0.2"]),
        ((0.0, 3.5e-6), ["0", "1e−06", "2e−06", "3e−06"]),
    ],
)
def test_ticks(ends: tuple[float, float], labels: list[str]) -> None:
    assert scale(*ends, 4).labels == labels
