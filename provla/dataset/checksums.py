"""Checksums of files: computed once and remembered by what `stat` says, compared with those that came with the
files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from provla.core.errors import NoSpace
from provla.core.files import fingerprint, write_json
from provla.core.manifest import sha256

RECORD = "recording.json"  # of a recording made here; holds the checksums of its files


def signature(file: Path) -> list[int]:
    """What changes when a file is written to, also where its size and time of modification are put back."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def sha256_of_all(root: Path) -> dict[str, str]:
    """Of every file under `root`, by its path within; for `RECORD`."""
    return {
        file.relative_to(root).as_posix(): sha256(file)
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != RECORD
    }


class Checksums:
    """sha256 of a data set's files. A file is read again where its `signature` has changed.

    memory: a folder for what is remembered. fresh: read every file again. wrong: why a file is not what it was when it
    was recorded or fetched, by its path; known for recordings made here and for what came from the Hub. origin: where
    that is known from (with fresh).
    """

    def __init__(self, root: Path, memory: Path, files: Iterable[Path], fresh: bool = False) -> None:
        self.root = root
        place = memory / f"{root.name}_{fingerprint(str(root.resolve()))}.json"
        before = {} if fresh else _read(place)
        recorded = _recorded(root)
        known: dict[str, Any] = {}
        self.wrong: dict[str, str] = {}
        for file in files:
            name = file.relative_to(root).as_posix()
            if not file.is_file():
                if name in recorded:
                    self.wrong[name] = f"is missing: {RECORD} names it; record or fetch the data set again"
                continue
            now = signature(file)
            old = before.get(name)
            if isinstance(old, dict) and old.get("signature") == now and old.get("recorded") == recorded.get(name):
                known[name] = old
                continue
            digest = sha256(file)
            known[name] = {
                "signature": now,
                "sha256": digest,
                "recorded": recorded.get(name),
                "wrong": _wrong(root, file, name, digest, recorded),
            }
        self._place, self._before = place, before
        self._known = known
        self.wrong |= {name: entry["wrong"] for name, entry in known.items() if entry["wrong"]}
        fetched = any(_fetched(root, root / name, name) for name in known) if fresh else False
        self.origin = f"the sha256 in {RECORD}" if recorded else "what the Hub's client noted" if fetched else ""

    def remember(self) -> None:
        """For the next time."""
        if any(self._before.get(name) != entry for name, entry in self._known.items()):
            with suppress(NoSpace):  # what cannot be remembered is computed again
                write_json(self._place, self._before | self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, file: Path) -> str:
        """Empty for a file that is not there."""
        entry = self._known.get(file.relative_to(self.root).as_posix())
        return str(entry["sha256"]) if entry else ""


def _read(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recorded(root: Path) -> dict[str, str]:
    found = _read(root / RECORD).get("sha256")
    return found if isinstance(found, dict) else {}


def _wrong(root: Path, file: Path, name: str, digest: str, recorded: dict[str, str]) -> str:
    """Why the file is not what it was; empty where nothing is known against it."""
    if recorded and recorded.get(name) != digest:
        differs = f"its sha256 differs from that in {RECORD}"
        return f"is not what was recorded ({differs}): damaged or changed; record or fetch the data set again"
    fetched = _fetched(root, file, name)
    if len(fetched) == 64 and fetched != digest:
        return "is not what the Hub sent (its sha256 differs): damaged or changed; fetch the data set again"
    if len(fetched) == 40 and file.stat().st_size < 2**26:
        content = file.read_bytes()
        if fetched != hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest():
            return "is not what the Hub sent (its git hash differs): damaged or changed; fetch the data set again"
    return ""


def _fetched(root: Path, file: Path, name: str) -> str:
    """What the Hub's client noted of a file it fetched: sha256, or git's hash of a small one. In its cache it is the
    name of the blob; in a local folder it stands in a note beside, good until the file is changed."""
    mark = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
    if file.is_symlink() and mark.fullmatch(blob := Path(os.readlink(file)).name):
        return blob
    with suppress(OSError, ValueError, IndexError):
        _, etag, when = (root / ".cache" / "huggingface" / "download" / f"{name}.metadata").read_text().splitlines()[:3]
        if mark.fullmatch(etag) and file.stat().st_mtime <= float(when) + 1:
            return etag
    return ""
