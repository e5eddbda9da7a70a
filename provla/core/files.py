"""Files that are either whole or not there, disks that are full, and names that say what is in them."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provla.core.claims import check_all
from provla.core.errors import NoSpace
from provla.core.secrets import hide_in

PACKAGE = Path(__file__).resolve().parents[1]
# conf/ and experiments/ lie in it: beside the package, or in it where it came as a wheel (setup.py).
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
SWEEP = "sweep.json"  # what a sweep asked, in its folder; the folders beside it are its jobs
REFUSALS = {
    errno.ENOSPC: "no space left on disk",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "the file grows larger than is allowed here",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "writing there is not permitted",
    errno.EPERM: "writing there is not permitted",
}
# What libraries that keep no error number say instead: safetensors, libav, SQLite.
SAYINGS = {
    r"No space left on device|disk is full": errno.ENOSPC,
    r"Disk quota exceeded": errno.EDQUOT,
    r"File too large": errno.EFBIG,
    r"Read-only file system|readonly database": errno.EROFS,
}


def fingerprint(value: Any, length: int = 10) -> str:
    """Short hash of anything JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def data_home() -> Path:
    """Where recordings and caches lie unless `data_dir=` says otherwise."""
    return Path(os.environ.get("PROVLA_DATA") or "~/.cache/provla").expanduser()


@contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """Around anything that writes `path`, of whatever library: a full or unwritable disk becomes `NoSpace`, in words.

    needed: bytes the whole takes, where known. What else is raised passes. Around one another, the outermost names its
    path.
    """
    try:
        yield
    except Exception as error:
        if (reason := _refusal(error, path)) is None:
            raise
        needed = needed or getattr(error, "needed", 0)
        raise NoSpace(f"{path} cannot be written: {reason}; {_sizes(path, needed)}", needed) from error


def in_words(error: Exception) -> Exception:
    """What met a full or unwritable disk outside `writing` (Hydra, say) as `NoSpace`; any other error as it is."""
    if (
        isinstance(error, OSError)
        and isinstance(error.filename, str)
        and (reason := _refusal(error, path := Path(error.filename)))
    ):
        return NoSpace(f"{path} cannot be written: {reason}; {_sizes(path, 0)}")
    return error


def _refusal(error: BaseException | None, path: Path) -> str | None:
    """Why a disk would not take it; None where the error, and those that it was raised from, say something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            # Permission may be missing for reading something else.
            elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(
                path.parent.absolute()
            )
            if error.errno not in (errno.EACCES, errno.EPERM) or not elsewhere:
                return REFUSALS[error.errno]
        for saying, number in SAYINGS.items():
            if re.search(saying, str(error)):
                return REFUSALS[number]
        error = error.__cause__ or error.__context__
    return None


def _sizes(path: Path, needed: int) -> str:
    place = path.absolute()
    while not place.is_dir():
        place = place.parent
    takes = f"it takes {size(needed)}, and " if needed else ""
    free = f"{takes}{size(shutil.disk_usage(place).free)} are free in {place}"
    return f"{free}; free some or write elsewhere (hydra.run.dir=… for a run, data_dir=… for recordings and caches)"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def check_space(folder: Path, needed: int, what: str) -> None:
    """`NoSpace` when fewer than `needed` bytes are free where `folder` lies or will lie."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    if shutil.disk_usage(place).free < needed:
        raise NoSpace(f"{what} will not fit into {folder}: {_sizes(place, needed)}", needed)


@contextmanager
def atomic(path: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary sibling (file, link or folder, to be made by the caller) that takes `path`'s place when the block
    ends well.

    needed: bytes it takes, for the message. `NoSpace` when the disk is full or cannot be written; whatever stood at
    `path` is then as it was. A folder takes another's place in two steps (`.<name>-*.old` lies there in between); all
    else in one.
    """
    partial = path.parent / f".{path.name}-{uuid.uuid4().hex[:8]}.partial"
    with writing(path, needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            flush(partial)
            check_all()  # what this process writes may be another's by now
            if partial.is_dir() and not partial.is_symlink() and os.path.lexists(path):
                old = partial.with_suffix(".old")
                os.replace(path, old)
                os.replace(partial, path)
                remove(old)
            else:
                os.replace(partial, path)
        finally:
            remove(partial)


def flush(path: Path) -> None:
    """Brings a file, or the files of a folder, from memory onto the disk, so that no name outlives what it names when
    the power fails. What a link leads to is no part of it.
    """
    if path.is_symlink():
        return
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())


def remove(path: Path) -> None:
    """Deletes a file, a link (not what it leads to) or a folder, if it is there; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Clears away what writers that died have left in `folder`; what stood there before comes back where nothing took
    its place.

    Only for a folder nobody else writes to.
    """
    for path in folder.glob(".*"):
        if found := re.fullmatch(r"\.(.+)-[0-9a-z_]{8}\.(partial|old)", path.name):
            place = folder / found[1]
            if found[2] == "old" and not os.path.lexists(place):
                os.replace(path, place)
            else:
                remove(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` atomically; `NoSpace` as `atomic`."""
    with atomic(path, len(data)) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically, and no secret with it."""
    write_text(path, json.dumps(hide_in(value), indent=2, default=str) + "\n")


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), end: str = "\r\n") -> str:
    """Rows as CSV, under the columns given, or every column that any row has."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, columns or list(dict.fromkeys(key for row in rows for key in row)), lineterminator=end
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def link_or_copy(source: str, target: str) -> None:
    """For `shutil.copytree`: a hard link where the disk has them, for files that nobody ever writes into."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def refuse_links_out(folder: Path, *names: str) -> None:
    """`ValueError` for a file or folder of these names (all, where none is given) in `folder` that is a link out of it.

    `folder` itself may be reached through a link.
    """
    home = folder.resolve()
    for path in [folder / name for name in names] if names else folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ValueError(
                f"{path} is a link that leads out of {folder}, to {path.resolve()}; nothing was changed. Put the files "
                "themselves there, or delete the link."
            )
