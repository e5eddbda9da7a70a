"""Rows of arrays that lie in files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_rows(array: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """`array[rows]`. Of a memory-mapped array (from `np.load`) they are read from its file: what is read through the
    mapping stays in the process's memory, and an epoch would bring the whole file there.
    """
    if not isinstance(array, np.memmap) or not array.filename or not array.flags.c_contiguous:
        return array[rows]  # type: ignore[no-any-return]
    found = np.empty((*rows.shape, *array.shape[1:]), array.dtype)
    flat, size = found.reshape(rows.size, -1), array[:1].nbytes
    try:
        file = os.open(array.filename, os.O_RDONLY)
    except FileNotFoundError:  # somebody has cleared it away; the mapping is still there
        return array[rows]  # type: ignore[no-any-return]
    try:
        for one, row in zip(flat, rows.flat, strict=True):
            row = range(len(array))[row]  # as indexing has it: negative from the end, and none beyond it
            if os.preadv(file, [one.view(np.uint8)], array.offset + row * size) != size:
                raise OSError(f"{array.filename} ends within row {row}")
    finally:
        os.close(file)
    return found
