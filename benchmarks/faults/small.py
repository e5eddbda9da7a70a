"""Small real runs for the faults: the fake data set, a policy that trains in a second."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import FAKE, compose  # noqa: E402


def config(*overrides: str) -> dict[str, Any]:
    """Eight steps, a checkpoint at every second; `trainer.keep` and more as overrides."""
    return compose(*FAKE, "logger=csv", "trainer.max_steps=8", *overrides)


def train(folder: Path, composed: dict[str, Any]) -> tuple[str, str]:
    """Runs in this process; the error that it ends with (empty: none), and what the console was told."""
    from provla.core import progress
    from provla.run.train import train

    told, kept = io.StringIO(), progress.console.file
    progress.console.file = told
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            train(composed, folder, {})
        error = ""
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    finally:
        progress.console.file = kept
    return error, " ".join(told.getvalue().split())


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without a word on the console."""
    from provla.core.progress import console

    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def interrupt(folder: Path) -> None:
    """As if the run had died after its last checkpoint."""
    (folder / "result.json").unlink(missing_ok=True)
    for file in (folder / "policy").rglob("*"):
        if file.is_file():
            file.unlink()
