"""Training data beyond the disk: dataset.cache=full, none and window against each other, as JSON lines.

    python benchmarks/windows.py <folder> > benchmarks/windows.jsonl   # a small LeRobot data set; its first camera

At 1×, 10× and 100× of it (its episodes again and again, from the same files; `full` at 1× alone), a process each: the
first step, which waits for the open blocks; the share of their time in which steps of an eighth of a second wait for
pictures; samples/s where nothing but the data path takes time; peak memory. Batches of 64, chunks of 16 actions.

mixing: how alike the samples of a batch are, by the standardised numbers of state and actions. within: the mean
correlation of two samples of a batch, from the variance of batch means (0: as if drawn alone); next: of a batch's mean
with the next one's; same: the share of pairs of one episode. `full` is a full shuffle.

paper: 76,000 episodes of 350 hours at 15 Hz with three cameras of 180×320, as DROID's (arXiv:2403.12945). Measured: an
epoch's order at that size, and how fast one thread and two decode made-up AV1 videos of that size with a key frame at
every second; the rest is arithmetic.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from provla.core.progress import console
from provla.dataset.demonstrations import Demonstrations, Window
from provla.dataset.format import Camera
from provla.dataset.frames import Span
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.sampler import Sampler
from provla.dataset.stored import Stored
from provla.dataset.window import Asked, WindowSampler

SIZE, HORIZON, SECONDS, STEP = 64, 16, 6.0, 0.125
WINDOW = Window(256, 64)
REPEATS = (1, 10, 100)
EPISODES, HOURS, HERTZ, CAMERAS, PICTURE = 76_000, 350, 15, 3, (180, 320)


def say(**line: Any) -> None:
    print(json.dumps({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in line.items()}), flush=True)


def load(folder: Path, cache: str, repeats: int, data_dir: str) -> Demonstrations:
    """The data set's episodes, `repeats` times over."""
    data = LeRobotSource(data_dir, 0.0, 0, root=str(folder), cache="full" if cache == "full" else "none").load()
    camera, frames = next(iter(data.frames.items()))
    if repeats > 1 and isinstance(frames, Stored):
        spans = [
            replace(span, row=span.row + len(frames) * again) for again in range(repeats) for span in frames._spans
        ]
        frames = Stored(frames._root, frames._camera, spans, frames._size, frames._fps)
    lengths = np.tile(np.diff(data.starts), repeats)
    return replace(
        data,
        frames={camera: frames},
        state=np.tile(data.state, (repeats, 1)),
        actions=np.tile(data.actions, (repeats, 1)),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        task=np.tile(data.task, repeats),
        row_task=None,
        window=WINDOW if cache == "window" else None,
    )


def sampler_of(data: Demonstrations) -> Sampler:
    kind = Sampler if data.window is None else WindowSampler
    return kind(data, np.arange(len(data.task)), list(data.frames), HORIZON, 1)


def measure(folder: Path, cache: str, repeats: int, data_dir: str) -> None:
    before, console.quiet = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, True
    sampler = sampler_of(load(folder, cache, repeats, data_dir))
    begun = time.perf_counter()
    sampler.step(0, 0, SIZE)
    first, step = time.perf_counter() - begun, 1
    begun = time.perf_counter()
    while (spent := time.perf_counter() - begun) < SECONDS:
        sampler.step(0, step, SIZE)
        step += 1
    line: dict[str, Any] = {"first_step_s": first}
    begun = time.perf_counter()
    sampler.waited()
    while cache != "full" and (spent := time.perf_counter() - begun) < SECONDS:
        due = time.perf_counter() + STEP
        sampler.step(0, step, SIZE)
        time.sleep(max(0.0, due - time.perf_counter()))
        step += 1
    if (waited := sampler.waited()) is not None:
        line |= {"waiting_at_8_steps_per_s": waited / spent}
    begun, before_these = time.perf_counter(), step
    while (spent := time.perf_counter() - begun) < SECONDS:
        sampler.step(0, step, SIZE)
        step += 1
    line |= {"samples_per_s": (step - before_these) * SIZE / spent}
    if isinstance(sampler, WindowSampler) and sampler._walk is not None:
        line |= {"ring_mb": sampler._walk.ring.nbytes / 1e6, "blocks": len(sampler.begins)}
    sampler.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sizes = {"repeats": repeats, "episodes": len(sampler.episodes), "samples": len(sampler), "cache": cache}
    say(**sizes, **line, peak_mb=peak, imports_mb=before)


def mixing(folder: Path, repeats: int, data_dir: str) -> None:
    data = load(folder, "window", repeats, data_dir)
    numbers = np.concatenate([data.state, data.actions], 1)
    numbers = numbers[:, numbers.std(0) > 0]
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    owner = np.repeat(np.arange(len(data.task)), np.diff(data.starts))
    found: dict[str, float] = {}
    for name, one in (("full", replace(data, window=None)), ("window", data)):
        order = sampler_of(one).shuffled(0, 0)
        batches = order[: len(order) // SIZE * SIZE].reshape(-1, SIZE)
        means = numbers[batches].mean(1)  # (batches, D)
        within = (SIZE * means.var(0).mean() - 1) / (SIZE - 1)
        nearby = np.mean([np.corrcoef(column[:-1], column[1:])[0, 1] for column in means.T])
        several = np.sort(owner[batches], 1)
        pairs = sum((several[:, k:] == several[:, :-k]).sum() for k in range(1, SIZE))
        same = pairs / (len(batches) * SIZE * (SIZE - 1) / 2)
        found |= {f"{name}_within": float(within), f"{name}_next": float(nearby), f"{name}_same": float(same)}
    say(repeats=repeats, mixing=f"{WINDOW.blocks} open blocks of {WINDOW.frames} frames", **found)


def decoding() -> tuple[float, float]:
    """Frames a second of PICTURE that one thread decodes, and two together."""
    import av

    rng, (h, w) = np.random.default_rng(0), PICTURE
    y, x = np.mgrid[:h, :w]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "video.mp4"
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libsvtav1", rate=HERTZ, options={"crf": "30", "g": "2", "preset": "12"})
            stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
            for t in range(512):
                waves = (
                    127 + 50 * np.sin(0.05 * x + 0.1 * t) + 50 * np.cos(0.07 * y - 0.13 * t) + rng.normal(0, 4, (h, w))
                )
                grey = np.repeat(waves.clip(0, 255).astype(np.uint8)[..., None], 3, 2)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
        camera = Camera("front", "front", "video", PICTURE)
        frames = Stored(Path(place), camera, [Span(0, file, 0, 512, 0)], PICTURE, HERTZ)
        parts = np.split(np.arange(512), 4)

        def rate(threads: int) -> float:
            begun = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda part: frames.decode(part, lambda at, picture: None), parts))
            return 512 / (time.perf_counter() - begun)

        rate(1)
        return rate(1), rate(2)


def paper() -> None:
    total = HOURS * 3600 * HERTZ
    lengths = np.random.default_rng(0).multinomial(total - EPISODES, np.full(EPISODES, 1 / EPISODES)) + 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    spans = [
        Span(e, Path("none"), 0, int(n), int(row)) for e, (n, row) in enumerate(zip(lengths, starts, strict=False))
    ]
    frames = Stored(Path(), Camera("front", "front", "video", PICTURE), spans, PICTURE, HERTZ)
    numbers = np.zeros((total, 1), dtype=np.float32)
    data = Demonstrations(
        {"front": frames},
        numbers,
        numbers,
        starts,
        np.zeros(EPISODES, dtype=np.int64),
        ["Go"],
        ["x"],
        {},
        HERTZ,
        "made up",
    )
    sampler = WindowSampler(replace(data, window=WINDOW), np.arange(EPISODES), ["front"], HORIZON, 1)
    begun = time.perf_counter()
    next(sampler.ahead(Asked(0, SIZE, 0, 1), 0))
    spent = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    frame, ring = CAMERAS * 3 * PICTURE[0] * PICTURE[1], sampler.needed(Asked(0, SIZE, 0, 1)) * 3 // 2
    one, two = decoding()
    say(
        paper=f"{EPISODES:,} episodes, {total:,} steps",
        full_cache_tb=total * frame / 1e12,
        window_ring_gb=ring * frame / 1e9,
        order_s=spent,
        order_peak_gb=peak,
        decoded_frames_per_s=one,
        by_two_threads=two,
        threads_for_1000_samples_per_s=1000 * CAMERAS / one,
        epoch_h_at_1000_samples_per_s=total / 1000 / 3600,
        first_step_s_by_16_threads=WINDOW.blocks / 2 * WINDOW.frames * CAMERAS / (16 * one),
    )


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit(f"{__doc__}")
    folder, context = Path(arguments[0]), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as data_dir:
        jobs: list[tuple[Any, tuple[Any, ...]]] = [(measure, (folder, "full", 1, data_dir))]
        jobs += [(measure, (folder, "none", 1, data_dir))]
        jobs += [(measure, (folder, "window", repeats, data_dir)) for repeats in REPEATS]
        jobs += [(mixing, (folder, repeats, data_dir)) for repeats in REPEATS]
        for job, given in [*jobs, (paper, ())]:
            process = context.Process(target=job, args=given)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main(sys.argv[1:])
