"""Two ways to do a thing, in turns: what benchmarks print."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
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


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, the calls taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            took = 1000 * seconds(call)
            if number >= 2:  # the first rounds warm up
                taken[name].append(took)
    return {name: median(found) for name, found in taken.items()}


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def told(what: str, against: str, taken: list[tuple[float, float]], share: bool = False, **more: Any) -> None:
    """The line of pairs (ours, theirs). ratio: theirs / ours; share: ours / theirs."""
    mine, other = zip(*taken, strict=True)
    row = {"what": what, "against": against, "ours": _rounded(median(mine)), "theirs": _rounded(median(other))}
    ratio = _rounded(median(a / b if share else b / a for a, b in taken))
    print(json.dumps(row | {"ratio": ratio, "n": len(taken)} | more), flush=True)


def held(name: str, file: str = "status", process: int | str = "self") -> float:
    """A number of a process's memory, as /proc has it [MB]; 0 where it has ended."""
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        text = ""
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found or process != "self", f"no {name} in /proc/self/{file}"
    return int(found[1]) / 1024 if found else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def chosen(known: Mapping[str, Callable[[], None]]) -> None:
    """Runs those that the command line names, or all."""
    asked = sys.argv[1:] or list(known)
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"nothing is called {unknown[0]!r} here; valid: {', '.join(known)}")
    for name in asked:
        known[name]()
