"""Damages of a recorded data set, by name: each is done for real to the folder of a LeRobot v3 data set."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Damage = Callable[[Path], None]


def _one(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def _flip(pattern: str, seed: int, bits: int = 1) -> Damage:
    """Bits flipped in the middle nine tenths of a file."""

    def damage(root: Path) -> None:
        file, rng = _one(root, pattern), random.Random(seed)
        data = bytearray(file.read_bytes())
        for _ in range(bits):
            data[rng.randrange(len(data) // 20, len(data) * 19 // 20)] ^= 1 << rng.randrange(8)
        file.write_bytes(data)

    return damage


def _zero(pattern: str) -> Damage:
    """A sector of zeros in the middle."""

    def damage(root: Path) -> None:
        file = _one(root, pattern)
        data = bytearray(file.read_bytes())
        middle, width = len(data) // 2, min(512, len(data) // 4)
        data[middle : middle + width] = bytes(width)
        file.write_bytes(data)

    return damage


def _cut(pattern: str, keep: float) -> Damage:
    def damage(root: Path) -> None:
        file = _one(root, pattern)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return damage


def _drop(pattern: str) -> Damage:
    def damage(root: Path) -> None:
        _one(root, pattern).unlink()

    return damage


def _table(pattern: str, change: Callable[[Any], Any]) -> Damage:
    """A table written again, changed."""

    def damage(root: Path) -> None:
        file = _one(root, pattern)
        table = pd.read_parquet(file)
        (found if (found := change(table)) is not None else table).to_parquet(
            file, index=pattern.endswith("tasks.parquet")
        )

    return damage


def _json(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(root: Path) -> None:
        file = root / "meta" / name
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return damage


DATA, EPISODES, TASKS, VIDEO = "data/*/*.parquet", "meta/episodes/*/*.parquet", "meta/tasks.parquet", "videos/*/*/*.mp4"


def _set(column: str, row: int, value: Any) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        values = table[column].tolist()
        values[row] = value(values[row]) if callable(value) else value
        table[column] = values

    return change


def _all(column: str, value: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        table[column] = [value(cell) for cell in table[column]]

    return change


def _swap(column: str, a: int, b: int) -> Callable[[Any], None]:
    def change(table: Any) -> None:
        values = table[column].tolist()
        values[a], values[b] = values[b], values[a]
        table[column] = values

    return change


def _numbers(change: Callable[[np.ndarray], Any]) -> Callable[[Any], list[float]]:
    """A vector with something done to a copy of it."""

    def apply(cell: Any) -> list[float]:
        values = np.array(cell, dtype=np.float32)
        found = change(values)
        return list(values if found is None else found)

    return apply


def _put(at: int, value: float) -> Callable[[Any], list[float]]:
    return _numbers(lambda values: values.__setitem__(at, value))


def _camera(table: Any, part: str) -> str:
    return next(
        str(column) for column in table.columns if str(column).startswith("videos/") and str(column).endswith(part)
    )


def _video_time(part: str, row: int, by: float) -> Callable[[Any], None]:
    return lambda table: _set(_camera(table, part), row, lambda value: value + by)(table)


def _feature(key: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info["features"][key].update(changes)


def _statistic(name: str, by: float) -> Callable[[dict[str, Any]], None]:
    return lambda stats: stats["action"].update({name: [value + by for value in stats["action"][name]]})


def _other_video(change: str) -> Damage:
    """The video encoded again: at another rate, of another size, or with its pictures in reverse."""

    def damage(root: Path) -> None:
        import av

        file = _one(root, VIDEO)
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            rate, pictures = (
                int(stream.average_rate),
                [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)],
            )
        if change == "size":
            pictures = [np.ascontiguousarray(picture[::2, ::2]) for picture in pictures]
        if change == "dark":
            pictures = [picture // 2 for picture in pictures]
        with av.open(str(file), "w") as container:
            stream = container.add_stream("h264", rate=rate * 2 if change == "rate" else rate)
            stream.height, stream.width, stream.pix_fmt, stream.options = (
                *pictures[0].shape[:2],
                "yuv420p",
                {"crf": "5"},
            )
            for picture in pictures[: len(pictures) - 3 if change == "short" else None]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    return damage


def _unknown_codec(root: Path) -> None:
    file = _one(root, VIDEO)
    file.write_bytes(file.read_bytes().replace(b"avc1", b"zzzz"))


def _swap_cameras(root: Path) -> None:
    videos = sorted(root.glob(VIDEO))
    if len(videos) == 1:  # one camera: another episode's pictures, of the same size on disk
        _other_video("dark")(root)
        return
    data = [video.read_bytes() for video in videos]
    videos[0].write_bytes(data[1])
    videos[1].write_bytes(data[0])


DAMAGES: dict[str, Damage] = {
    **{f"a flipped bit in a video, {seed}": _flip(VIDEO, seed) for seed in range(4)},
    "200 flipped bits in a video": _flip(VIDEO, 9, 200),
    "zeros in a video": _zero(VIDEO),
    "half a video": _cut(VIDEO, 0.5),
    "an empty video": _cut(VIDEO, 0.0),
    "no video": _drop(VIDEO),
    "a video of an unknown codec": _unknown_codec,
    "a video at another rate": _other_video("rate"),
    "a video of another size": _other_video("size"),
    "a video that is three frames short": _other_video("short"),
    "another video in a video's place": _swap_cameras,
    **{f"a flipped bit in the rows, {seed}": _flip(DATA, seed) for seed in range(4)},
    "zeros in the rows": _zero(DATA),
    "half the rows": _cut(DATA, 0.5),
    "no rows": _drop(DATA),
    **{f"a flipped bit in the episodes, {seed}": _flip(EPISODES, seed) for seed in range(4)},
    "half the episodes": _cut(EPISODES, 0.5),
    "no episodes": _drop(EPISODES),
    "a row is missing": _table(DATA, lambda t: t.drop(index=7)),
    "a row twice": _table(DATA, lambda t: pd.concat([t.iloc[:8], t.iloc[7:]])),
    "rows out of order": _table(DATA, lambda t: t.sample(frac=1, random_state=0)),
    "two rows exchanged": _table(DATA, lambda t: t.iloc[[*range(5), 6, 5, *range(7, len(t))]]),
    "two time stamps exchanged": _table(DATA, _swap("timestamp", 4, 9)),
    "a time stamp is nan": _table(DATA, _set("timestamp", 4, float("nan"))),
    "time stamps of another rate": _table(DATA, _all("timestamp", lambda t: t * 1.5)),
    "a frame_index is wrong": _table(DATA, _set("frame_index", 3, 8)),
    "an episode_index is wrong": _table(DATA, _set("episode_index", 3, 2)),
    "a task_index out of range": _table(DATA, _set("task_index", 3, 99)),
    "a negative task_index": _table(DATA, _set("task_index", 3, -1)),
    "another episode's task": _table(DATA, _set("task_index", 3, 1)),
    "an action of 1e30": _table(DATA, _set("action", 5, _put(0, 1e30))),
    "an action of nan": _table(DATA, _set("action", 5, _put(0, float("nan")))),
    "an action of infinity": _table(DATA, _set("action", 5, _put(0, float("inf")))),
    "an action that is not the recorded one": _table(DATA, _set("action", 5, _numbers(lambda v: v + 0.01))),
    "two actions exchanged over episodes": _table(DATA, _swap("action", 5, -1)),
    "7 actions where info.json says fewer": _table(DATA, _all("action", _numbers(lambda v: np.resize(v, 7)))),
    "a row with one action too few": _table(DATA, _set("action", 5, _numbers(lambda v: v[:-1]))),
    "a row without an action": _table(DATA, _set("action", 5, None)),
    "actions that are texts": _table(DATA, _all("action", lambda v: [str(x) for x in v])),
    "a state column is missing": _table(DATA, lambda t: t.drop(columns="observation.state")),
    "no task_index": _table(DATA, lambda t: t.drop(columns="task_index")),
    "a negative length": _table(EPISODES, _set("length", 1, -5)),
    "a length of 0": _table(EPISODES, _set("length", 1, 0)),
    "lengths exchanged": _table(
        EPISODES,
        lambda t: (_set("length", 0, t["length"][0] - 1)(t), _set("length", 1, t["length"][1] + 1)(t), None)[2],
    ),
    "an episode twice": _table(EPISODES, _set("episode_index", 1, 0)),
    "an episode is missing": _table(EPISODES, lambda t: t.drop(index=1)),
    "dataset_from_index is wrong": _table(EPISODES, _set("dataset_from_index", 1, 3)),
    "dataset_to_index is wrong": _table(EPISODES, _set("dataset_to_index", 1, 3)),
    "tasks of an episode are empty": _table(EPISODES, _set("tasks", 1, [])),
    "tasks of an episode are numbers": _table(EPISODES, _all("tasks", lambda v: [1, 2])),
    "an episode begins in another's video": _table(EPISODES, _video_time("from_timestamp", 1, -0.3)),
    "an episode begins between frames": _table(
        EPISODES, lambda t: _set(_camera(t, "from_timestamp"), 1, lambda v: v + 0.004)(t)
    ),
    "an episode ends after the next begins": _table(EPISODES, _video_time("to_timestamp", 0, 0.5)),
    "an episode ends before it begins": _table(EPISODES, _video_time("to_timestamp", 1, -100)),
    "an episode begins after the video": _table(
        EPISODES, lambda t: (_video_time("from_timestamp", 1, 1e4)(t), _video_time("to_timestamp", 1, 1e4)(t), None)[2]
    ),
    "an episode begins before the video": _table(EPISODES, _video_time("from_timestamp", 0, -1)),
    "a video time is nan": _table(EPISODES, _video_time("from_timestamp", 1, float("nan"))),
    "an episode's video file is another": _table(EPISODES, lambda t: _set(_camera(t, "file_index"), 1, 7)(t)),
    "an episode's statistics disagree": _table(EPISODES, _set("stats/action/mean", 1, lambda v: np.array(v) + 0.5)),
    "no task texts": _drop(TASKS),
    "an empty task text": _table(TASKS, lambda t: t.rename(index={t.index[0]: ""})),
    "other task texts": _table(TASKS, lambda t: t.rename(index={t.index[0]: "Dance"})),
    "half the task texts": _cut(TASKS, 0.5),
    "half of info.json": _cut("meta/info.json", 0.5),
    "info.json is a list": lambda root: (root / "meta" / "info.json").write_text("[]") and None,
    "another fps": _json("info.json", lambda i: i.update(fps=i["fps"] * 2)),
    "an fps of 0": _json("info.json", lambda i: i.update(fps=0)),
    "an fps that is a text": _json("info.json", lambda i: i.update(fps="fast")),
    "no fps": _json("info.json", lambda i: i.pop("fps")),
    "more frames than there are": _json("info.json", lambda i: i.update(total_frames=i["total_frames"] + 1)),
    "frames are null": _json("info.json", lambda i: i.update(total_frames=None)),
    "no features": _json("info.json", lambda i: i.update(features={})),
    "features are a list": _json("info.json", lambda i: i.update(features=[1])),
    "a feature is null": _json("info.json", lambda i: i["features"].update(action=None)),
    "a feature without dtype": _json("info.json", lambda i: i["features"]["action"].pop("dtype")),
    "a shape is null": _json("info.json", _feature("action", shape=None)),
    "a shape is negative": _json("info.json", _feature("action", shape=[-4])),
    "a shape of texts": _json("info.json", _feature("observation.state", shape=["4"])),
    "another action size": _json("info.json", _feature("action", shape=[2])),
    "no video path": _json("info.json", lambda i: i.pop("video_path")),
    "a video path that leads out": _json("info.json", lambda i: i.update(video_path="../../{video_key}.mp4")),
    "a video path with unknown fields": _json("info.json", lambda i: i.update(video_path="videos/{nothing}/{0}.mp4")),
    "pictures of another size": _json(
        "info.json", lambda i: [f.update(shape=[30, 30, 3]) for f in i["features"].values() if f["dtype"] == "video"]
    ),
    "another schema": _json("info.json", lambda i: i.update(codebase_version="v2.1")),
    "statistics disagree (mean)": _json("stats.json", _statistic("mean", 1.0)),
    "statistics disagree (max)": _json("stats.json", _statistic("max", -0.5)),
    "statistics disagree (std)": _json("stats.json", _statistic("std", 0.3)),
    "statistics of other joints": _json("stats.json", lambda s: s["action"].update(min=[0.0])),
    "half the statistics": _cut("meta/stats.json", 0.5),
}


def outcome(root: Path, data_dir: Path, whole: Any) -> tuple[bool, str]:
    """Whether a damaged data set is refused by the name of a file, an episode or a key, or read as the whole one; and
    what was said.
    """
    from provla.dataset.lerobot import LeRobotSource

    try:
        found = LeRobotSource(str(data_dir), 0.2, 0, root=str(root)).load()
    except ValueError as error:
        said = str(error)
        return any(
            word in said for word in ("episode", "parquet", ".json", ".mp4", "/data", "promises", "camera", "dataset.")
        ), said
    same = (
        found.instructions == whole.instructions and found.fps == whole.fps and list(found.frames) == list(whole.frames)
    )
    arrays = (
        (getattr(found, name), getattr(whole, name)) for name in ("state", "actions", "starts", "task", "row_task")
    )
    pictures = ((found.frames[camera], whole.frames[camera]) for camera in whole.frames)
    return same and all(np.array_equal(a, b) for a, b in (*arrays, *pictures)), "read"
