"""The tracker that tracks nothing, from which all others come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provla.core.result import Result


class NoLogger:
    """Nothing is kept but the run's result."""

    def start(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        group: str | None,
        history: Sequence[Mapping[str, float]],
        tags: Sequence[str] = (),
    ) -> None:
        """history: the rows already logged before this start, where a run is resumed. tags: words to find the
        run by.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """metrics: name → number."""

    def media(self, plots: Sequence[Path], videos: Sequence[Path]) -> None:
        """Files to show."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal keys: `chunks`, predicted and demonstrated, a row per observation, joint and step;
        `episodes`.
        """

    def checkpoint(self, folder: Path, aliases: Sequence[str]) -> None:
        """A checkpoint that was written just now. aliases: what it is: latest, best."""

    def finish(self, result: Result, failed: bool = False) -> None:
        """result: of one that failed, what is known."""
