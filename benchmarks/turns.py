"""Two ways to do a thing, in turns: what benchmarks print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def in_turns(
    what: str, against: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 5, **more: Any
) -> None:
    """Prints a line of JSON: seconds of each call (medians), and the median of theirs / ours over rounds of both."""
    taken: list[tuple[float, float]] = []
    for _ in range(rounds + 1):  # the first warms up
        pair = [seconds(call) for call in (ours, theirs)]
        taken.append((pair[0], pair[1]))
    told(what, against, taken[1:], **more)


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def told(what: str, against: str, taken: list[tuple[float, float]], **more: Any) -> None:
    """The line of pairs (ours, theirs)."""
    mine, other = zip(*taken, strict=True)
    row = {"what": what, "against": against, "ours": _rounded(median(mine)), "theirs": _rounded(median(other))}
    ratio = _rounded(median(b / a for a, b in taken))
    print(json.dumps(row | {"ratio": ratio, "n": len(taken)} | more), flush=True)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def chosen(known: Mapping[str, Callable[[], None]]) -> None:
    """Runs those that the command line names, or all."""
    asked = sys.argv[1:] or list(known)
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"nothing is called {unknown[0]!r} here; valid: {', '.join(known)}")
    for name in asked:
        known[name]()
