"""Is a data set what it says? Rows, episodes, times, tasks, numbers and pictures against each other and against the
stored statistics.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.dataset.format import Camera, Info, read_tasks, read_vector
from provla.dataset.frames import thinning
from provla.dataset.problem import Problem
from provla.dataset.table import Table, read_table

Array = NDArray[Any]
HUGE = 1e18  # its square overflows float32
FAR = 1e6  # spreads of the middle 98 % that a number may lie outside of them
STATISTICS = ("min", "max", "mean", "std", "count")


@dataclass
class Contents:
    """The tables of a data set as arrays, and what is wrong with them.

    N rows, E episodes: episode e is rows starts[e] … starts[e+1]-1. task (N,): index into `instructions`. videos: key →
    (E,3) chunk, file, first frame.
    """

    info: Info
    rows: Table
    episodes: Table
    starts: Array
    task: Array
    instructions: list[str]
    vectors: dict[str, Array]
    videos: dict[str, Array]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def owner(self, row: int) -> tuple[int, int]:
        """Episode and frame of a row."""
        episode = int(np.searchsorted(self.starts, row, side="right")) - 1
        return episode, int(row - self.starts[episode])

    def blame(self, bad: Any, what: Callable[[int], str]) -> None:
        """A problem for the first row of `bad` in each episode; `what` says it of a row."""
        episodes = set()
        for row in np.flatnonzero(bad):
            episode, frame = self.owner(int(row))
            if episode not in episodes:
                episodes.add(episode)
                self.problems.append(Problem(self.rows.file(int(row)), episode, frame, what(int(row))))


def read_contents(info: Info, vectors: Sequence[str], cameras: Sequence[Camera], first: int | None = None) -> Contents:
    """Reads and checks all tables, or what was fetched of them for the `first` episodes; `ValueError` where they cannot
    even be laid beside each other."""
    videos = [camera.key for camera in cameras if camera.stored == "video"]
    places = [
        f"videos/{key}/{part}"
        for key in videos
        for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    ]
    stored = [f"stats/{key}/{name}" for key in dict.fromkeys(vectors) for name in STATISTICS]
    base = ["episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index"]
    wanted = ["index", "episode_index", "frame_index", "timestamp", "task_index", *dict.fromkeys(vectors)]
    if first is None:
        rows = read_table(info.root, "data", wanted)
        episodes = read_table(info.root, "meta/episodes", [*base, *places], stored)
    else:
        where = ["data/chunk_index", "data/file_index"]
        episodes = read_table(info.root, "meta/episodes", [*base, *where, *places], stored).head(first)
        files = dict.fromkeys(info.table(*place) for place in zip(*map(episodes.integers, where), strict=True))
        rows = read_table(info.root, "data", wanted, files=list(files))
        rows = rows.head(int(episodes.integers("length").clip(0).sum()))
    for what, has, promised in (
        ("frames", len(rows), info.total_frames if first is None else int(episodes.integers("length").sum())),
        ("episodes", len(episodes), info.total_episodes if first is None else first),
    ):
        if has != promised:
            raise ValueError(
                f"{info.root} is truncated: meta/info.json promises {promised} {what}, the parquet files hold {has}"
            )
    lengths = _lengths(info, episodes, len(rows))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    found = Contents(info, rows, episodes, starts, np.zeros(len(rows), dtype=np.int64), [], {}, {})
    _check_rows(found)
    _read_tasks(found)
    for key in dict.fromkeys(vectors):
        _read_vector(found, key)
    for key in videos:
        _read_videos(found, key)
    for key in dict.fromkeys(vectors):
        _compare_vector(found, key)
    if first is None:
        _compare_whole(found, list(dict.fromkeys(vectors)))
    return found


def _lengths(info: Info, episodes: Table, rows: int) -> Array:
    numbers, lengths = episodes.integers("episode_index"), episodes.integers("length")
    checks: tuple[tuple[Array, Callable[[int], str]], ...] = (
        (
            numbers != np.arange(len(numbers)),
            lambda i: f"episode_index is {numbers[i]} in row {i}: episodes are missing, repeated or out of order",
        ),
        (lengths < 1, lambda i: f"the length of episode {i} is {lengths[i]}"),
    )
    for wrong, what in checks:
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{info.root / episodes.file(at)}: {what(at)}")
    if int(lengths.sum()) != rows:
        raise ValueError(
            f"{info.root} is inconsistent: its episodes are {int(lengths.sum())} frames long, its data {rows}"
        )
    return lengths


def _check_rows(found: Contents) -> None:
    """Rows in order, episodes as meta/episodes cuts them, one frame after the other at the promised rate."""
    rows, starts, fps = found.rows, found.starts, found.info.fps
    count = len(rows)
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    frame = np.arange(count) - starts[owner]
    for key, expected in (("episode_index", owner), ("frame_index", frame), ("index", np.arange(count))):
        _compare_column(found, key, rows.integers(key), expected)
    times, expected = rows.numbers("timestamp"), frame / fps
    # A fiftieth of a frame, and float32's rounding.
    bad = ~(np.abs(times - expected) <= 0.02 / fps + 1e-6 * np.abs(expected))
    found.blame(
        bad,
        lambda row: (
            f"timestamp is {times[row]:.4f} s, expected {expected[row]:.4f} s (frame {frame[row]} at {fps:g} fps of "
            "meta/info.json)"
        ),
    )
    for key, bounds in (("dataset_from_index", starts[:-1]), ("dataset_to_index", starts[1:])):
        values = found.episodes.integers(key)
        for e in np.flatnonzero(values != bounds):
            found.problems.append(
                Problem(
                    found.episodes.file(int(e)),
                    int(e),
                    None,
                    f"{key} is {values[e]}, the lengths before it add up to {bounds[e]}",
                )
            )


def _compare_column(found: Contents, key: str, values: Array, expected: Array) -> None:
    found.blame(
        values != expected,
        lambda row: f"{key} is {values[row]}, expected {expected[row]}: rows are missing or out of order",
    )


def _read_tasks(found: Contents) -> None:
    """Each row's sentence, from its own task_index; episodes without meta/tasks.parquet name their one sentence
    themselves.
    """
    index, texts, said = found.rows.integers("task_index"), read_tasks(found.info.root), found.episodes.texts("tasks")
    if not texts:
        if several := [e for e, tasks in enumerate(said) if len(set(tasks)) != 1]:
            raise ValueError(
                f"{found.info.root} has no meta/tasks.parquet, and episode {several[0]} names "
                f"{len(set(said[several[0]]))} tasks, not one"
            )
        texts = list(dict.fromkeys(tasks[0] for tasks in said))
        index = np.repeat([texts.index(tasks[0]) for tasks in said], np.diff(found.starts))
    known = (index >= 0) & (index < len(texts))
    found.blame(~known, lambda row: f"task_index is {index[row]}, meta/tasks.parquet holds {len(texts)} tasks")
    index = np.where(known, index, 0)
    empty = np.array([not text.strip() for text in texts])[index] & known
    remedy = "write one with LeRobot: lerobot-edit-dataset --operation.type modify_tasks"
    found.blame(
        empty, lambda row: f"has no task text (task_index {index[row]} is empty in meta/tasks.parquet); {remedy}"
    )
    for e, tasks in enumerate(said):
        used = {texts[i] for i in np.unique(index[found.starts[e] : found.starts[e + 1]])}
        if used != set(tasks) and known[found.starts[e] : found.starts[e + 1]].all():
            what = f"its tasks are {sorted(tasks)}, its rows' task_index says {sorted(used)}"
            found.problems.append(Problem(found.episodes.file(e), e, None, what))
    # In the order in which they come up, so that instructions that no row has are none.
    order = list(dict.fromkeys(index.tolist()))
    position = np.zeros(len(texts), dtype=np.int64)
    position[order] = np.arange(len(order))
    found.instructions, found.task = [texts[i] for i in order], position[index]


def _read_vector(found: Contents, key: str) -> None:
    values, wrong, note = read_vector(found.rows, found.info, key)
    found.vectors[key] = values
    found.notes += [note] if note else []
    odd = np.zeros(len(values), dtype=bool)
    odd[list(wrong)] = True
    found.blame(odd, lambda row: f"{key} {wrong[row]}")
    with np.errstate(invalid="ignore"):
        infinite, huge = ~np.isfinite(values).all(1), (np.abs(values) > HUGE).any(1)
    found.blame(infinite & ~odd, lambda row: f"{key} holds a number that is not finite: {values[row].tolist()}")
    found.blame(
        huge & ~infinite,
        lambda row: f"{key} holds {values[row][np.abs(values[row]).argmax()]:g}, whose square is too large for float32",
    )
    good = values[~infinite & ~huge]
    if len(good):
        low, middle, high = np.quantile(good, [0.01, 0.5, 0.99], axis=0)
        spread = np.where(high > low, high - low, np.inf)
        far = (np.abs(values - middle) > FAR * spread).any(1) & ~infinite & ~huge
        found.blame(
            far,
            lambda row: (
                f"{key} holds {values[row].tolist()}, over {FAR:,.0f} times as far out as 98 % of the data are spread"
            ),
        )


def _read_videos(found: Contents, key: str) -> None:
    """Where each episode's frames lie in its video [frames]; overlaps and times that do not fit its length are
    problems.
    """
    episodes, fps = found.episodes, found.info.fps
    chunk, file = (episodes.integers(f"videos/{key}/{part}") for part in ("chunk_index", "file_index"))
    begin, end = (episodes.numbers(f"videos/{key}/{part}_timestamp") * fps for part in ("from", "to"))
    lengths = np.diff(found.starts)
    wrong: dict[int, str] = {}
    for e in range(len(lengths)):
        if not (np.isfinite(begin[e]) and np.isfinite(end[e]) and -0.5 < begin[e] < 1e9):
            wrong[e] = f"from_timestamp and to_timestamp are {begin[e] / fps:g} s and {end[e] / fps:g} s"
        elif abs(begin[e] - round(begin[e])) > 0.25:
            wrong[e] = f"from_timestamp {begin[e] / fps:g} s lies between two frames at {fps:g} fps"
        elif end[e] - begin[e] < lengths[e] - 0.5:
            wrong[e] = (
                f"its video lasts {(end[e] - begin[e]) / fps:.3f} s, {lengths[e]} frames at {fps:g} fps take "
                f"{lengths[e] / fps:.3f} s"
            )
    order = sorted(set(range(len(lengths))) - set(wrong), key=lambda e: (chunk[e], file[e], begin[e]))
    for a, b in itertools.pairwise(order):
        if (chunk[a], file[a]) == (chunk[b], file[b]) and end[a] > begin[b] + 0.5:
            wrong[b] = (
                f"begins at {begin[b] / fps:.3f} s of its video, where episode {a} ends at {end[a] / fps:.3f} s: they "
                "overlap"
            )
    found.problems += [Problem(episodes.file(e), e, None, f"{key}: {what}") for e, what in wrong.items()]
    first = np.array([round(b) if e not in wrong else 0 for e, b in enumerate(begin)], dtype=np.int64)
    found.videos[key] = np.stack([chunk, file, first], 1)


def _statistics(episodes: Table, key: str) -> dict[str, Array]:
    """Stored statistics of a feature by name, (E,D); nan where one is missing or odd; (E,0) where there are none."""
    return {name: _stored(episodes, f"stats/{key}/{name}") for name in STATISTICS}


def _stored(episodes: Table, column: str) -> Array:
    if column not in episodes.columns.column_names:
        return np.zeros((len(episodes), 0))
    values = [_numbers(value) for value in episodes.columns[column].to_pylist()]
    size = max((len(v) for v in values), default=0)
    return np.array([v if len(v) == size else np.full(size, np.nan) for v in values]).reshape(len(episodes), size)


def _numbers(value: Any) -> Array:
    if value is None:
        return np.zeros(0)
    try:
        return np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        return np.zeros(0)


def _compare_vector(found: Contents, key: str) -> None:
    """An episode's numbers against its statistics in meta/episodes."""
    values, starts = found.vectors[key].astype(np.float64), found.starts
    stats = _statistics(found.episodes, key)
    bad_episodes = {problem.episode for problem in found.problems}
    counts = np.diff(starts)
    with np.errstate(all="ignore"):
        low, high = (f.reduceat(values, starts[:-1]) for f in (np.minimum, np.maximum))
        mean = np.add.reduceat(values, starts[:-1]) / counts[:, None]
        square = np.add.reduceat((values - np.repeat(mean, counts, 0)) ** 2, starts[:-1]) / counts[:, None]
    for e in range(len(counts)):
        if e not in bad_episodes:
            here = {name: array[e] for name, array in stats.items() if not np.isnan(array[e]).all()}
            what = _disagreement(here, low[e], high[e], mean[e], square[e], int(counts[e]))
            if what:
                found.problems.append(Problem(found.episodes.file(e), e, None, f"{key}: {what}"))


def _disagreement(
    stored: Mapping[str, Array], low: Array, high: Array, mean: Array, variance: Array, count: int
) -> str:
    """What stored statistics say otherwise, beyond what float32 sums explain."""
    scale = np.maximum(np.abs(low), np.abs(high)) + 1e-12
    rounding = 1e-6 + 6e-8 * min(count, 10_000)
    for name, value, allowed in (
        ("count", np.array([count]), 0.0),
        ("min", low, 2e-6 * scale),
        ("max", high, 2e-6 * scale),
        ("mean", mean, rounding * scale),
    ):
        told = stored.get(name, np.zeros(0))
        if told.size and (told.shape != value.shape or not (np.abs(told - value) <= allowed).all()):
            return f"the stored {name} is {_short(told)}, that of the data {_short(value)}"
    told = stored.get("std", np.zeros(0))
    if told.size and told.shape == variance.shape:
        # Squared, as LeRobot subtracts two large numbers; with n or n - 1.
        least = np.minimum(np.abs(told**2 - variance), np.abs(told**2 - variance * count / max(1, count - 1)))
        if not (least <= 4 * rounding * scale**2).all():
            return f"the stored std is {_short(told)}, that of the data {_short(np.sqrt(variance))}"
    return ""


def _short(values: Array) -> str:
    return f"[{', '.join(f'{v:.6g}' for v in values[:8])}{', …' if len(values) > 8 else ''}]"


def _compare_whole(found: Contents, keys: Sequence[str]) -> None:
    """meta/stats.json against the data, where all of them are whole."""
    file = found.info.root / "meta" / "stats.json"
    if not file.is_file():
        return
    try:
        stored = json.loads(file.read_text())
        assert isinstance(stored, dict)
    except (OSError, ValueError, AssertionError) as error:
        found.problems.append(
            Problem(
                "meta/stats.json", None, None, f"is damaged: {error or 'no dictionary'}; make it again: {RECOMPUTE}"
            )
        )
        return
    for key in keys:
        values = found.vectors[key].astype(np.float64)
        told = stored.get(key)
        if (
            not isinstance(told, dict)
            or not np.isfinite(values).all()
            or any(p.episode is not None for p in found.problems)
        ):
            continue
        here = {name: _numbers(told[name]) for name in STATISTICS if name in told}
        if what := _disagreement(here, values.min(0), values.max(0), values.mean(0), values.var(0), len(values)):
            found.problems.append(Problem("meta/stats.json", None, None, f"{key}: {what}; make it again: {RECOMPUTE}"))


RECOMPUTE = "lerobot-edit-dataset --operation.type recompute_stats, or delete the file, which provla does not need"


def compare_pictures(
    found: Contents, camera: Camera, episodes: Sequence[int], everywhere: Sequence[Any], sampled: Sequence[Any]
) -> list[Problem]:
    """An episode's decoded pictures against its statistics in meta/episodes.

    Codecs lose a little, much the same in every episode; so an episode is bad where it lies further off than the
    others, or all are far off. Of pictures that are all but noise they lose a third of the spread, and add none.
    """
    columns = [f"stats/{camera.key}/{name}" for name in STATISTICS]
    stats, lengths = (
        _statistics(read_table(found.info.root, "meta/episodes", [], columns), camera.key),
        np.diff(found.starts),
    )
    count, step = stats["count"], thinning(*camera.size)
    pixels = len(range(0, camera.size[0], step)) * len(range(0, camera.size[1], step))
    bad: dict[int, str] = {}
    for at, name, least in ((0, "mean", 0.5), (1, "std", 1.0)):
        told = stats[name]
        if told.shape[1] != 3:
            continue
        # A count of pixels: every picture was looked at while it was recorded; else of pictures: a sample of them,
        # afterwards.
        whole = [count.shape[1] == 1 and count[e, 0] == lengths[e] * pixels for e in episodes]
        seen = np.array([(everywhere if all_of_them else sampled)[i][at] for i, all_of_them in enumerate(whole)])
        off = 255 * (seen - told[list(episodes)])  # (E, 3) grey levels
        middle = np.nanmedian(off, 0) if np.isfinite(off).any() else np.zeros(3)
        spread = 1.4826 * np.nanmedian(np.abs(off - middle), 0) if len(off) > 2 else np.ones(3)
        low = -12 if name == "mean" else -12 - 255 * told[list(episodes)] / 2
        far = (np.abs(off - middle) > least + 8 * spread).any(1) | ((off > 12) | (off < low)).any(1)
        for i in np.flatnonzero(far):
            bad.setdefault(
                int(i),
                f"the pictures' {name} is {_short(255 * seen[i])}, the stored one {_short(255 * told[episodes[i]])} "
                "grey levels",
            )
    return [
        Problem(_picture_file(found, camera, episodes[i]), episodes[i], None, f"{camera.name}: {what}")
        for i, what in sorted(bad.items())
    ]


def _picture_file(found: Contents, camera: Camera, episode: int) -> str:
    if camera.stored == "image":
        return found.rows.file(int(found.starts[episode]))
    chunk, file, _ = found.videos[camera.key][episode]
    return str(found.info.video(camera.key, int(chunk), int(file)).relative_to(found.info.root))
