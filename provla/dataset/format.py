"""LeRobot v3 on disk: meta/info.json, the tasks, the cameras. Every field is checked where it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.dataset.table import Table, line

Array = NDArray[Any]

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


NUMBER = re.compile(r"float(16|32|64)|u?int(8|16|32|64)|bool")


@dataclass(frozen=True)
class Camera:
    """A camera's feature: its name here, its key, how it is stored (video or image) and its pictures' (h, w)."""

    name: str
    key: str
    stored: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Info:
    """`meta/info.json` of a LeRobot v3 data set."""

    root: Path
    fps: float
    total_frames: int
    total_episodes: int
    features: Mapping[str, Mapping[str, Any]]
    video_path: str | None
    data_path: str | None = None

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a feature; `ValueError` where it is no list of sizes."""
        shape = self.features[key].get("shape")
        if not isinstance(shape, list) or not shape or not all(_whole(size) and size > 0 for size in shape):
            raise ValueError(
                f"{self.root}/meta/info.json: features.{key}.shape={shape!r}, expected a list of sizes such as [4]"
            )
        return tuple(shape)

    def vectors(self) -> list[str]:
        """The features that can be a state or an action."""
        numeric = [key for key, f in self.features.items() if NUMBER.fullmatch(f["dtype"]) and key not in BOOKKEEPING]
        return [
            key for key in numeric if isinstance(shape := self.features[key].get("shape"), list) and len(shape) == 1
        ]

    def names(self, key: str) -> tuple[list[str], str]:
        """One name per dimension of a vector, and what there is to say about it. LeRobot stores a list, nested lists,
        or a dictionary of a list or of positions; where there is no usable name, joints are numbered."""
        size, flat = self.shape(key)[0], _flat(_in_order(self.features[key].get("names")))
        if len(flat) == size == len(set(flat)):
            return flat, ""
        why = (
            f"features.{key}.names in meta/info.json are {len(flat)} for {size} dimensions"
            if len(flat) != size
            else f"features.{key}.names repeat"
        )
        return [
            f"joint{i}" for i in range(size)
        ], f"{why}: joints are numbered, joint0 to joint{size - 1}" if flat else ""

    def known_names(self, keys: Sequence[str]) -> list[str]:
        """Of all dimensions of these vectors, side by side; none where one of them has no usable ones."""
        given = [_flat(_in_order(self.features[key].get("names"))) for key in keys]
        return _flat(given) if given == [self.names(key)[0] for key in keys] else []

    def cameras(self) -> tuple[dict[str, Camera], dict[str, str]]:
        """Cameras by name, and why others are none (depth, one channel, unclear layout), by name."""
        found, others = {}, {}
        for key, feature in self.features.items():
            if feature["dtype"] not in ("video", "image"):
                continue
            name = key.removeprefix("observation.images.")
            if not re.fullmatch(r"[\w.\- ]+", name) or name.startswith("."):
                raise ValueError(
                    f"{self.root}/meta/info.json: the camera {key!r} has a name that cannot name a file; rename the "
                    "feature"
                )
            if self._is_depth(key):  # whatever its shape: LeRobot stores it as a video of three channels too
                others[name] = "is a depth map (is_depth_map in meta/info.json); provla reads colour pictures"
                continue
            try:
                height, width, channels = self._layout(key)
            except ValueError as error:
                others[name] = str(error)
                continue
            if channels != 3:
                others[name] = (
                    f"has {channels} channel{'s' * (channels > 1)} (shape {list(self.shape(key))}); provla reads "
                    "colour pictures of 3"
                )
            else:
                found[name] = Camera(name, key, feature["dtype"], (height, width))
        return found, others

    def _is_depth(self, key: str) -> bool:
        notes = [part for name in ("info", "video_info") if isinstance(part := self.features[key].get(name), Mapping)]
        return any(note.get(flag) for note in notes for flag in ("is_depth_map", "video.is_depth_map"))

    def _layout(self, key: str) -> tuple[int, int, int]:
        """(height, width, channels). The channel is the outer axis of size 1, 3 or 4; where both are, the
        names decide.
        """
        shape, names = self.shape(key), [name.lower() for name in _flat(self.features[key].get("names"))]
        if len(shape) == 2:
            return shape[0], shape[1], 1
        likely = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3, 4)]
        said = (
            [i for i, name in enumerate(names) if name in ("channel", "channels", "c")]
            if len(names) == len(shape)
            else []
        )
        if len(likely) == 2:
            likely = [axis for axis in likely if said == [axis]]
        if len(likely) != 1:
            raise ValueError(
                f"has shape {list(shape)} and names {self.features[key].get('names')!r}, which leave open which axis "
                "is the channel"
            )
        sides = [axis for axis in range(3) if axis != likely[0]]
        if len(names) == 3 and names[sides[0]] in ("width", "w") and names[sides[1]] in ("height", "h"):
            sides.reverse()
        return shape[sides[0]], shape[sides[1]], shape[likely[0]]

    def video(self, key: str, chunk: int, file: int) -> Path:
        """The file of a video; `ValueError` for a pattern that is none or leads out of the data set."""
        return self._file("video_path", video_key=key, chunk_index=chunk, file_index=file)

    def table(self, chunk: int, file: int) -> Path:
        """The parquet file of rows, in the same way."""
        return self._file("data_path", chunk_index=chunk, file_index=file)

    def _file(self, key: str, **numbers: str | int) -> Path:
        pattern = getattr(self, key)
        try:
            name = str(pattern).format(**numbers)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.root}/meta/info.json: {key}={pattern!r} is no pattern of a file ({error})"
            ) from error
        if pattern is None or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{self.root}/meta/info.json: {key}={pattern!r} must name files inside the data set")
        return self.root / name


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in_order(names: Any) -> Any:
    """A dictionary of positions as a list."""
    if isinstance(names, Mapping) and names and all(_whole(at) for at in names.values()):
        return [name for name, _ in sorted(names.items(), key=lambda item: item[1])]
    return names


def _flat(names: Any) -> list[str]:
    """All names in a nest of lists and dictionaries of lists."""
    if isinstance(names, Mapping):
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [name for part in names for name in _flat(part)]
    return [] if names is None else [str(names)]


def read_info(root: Path) -> Info:
    """`ValueError` for a folder that is missing, or a meta/info.json of another schema, with the file and the key."""
    if not root.is_dir():
        raise ValueError(f"dataset.root={str(root)!r}: no such folder")
    file = root / "meta" / "info.json"
    try:
        info = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"dataset.root={str(root)!r} is not a LeRobot data set: it has no meta/info.json") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"{file} is damaged: it holds no dictionary")
    version = str(info.get("codebase_version"))
    if not version.startswith("v3"):
        raise ValueError(
            f"dataset.root={str(root)!r} has schema {version}, provla reads v3; convert it with LeRobot: "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=<id>"
        )
    missing = [key for key in ("fps", "features", "total_frames", "total_episodes") if key not in info]
    if missing:
        raise ValueError(f"{file} has no {missing[0]!r}: not a LeRobot v3 data set")
    fps, features = info["fps"], info["features"]
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise ValueError(f"{file}: fps={fps!r}, expected frames per second")
    for key in ("total_frames", "total_episodes"):
        if not _whole(info[key]) or info[key] < 1:
            raise ValueError(f"{file}: {key}={info[key]!r}, expected a whole number of at least 1")
    if not isinstance(features, dict) or not features:
        raise ValueError(f"{file}: features={features!r:.80}, expected a dictionary of features")
    for key, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise ValueError(f"{file}: features.{key} has no dtype, expected one such as 'float32' or 'video'")
    patterns = [info.get(key) for key in ("video_path", "data_path")]
    for key, pattern in zip(("video_path", "data_path"), patterns, strict=True):
        if pattern is not None and not isinstance(pattern, str):
            raise ValueError(f"{file}: {key}={pattern!r}, expected a pattern of a file")
    return Info(root, float(fps), info["total_frames"], info["total_episodes"], features, *patterns)


def read_tasks(root: Path) -> list[str]:
    """Instructions by `task_index`, from meta/tasks.parquet; empty where the data set has none."""
    file = root / "meta" / "tasks.parquet"
    if not file.is_file():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, page_checksum_verification=True)
        table.validate(full=True)
        texts = [
            name
            for name in table.column_names
            if name != "task_index"
            and pa.types.is_string(table[name].type) | pa.types.is_large_string(table[name].type)
        ]
        if "task_index" not in table.column_names or not texts:
            raise ValueError(f"{file} has no task_index or no text; it has: {', '.join(table.column_names)}")
        rows = dict(
            zip(
                table["task_index"].to_pylist(), table["task" if "task" in texts else texts[0]].to_pylist(), strict=True
            )
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read, it is truncated or damaged: {line(error)}") from error
    if sorted(rows, key=str) != sorted(range(len(table)), key=str):
        raise ValueError(
            f"{file}: task_index holds {sorted(rows, key=str)[:8]}, expected 0 to {len(table) - 1}, each once"
        )
    return [rows[i] if isinstance(rows[i], str) else "" for i in range(len(rows))]


def read_vector(table: Table, info: Info, key: str) -> tuple[Array, dict[int, str], str]:
    """(N,D) float32 of a feature; what is wrong, by row (that row is nan); and what there is to say about the numbers.

    `ValueError` where the column holds no numbers, or whole numbers that float32 cannot hold.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    size, column = info.shape(key)[0], table.columns[key].combine_chunks()
    listed = (
        pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)
    )
    kind = column.type.value_type if listed else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(
            f"{table.root / table.file(0)}: the column {key!r} holds {column.type}, expected vectors of numbers"
        )
    absent = column.is_null().to_numpy(zero_copy_only=False)
    count = (
        pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        if listed
        else np.ones(len(column), dtype=int)
    )
    good = ~absent & (count == size)
    wrong = {
        int(row): "holds nothing" if absent[row] else f"holds {count[row]} numbers, info.json says {size}"
        for row in np.flatnonzero(~good)
    }
    kept = column if good.all() else column.filter(pa.array(good))
    flat = kept.flatten() if listed else kept
    whole = pa.types.is_integer(kind) and not flat.null_count
    raw = (
        flat.to_numpy(zero_copy_only=False)
        if whole
        else pc.cast(flat, pa.float32() if kind == pa.float32() else pa.float64()).to_numpy(zero_copy_only=False)
    )
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32)
    note = ""
    if whole and not np.array_equal(values.astype(np.float64), raw.astype(np.float64)):
        raise ValueError(
            f"{table.root}: {key!r} holds whole numbers up to {np.abs(raw.astype(np.float64)).max():.0f}, which "
            "float32 cannot hold exactly"
        )
    if raw.dtype == np.float64 and np.any((values != raw) & np.isfinite(raw)):
        note = f"{key} is stored in float64 and rounded to float32"
    found = np.full((len(column), size), np.nan, dtype=np.float32)
    found[good] = values.reshape(-1, size)
    return found, wrong, note
