"""What demonstrations lack, though every file is whole: faults of a recording, which a policy would learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from provla.core.progress import progress_bars
from provla.dataset.demonstrations import Array, Demonstrations
from provla.dataset.verify import Contents

KINDS = ("time", "camera", "joint", "range", "copy", "task")
STILL = 0.3  # grey levels by which a frozen camera's pictures differ in the mean: what a codec does to equal ones
MOVES = 0.1  # of its range: what a joint has to move meanwhile, the last step aside, as a picture may come late
SECONDS = 1.0  # for which a camera has to stand still, and five pictures
BEYOND = 0.5  # of the width of the middle 98 %: how far outside of them an action leaves its range
RARE = 0.001  # of all steps: what lies there oftener is no slip
ALIKE = 1e-3  # of a joint's range, by which copies differ at most
AT_ONCE = 64  # pictures
PIXELS = 96  # of a side, that are compared


@dataclass(frozen=True)
class Lack:
    """kind: of `KINDS`. episode: None of all. first, last: its steps, None of all. what: was found; remedy: what to do.
    name: of the camera or joint; position: of a joint; other: a copy's episode."""

    kind: str
    episode: int | None
    first: int | None
    last: int | None
    what: str
    remedy: str
    name: str = ""
    position: int | None = None
    other: int | None = None
    of_state: bool = False

    def time(self, fps: float) -> str:
        """In seconds from the episode's start."""
        if self.first is None or self.last is None:
            return ""
        return f"{self.first / fps:.2f} s" + (f" – {self.last / fps:.2f} s" if self.last > self.first else "")


@dataclass
class Survey:
    """lacks: what was found. looked: how many episodes' pictures were looked at. numbers: of the episodes in their data
    set, where some were left out."""

    lacks: list[Lack]
    looked: int
    numbers: Sequence[int]

    def number(self, lack: Lack) -> str:
        """An episode's number, as people know it; clocks are read where nothing is left out yet."""
        if lack.episode is None:
            return ""
        return str(lack.episode if lack.kind == "time" else self.numbers[lack.episode])


def survey(
    data: Demonstrations, numbers: Sequence[int], min_episodes: int, look_frames: int, state_names: Sequence[str]
) -> Survey:
    """Everything but time stamps (`jumps`). min_episodes: that a task should have. look_frames: of a camera, at most,
    of episodes evenly spread.
    """
    looked = _sampled(data, look_frames)
    found = [
        *_cameras(data, looked),
        *_joints(data, state_names),
        *_ranges(data),
        *_copies(data, numbers),
        *_tasks(data, min_episodes),
    ]
    return Survey(found, len(looked), numbers)


def jumps(contents: Contents) -> list[Lack]:
    """The first jump of each episode's time stamps, which are a step apart where nothing is missing."""
    times, fps, found = contents.rows.numbers("timestamp"), contents.info.fps, []
    for e, (first, end) in enumerate(zip(contents.starts[:-1], contents.starts[1:], strict=True)):
        steps = np.diff(times[first:end]) * fps
        if len(bad := np.flatnonzero(~(np.abs(steps - 1) < 0.5))):
            at, more = int(bad[0]), f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            what = f"the clock goes from {times[first + at]:.3f} s to {times[first + at + 1]:.3f} s in one step{more}"
            remedy = f"pictures are missing or a clock was set: cut the episode there, or resample it at {fps:g} Hz"
            found.append(Lack("time", e, at, at + 1, what, remedy))
    return found


def _sampled(data: Demonstrations, most: int) -> Array:
    """Episodes, evenly spread, of no more steps than that; one at least."""
    lengths = np.diff(data.starts)
    count = len(lengths)
    while count > 1 and lengths[_spread(len(lengths), count)].sum() > most:
        count = count * 9 // 10
    return _spread(len(lengths), count)


def _spread(whole: int, count: int) -> Array:
    found: Array = np.unique(np.linspace(0, whole - 1, count).round().astype(np.int64))
    return found


def _cameras(data: Demonstrations, episodes: Array) -> Iterator[Lack]:
    """Cameras that show one picture while a joint moves."""
    span = np.ptp(data.state, 0)
    least = max(5, round(SECONDS * data.fps))
    with progress_bars() as bars:
        for camera, frames in data.frames.items():
            total = int(np.diff(data.starts)[episodes].sum())
            bar = bars.add_task("looking", total=total, note=camera)
            for e in episodes.tolist():
                first, end = int(data.starts[e]), int(data.starts[e + 1])
                same = []
                before = None
                for at in range(first, end, AT_ONCE):
                    rows = np.arange(at, min(at + AT_ONCE, end))
                    thin = max(1, max(frames.shape[-2:]) // PIXELS)
                    seen = np.asarray(frames[rows])[..., ::thin, ::thin].astype(np.int16)
                    joined = seen if before is None else np.concatenate([before, seen])
                    same += (np.abs(np.diff(joined, axis=0)).mean((1, 2, 3)) <= STILL).tolist()
                    before = seen[-1:]
                    bars.advance(bar, len(rows))
                for a, b in _runs(np.array(same, dtype=bool)):
                    moved = np.ptp(data.state[first + a : first + b], 0)
                    if b - a + 1 >= least and (moved > MOVES * np.where(span > 0, span, np.inf)).any():
                        what = f"{camera} shows one picture for {(b - a + 1) / data.fps:.1f} s while the robot moves"
                        remedy = "leave the episode out, or cut it there; look after the camera's cable and driver"
                        yield Lack("camera", e, a, b, what, remedy, camera)


def _runs(same: Array) -> list[tuple[int, int]]:
    """First and last picture of each run of equal ones; same: whether the next one is."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _joints(data: Demonstrations, state_names: Sequence[str]) -> Iterator[Lack]:
    for values, names, of_state in ((data.actions, data.joint_names, False), (data.state, state_names, True)):
        low, high = values.min(0), values.max(0)
        for j in np.flatnonzero(high - low <= 1e-6 * np.maximum(1, np.abs(high))).tolist():
            word = "state" if of_state else "action"
            what = f"{word} {names[j]} is {low[j]:g} in every step"
            remedy = (
                "leave it out of dataset.state_key's feature, if it is no sensor that has failed"
                if of_state
                else "nothing can be learned of it: record demonstrations that use it, or leave it out of the feature"
            )
            yield Lack("joint", None, None, None, what, remedy, names[j], j, of_state=of_state)


def _ranges(data: Demonstrations) -> Iterator[Lack]:
    """The farthest action of each episode and joint that lies far outside of where nearly all do."""
    low, high = np.quantile(data.actions, [0.01, 0.99], axis=0)
    width = high - low
    owner = np.repeat(np.arange(len(data.task)), np.diff(data.starts))
    for j, name in enumerate(data.joint_names):
        values = data.actions[:, j]
        beyond = np.maximum(low[j] - values, values - high[j])
        out = beyond > BEYOND * width[j]
        if width[j] <= 0 or not out.any() or out.sum() > max(3, RARE * len(values)):
            continue
        for e in np.unique(owner[out]).tolist():
            begin = int(data.starts[e])
            rows = np.flatnonzero(out[begin : data.starts[e + 1]]) + begin
            row = int(rows[beyond[rows].argmax()])
            what = f"action {name} is {values[row]:.4g}; 98 % of all lie in {low[j]:.4g} … {high[j]:.4g}"
            remedy = "cut or correct it: normalisation by min and max would squeeze all others"
            yield Lack("range", e, row - begin, row - begin, what, remedy, name, j)


def _copies(data: Demonstrations, numbers: Sequence[int]) -> Iterator[Lack]:
    """Episodes whose states and actions are another's. Near ones are near in any projection: they are sorted by one."""
    values = np.concatenate([data.state, data.actions], 1).astype(np.float64)
    span = np.ptp(values, 0)
    values = (values - values.min(0)) / np.where(span > 0, span, 1)
    points = np.linspace(0, 1, 8)
    lengths = np.diff(data.starts)
    at = data.starts[:-1, None] + np.round(points * (lengths[:, None] - 1)).astype(np.int64)
    short = values[at].reshape(len(lengths), -1)  # (E, 8·(S+A))
    line = short @ np.random.default_rng(0).standard_normal(short.shape[1])
    order = np.lexsort([line, lengths])
    reach = 6 * ALIKE * short.shape[1] ** 0.5
    copied: dict[int, int] = {}
    for i, a in enumerate(order.tolist()):
        for b in order[i + 1 :].tolist():
            if lengths[a] != lengths[b] or line[b] - line[a] > reach:
                break
            if b in copied or np.abs(short[a] - short[b]).max() > ALIKE:
                continue
            one, two = (values[data.starts[e] : data.starts[e + 1]] for e in (a, b))
            if np.abs(one - two).max() <= ALIKE:
                copied[b] = a
    for later, earlier in sorted((max(pair), min(pair)) for pair in copied.items()):
        words = "" if data.task[later] == data.task[earlier] else ", under another sentence"
        what = f"moves as episode {numbers[earlier]} does{words}"
        remedy = "remove one: held-out errors look too good where its copy is trained on"
        last = int(lengths[later]) - 1
        yield Lack("copy", later, 0, last, what, remedy, other=earlier)


def _tasks(data: Demonstrations, least: int) -> Iterator[Lack]:
    for task, text in enumerate(data.instructions):
        found = np.flatnonzero(data.task == task)
        if 0 < len(found) < least:
            what = f"{text!r} has {len(found)} episode{'s' * (len(found) > 1)}"
            yield Lack("task", None, None, None, what, f"record {least - len(found)} more, or leave it out", text)


def signals(data: Demonstrations, lack: Lack) -> tuple[Any, Any]:
    """What is drawn of a joint that a lack is about: its values in the episode, or in all, and its middle 98 %."""
    values = (data.state if lack.of_state else data.actions)[:, lack.position]
    rows = slice(None) if lack.episode is None else slice(data.starts[lack.episode], data.starts[lack.episode + 1])
    return values[rows], np.quantile(values, [0.01, 0.99])
