"""`manifest.json`: what belongs into a folder, so that a flipped bit, a missing file or somebody else's is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from provla.core.files import fingerprint, write_text

MANIFEST = "manifest.json"
VERSION = 1


class Damaged(ValueError):
    """A folder that is not what its manifest says. file: which of its files; reason: in words."""

    def __init__(self, folder: Path, file: str, reason: str) -> None:
        super().__init__(f"{folder} is damaged: {file} {reason}")
        self.file, self.reason = file, reason


def write_manifest(folder: Path, **facts: Any) -> None:
    """sha256 and size of every file in `folder`, and `facts` beside them."""
    files = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in _files(folder).items()}
    manifest = {"version": VERSION, **facts, "files": files}
    write_text(folder / MANIFEST, json.dumps(manifest | {"sha256": fingerprint(manifest, 64)}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says; `Damaged` where it does not hold together. The files are not looked at."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if manifest["version"] != VERSION:
            raise Damaged(
                folder, MANIFEST, f"is of version {manifest['version']!r}; this provla reads version {VERSION}"
            )
        if manifest.pop("sha256") != fingerprint(manifest, 64):
            raise Damaged(folder, MANIFEST, "is not as it was written (sha256)")
    except FileNotFoundError as error:
        raise Damaged(folder, MANIFEST, "is missing") from error
    except KeyError as error:
        raise Damaged(folder, MANIFEST, f"has no {error}; was it written by an earlier provla?") from error
    except Damaged:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(folder, MANIFEST, f"cannot be read: {error}") from error
    return manifest


def check_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, once every file was found to be what it says; `Damaged` where one is not.

    A name that leads out of the folder is refused unread. Files that the manifest does not name may lie in the folder,
    where nobody looks, but not in a folder inside it, which is read as a whole.
    """
    manifest, file = read_manifest(folder), MANIFEST
    try:
        for file, entry in manifest["files"].items():
            _check_file(folder, file, entry["sha256"], entry["bytes"])
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(folder, file, f"cannot be read: {error!r}") from error
    for name in _files(folder):
        if "/" in name and name not in manifest["files"]:
            raise Damaged(folder, name, f"is not named in {MANIFEST}")
    return manifest


def check_file(folder: Path, name: str) -> None:
    """`Damaged` where a file of a manifest is not what that says."""
    entry = read_manifest(folder)["files"].get(name, {})
    _check_file(folder, name, entry.get("sha256", ""), entry.get("bytes", 0))


def _check_file(folder: Path, name: str, digest: str, length: int) -> None:
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise Damaged(folder, MANIFEST, f"names {name!r}, which lies outside the folder")
    if not path.is_file():
        raise Damaged(folder, name, "is missing")
    if (found := path.stat().st_size) != length:
        raise Damaged(folder, name, f"has {found} bytes instead of {length}")
    if sha256(path) != digest:
        raise Damaged(folder, name, "has the right size, but not the content that was written (sha256)")


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Name relative to the folder → file, without the manifest."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name != MANIFEST}
