"""Films as mp4, the same bytes of the same pictures."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from numpy.typing import NDArray

# On a CPU with AVX-512 x264 looks ahead over memory that nobody has written to, so that the same pictures of 64 or 96
# pixels become another film each time, some of them by a dozen grey levels.
REPEATS = {"x264-params": "cpu-independent=1"}


def mp4(frames: NDArray[Any], fps: int) -> bytes:
    """A film of (T,h,w,3) uint8."""
    import av

    film = BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps, options=dict(REPEATS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if stream.height % 2 or stream.width % 2 else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    return film.getvalue()
