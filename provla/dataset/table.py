"""Parquet files of a data set, laid one after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Rows of all parquet files of a folder, in the order of their names."""

    root: Path
    files: tuple[Path, ...]
    first: Array  # (files,) row where each file begins
    columns: Any  # pyarrow.Table

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def head(self, count: int) -> Table:
        """The first rows alone."""
        kept = int((self.first < count).sum())
        return Table(self.root, self.files[:kept], self.first[:kept], self.columns.slice(0, count))

    def file(self, row: int) -> str:
        """Where a row is stored, relative to the data set."""
        return str(self.place(row)[0].relative_to(self.root))

    def place(self, row: int) -> tuple[Path, int]:
        """The file of a row, and which row of it that is."""
        number = int(np.searchsorted(self.first, row, side="right")) - 1
        return self.files[number], int(row - self.first[number])

    def integers(self, key: str) -> Array:
        """(N,) int64; `ValueError` for a column of something else."""
        import pyarrow as pa

        column = self.columns[key]
        if not pa.types.is_integer(column.type):
            raise ValueError(
                f"{self.root / self.file(0)}: the column {key!r} holds {column.type}, expected whole numbers"
            )
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise ValueError(f"{self.root / self.file(row)}: the column {key!r} holds nothing in row {row}")
        found: Array = column.to_numpy().astype(np.int64)
        return found

    def numbers(self, key: str) -> Array:
        """(N,) float64, nan where there is nothing; `ValueError` for a column of something else."""
        import pyarrow as pa

        column = self.columns[key]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ValueError(f"{self.root / self.file(0)}: the column {key!r} holds {column.type}, expected numbers")
        found: Array = column.to_numpy().astype(np.float64)
        return found

    def texts(self, key: str) -> list[list[str]]:
        """One list of texts per row; a text alone counts as one."""
        found = []
        for row, value in enumerate(self.columns[key].to_pylist()):
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"{self.root / self.file(row)}: the column {key!r} holds {value!r:.60} in row {row}, expected texts"
                )
            found.append(texts)
        return found


def read_table(
    root: Path, folder: str, columns: Sequence[str], optional: Sequence[str] = (), files: Sequence[Path] | None = None
) -> Table:
    """The named columns of all parquet files under `folder`, or of `files`; `optional` ones where they are in every
    file.

    Page checksums are verified where the files have them. Errors: `ValueError` with the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = tuple(sorted((root / folder).rglob("*.parquet") if files is None else files, key=natural))
    if not files:
        raise ValueError(f"{root}/{folder} holds no parquet file: the data set is incomplete")
    parts = []
    for file in files:
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as stored:
                has = set(stored.schema_arrow.names)
                missing = [column for column in columns if column not in has]
                if missing:
                    raise ValueError(
                        f"{file} has no column {missing[0]!r}; it has: "
                        f"{', '.join(sorted(c for c in has if not c.startswith('stats/')))}"
                    )
                part = stored.read(columns=[*columns, *(column for column in optional if column in has)])
            part.validate(full=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{root}/{folder} cannot be read, it is truncated or damaged: {file.relative_to(root)}: {line(error)}"
            ) from error
        parts.append(part)
    common = [column for column in (*columns, *optional) if all(column in part.column_names for part in parts)]
    try:
        whole = pa.concat_tables(
            [part.select(common).replace_schema_metadata() for part in parts], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise ValueError(f"{root}/{folder}: its files hold columns of different types: {error}") from error
    first = np.cumsum([0, *(part.num_rows for part in parts)])[:-1]
    return Table(root, files, first, whole)


def natural(file: Path | str) -> list[tuple[int, int | str]]:
    """Sorts file-999 before file-1000."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(file))]


def line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())
