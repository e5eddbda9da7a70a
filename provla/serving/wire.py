"""Messages as openpi's client packs them: msgpack, and an array as its bytes with dtype and shape. No pickle is read or
written, so an array of objects cannot travel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # dtypes that are nothing but numbers
LONGEST = 4096  # members of a list or a map: arrays are none


class Refused(ValueError):
    """A message that cannot be answered, and why."""


def pack(message: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, default=_packable)
    return packed


def unpack(data: bytes | str) -> dict[str, Any]:
    """`Refused` for what is no whole map of text to texts, numbers, lists, maps and arrays of numbers."""
    if isinstance(data, str):
        raise Refused("a text frame: observations come packed in a binary one (openpi_client.msgpack_numpy)")
    try:
        found = msgpack.unpackb(
            data, object_hook=_array, max_array_len=LONGEST, max_map_len=LONGEST, max_ext_len=0, strict_map_key=True
        )
    except Refused:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # as many kinds as there are ways to be cut off
        raise Refused(
            f"{len(data)} bytes that are no whole msgpack message ({str(error) or type(error).__name__}); send what "
            "openpi_client.msgpack_numpy.packb makes of an observation"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Refused(f"a message that is a {type(found).__name__}: expected a map of names to values")
    return found


def _packable(value: Any) -> Any:
    if isinstance(value, np.ndarray) and NUMBERS.fullmatch(value.dtype.str):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic) and NUMBERS.fullmatch(value.dtype.str):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} cannot be packed")


def _array(found: dict[Any, Any]) -> Any:
    """A map that stands for an array, as one; any other as it is."""
    if b"__ndarray__" in found:
        dtype, data, shape = _dtype(found), found.get(b"data"), _shape(found.get(b"shape"))
        if not isinstance(data, bytes) or shape is None:
            raise Refused("an array without bytes or shape: expected data, dtype and shape")
        if (needs := math.prod(shape) * dtype.itemsize) != len(data):
            raise Refused(f"an array of shape {shape} and dtype {dtype.str} has {needs} bytes, and {len(data)} came")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in found:
        dtype, data = _dtype(found), found.get(b"data")
        if not isinstance(data, bool | int | float):
            raise Refused(f"a number of dtype {dtype.str} that is a {type(data).__name__}")
        try:
            return dtype.type(data)
        except (OverflowError, ValueError) as error:
            raise Refused(f"{data!r} is no number of dtype {dtype.str}") from error
    if b"nd" in found:
        raise Refused(
            "an array as the package msgpack-numpy packs it; use openpi_client.msgpack_numpy, or the same keys"
        )
    return found


def _dtype(found: Mapping[Any, Any]) -> np.dtype[Any]:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise Refused(
            f"an array of dtype {name!r}: arrays hold numbers (bool, whole numbers, floats); one of objects would have "
            "to be unpickled, which this server never does"
        )
    return np.dtype(name)


def _shape(given: Any) -> list[int] | None:
    if not isinstance(given, list) or len(given) > 8:
        return None
    return given if all(type(length) is int and 0 <= length < 2**40 for length in given) else None
