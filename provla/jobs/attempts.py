"""How often a job's process was killed: counted before the job starts, so that one that takes its process with it does
not end its sweep for ever.

Whoever is killed cannot say so. So a job leaves a mark when it starts and takes it back however it ends, by an error or
a signal too. A mark that is still there was left by a process that was killed (SIGKILL, as for lack of memory). That
counts against the job, unless it got further meanwhile (a newer checkpoint) or its machine was started anew, which can
be told of this very host alone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from provla.core.claims import HERE, boot, holder
from provla.core.files import write_json

MARK = "attempt.json"
CLAIM = ".claim"  # in a run's folder: who is at work there (see `provla.jobs.sweep.alone`)


def begin(folder: Path) -> None:
    """Leaves the mark of a job that starts in `folder`, on the disk before anything that might kill it."""
    mark = {"running": True, "killed": killed(folder), "step": _step(folder), "boot": boot(), "host": HERE.name}
    write_json(folder / MARK, mark)


def end(folder: Path) -> None:
    """Takes the mark back: the job ended of its own, or by a signal that it could answer."""
    state = _read(folder)
    before = 0 if _step(folder) > state.get("step", 0) else state.get("killed", 0)
    if before:
        write_json(folder / MARK, {**state, "running": False})
    else:
        (folder / MARK).unlink(missing_ok=True)


def forgive(folder: Path) -> None:
    """Takes the last start back: the process was asked to end, or killed because of another job."""
    write_json(folder / MARK, {**_read(folder), "running": False})


def killed(folder: Path) -> int:
    """How often in a row the job's process was killed without getting further; a job that runs right now counts as
    killed (see `lost`).
    """
    state = _read(folder)
    if not state.get("running"):
        return int(state.get("killed", 0))
    if _step(folder) > state.get("step", 0):
        return 0
    anew = state.get("host", HERE.name) == HERE.name and state.get("boot") != boot()
    return int(state.get("killed", 0)) + (not anew)


def begun(folder: Path) -> bool:
    """Whether a process started the job and has not said that it ended: it runs, or was killed. Reads, and no more."""
    return bool(_read(folder).get("running"))


def lost(folder: Path) -> bool:
    """Whether a process started the job, ended without a word, and no other is at work on it."""
    return begun(folder) and not busy(folder)


def busy(folder: Path) -> bool:
    """Whether a process is at work in a run's folder; of one on another host, this may wait for its beat."""
    return bool(holder(folder / CLAIM))


def _read(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / MARK).read_text())
        if isinstance(found, dict):
            return found
    return {}


def _step(folder: Path) -> int:
    """Of the latest checkpoint; 0 where there is none."""
    return max(
        (int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*") if path.name[5:].isdecimal()), default=0
    )
