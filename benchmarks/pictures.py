"""The README's rollout picture from a run's videos: python benchmarks/pictures.py outputs/readme/default-seed0

Writes docs/rollouts.gif: the first filmed episode of every task, side by side.
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from provla.command.entry import ROOT

SIZE, STRIDE = 160, 2


def main(run: Path) -> None:
    films = [iio.imread(file, plugin="pyav") for file in sorted((run / "videos").glob("*.mp4"))]
    films = [film[:, :, : film.shape[1]] for film in films]  # the first of the episodes side by side
    length = max(len(film) for film in films)
    frames = [np.concatenate([film[min(t, len(film) - 1)] for film in films], 1) for t in range(0, length, STRIDE)]
    small = [
        Image.fromarray(f).resize((SIZE * len(films), SIZE), Image.Resampling.LANCZOS).quantize(96) for f in frames
    ]
    small[0].save(
        ROOT / "docs" / "rollouts.gif", save_all=True, append_images=small[1:], duration=100, loop=0, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
