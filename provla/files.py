"""Files that are either whole or not there, and names that say what is in them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fingerprint(value: Any, length: int = 10) -> str:
    """Short hash of anything JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling (file or folder, to be made by the caller) that takes `path`'s place when the block ends well.

    `ValueError` when the disk is full; whatever stood at `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}-{uuid.uuid4().hex[:8]}.partial"
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            old = partial.with_suffix(".old")
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"no space left on disk while writing {path}; free some or move the outputs (hydra.run.dir=…, data_dir=…)") from error
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    with atomic(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def check_space(folder: Path, needed: int, what: str) -> None:
    """`ValueError` when fewer than `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{what} needs about {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free; free some or choose another place with data_dir=…"
        )
