"""metrics.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from provla.core.files import csv_text, write_text, writing
from provla.logger.parts import NoLogger


class CsvLogger(NoLogger):
    """metrics.csv in the run's folder: a row per logged step, a column per metric."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._columns = ["step"]

    def start(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        group: str | None,
        history: Sequence[Mapping[str, float]],
        tags: Sequence[str] = (),
    ) -> None:
        self._path = folder / "metrics.csv"
        self._rows = [dict(row) for row in history]
        self._columns = list(dict.fromkeys(["step", *(key for row in self._rows for key in row)]))
        self._write()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        self._rows.append(row)
        if set(row) <= set(self._columns):
            with writing(self._path), self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._columns = list(dict.fromkeys([*self._columns, *row]))
            self._write()

    def _write(self) -> None:
        write_text(self._path, csv_text(self._rows, self._columns))
