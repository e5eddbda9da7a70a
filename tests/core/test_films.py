"""Films of the same pictures."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
import pytest

from provla.core.films import mp4

RNG = np.random.default_rng(0)
SCENE = RNG.integers(0, 256, (80, 80, 3), dtype=np.uint8)
FRAMES = np.stack([SCENE[t : t + 64, 2 * (t % 8) :][:, :64] for t in range(16)])


def unclean() -> None:
    """Leaves other numbers behind in the memory that the next one is given."""
    for size in RNG.integers(1_000, 3_000_000, 4):
        np.full(size, RNG.integers(256), np.uint8)


@pytest.mark.parametrize("edge", [64, 63])
def test_a_film_is_the_same_each_time_and_shows_what_was_given(edge: int) -> None:
    frames = FRAMES[:, :edge, :edge]
    films = set()
    for _ in range(6):
        unclean()
        films.add(mp4(frames, 10))
    assert len(films) == 1
    with av.open(BytesIO(films.pop())) as container:
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert shown.shape == frames.shape
    assert abs(shown.mean((1, 2)) - frames.mean((1, 2))).max() < 8
