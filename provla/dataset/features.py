"""What a frozen encoder makes of the frames: computed once, memory-mapped, shared by all runs that would compute it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from provla.core.claims import claimed
from provla.core.files import atomic, check_space, write_json, writing
from provla.core.manifest import sha256
from provla.core.progress import console, progress_bars
from provla.dataset.checksums import signature
from provla.dataset.joined import Joined, Pictures
from provla.dataset.rows import read_rows

Encode = Callable[[Tensor], Tensor]
AT_ONCE = 16  # frames
KINDS = {str(kind): kind for kind in (torch.float32, torch.float16, torch.bfloat16)}


@dataclass(frozen=True)
class Features:
    """(N,…), a row per frame; memory-mapped read-only. kind: of its numbers; numpy knows no bfloat16."""

    rows: NDArray[Any]
    kind: torch.dtype

    def __getitem__(self, rows: NDArray[Any]) -> Tensor:
        return torch.from_numpy(read_rows(self.rows, rows)).view(self.kind)


def frames_digest(frames: Pictures) -> str:
    """Of all pictures, whichever data set they come from; a frame cache's own, which were taken when it was made."""
    if isinstance(frames, np.memmap) and frames.filename:
        notes = Path(frames.filename).with_suffix(".json")
        try:
            return hashlib.sha256("".join(json.loads(notes.read_text())["sha256"]).encode()).hexdigest()
        except (OSError, ValueError, KeyError, TypeError):
            pass
    if isinstance(frames, Joined):
        return hashlib.sha256("".join(map(frames_digest, frames.parts)).encode()).hexdigest()
    digest = hashlib.sha256(str(frames.shape).encode())
    for first in range(0, len(frames), 256):
        digest.update(np.ascontiguousarray(frames[first : first + 256]).data)
    return digest.hexdigest()


def feature_cache(path: Path, camera: str, frames: Pictures, encode: Encode) -> Features:
    """`path` (.npy), encoded now if it is not there. The file appears whole or not at all; of several processes one
    encodes and the others wait. One that is no longer what was written is made again, with a line that says so.

    encode: (M,3,h,w) uint8 → (M,…). `NoSpace` before the first frame is encoded, where the disk is too small.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path.with_suffix(".claim")):
            wrong = _wrong(path, len(frames))
            if wrong and path.is_file():
                console.print(f"the feature cache {path} is damaged ({wrong}); it is made again")
            if wrong:
                _encode_into(path, camera, frames, encode)
    kind = json.loads(path.with_suffix(".json").read_text())["kind"]
    return Features(np.load(path, mmap_mode="r", allow_pickle=False), KINDS[kind])


def _wrong(path: Path, count: int) -> str:
    """Why a file is not what was written; empty where it is. It is not read, and no encoder runs, while the file's size
    and times are those of then.
    """
    try:
        said = json.loads(path.with_suffix(".json").read_text())
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(rows) != count or rows.dtype.itemsize != KINDS[said["kind"]].itemsize:
            return f"it holds {rows.shape} {rows.dtype}"
        if said["signature"] != signature(path):
            if said["sha256"] != sha256(path):
                return "another sha256"
            write_json(path.with_suffix(".json"), {**said, "signature": signature(path)})
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    return ""


def _stored(features: Tensor) -> NDArray[Any]:
    """As numpy can hold it."""
    features = features.detach().cpu().contiguous()
    return (features.view(torch.uint16) if features.dtype == torch.bfloat16 else features).numpy()


def _encode_into(path: Path, camera: str, frames: Pictures, encode: Encode) -> None:
    one = encode(torch.from_numpy(np.array(frames[:1])))
    kind, shape = _stored(one).dtype, (len(frames), *one.shape[1:])
    needed = int(np.prod(shape)) * kind.itemsize + 2**20
    check_space(path.parent, needed, "the feature cache")
    for stale in path.parent.glob(f".{path.name}-*.partial"):
        stale.unlink(missing_ok=True)
    # Written rather than mapped: on a full disk `write` raises, a mapping kills the process.
    with atomic(path, needed) as partial, progress_bars() as bars, partial.open("wb") as file:
        bar = bars.add_task("encoding", total=len(frames), note=camera)
        np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
            file, {"descr": kind.str, "fortran_order": False, "shape": shape}
        )
        for first in range(0, len(frames), AT_ONCE):
            block = np.array(frames[first : first + AT_ONCE])
            file.write(_stored(encode(torch.from_numpy(block))).tobytes())
            bars.advance(bar, len(block))
    said = {"kind": str(one.dtype), "signature": signature(path), "sha256": sha256(path)}
    write_json(path.with_suffix(".json"), said)
