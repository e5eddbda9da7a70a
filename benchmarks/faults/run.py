"""Does damage for real and counts what survives: `make faults`, or python benchmarks/faults/run.py [name …].

Every `fault_*.py` beside this file holds functions `fault_<what>(place: Path) -> tuple[int, int, str]`: they damage
something in the empty folder `place`, and return how often they tried, how often provla survived, and a note. A
docstring's first paragraph is what RESULTS.md says.
"""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import date
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

# Several processes share the cores: none waits in a loop. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that the Hub would have to know is answered at once

Fault = Callable[[Path], tuple[int, int, str]]
LANES = 2  # faults at the same time: most wait, or keep one core busy
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(wanted: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
    sys.path.insert(0, str(HERE))
    lost = 0
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    commit = told.stdout.strip()
    todo = deque(
        fault
        for file in sorted(HERE.glob("fault_*.py"))
        for name, fault in inspect.getmembers(importlib.import_module(file.stem), inspect.isfunction)
        if name.startswith("fault_") and (not wanted or any(one in f"{file.stem} {name}" for one in wanted))
    )
    running: dict[Any, tuple[Fault, Any, float]] = {}
    while todo or running:
        while todo and len(running) < LANES:
            fault = todo.popleft()
            answer, process = begin(fault)
            running[answer] = fault, process, time.monotonic()
        for answer in wait(list(running)):
            fault, process, begun = running.pop(answer)
            tried, survived, note = end(answer, process)
            lost += survived < tried
            what = " ".join((inspect.getdoc(fault) or fault.__name__).partition("\n\n")[0].split())
            note = re.sub(r"/tmp/\S*", "<folder>", note.replace("|", "¦"))
            row = f"| {what} | {tried} | {survived} | {note} | {time.monotonic() - begun:.0f} | {commit} |"
            print(row, flush=True)
            write([row])
    return int(bool(lost))


def begin(fault: Fault) -> tuple[Any, Any]:
    """The fault, in a process of its own that is forked before anything was computed: one whose threads have begun may
    not fork again. Its answer's connection, and the process.
    """
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_inject, args=(fault, its))
    process.start()
    its.close()
    return ours, process


def end(answer: Any, process: Any) -> tuple[int, int, str]:
    """What a fault has to say, now that it is over."""
    try:
        found: tuple[int, int, str] = answer.recv()
    except EOFError:
        process.join()
        found = 1, 0, f"the injecting process ended with exit code {process.exitcode}"
    process.join()
    return found


def _inject(fault: Fault, answer: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="fault-") as place:
        try:
            answer.send(fault(Path(place)))
        except Exception:
            answer.send((1, 0, traceback.format_exc().strip().splitlines()[-1]))


def write(rows: list[str]) -> None:
    """Into RESULTS.md beside this file; a fault that was not tried now keeps its row."""
    file = HERE / "RESULTS.md"
    earlier = [line for line in file.read_text().splitlines() if line.startswith("| ")][1:] if file.exists() else []
    of = {row.split(" | ")[0]: row for row in [*earlier, *rows]}
    head = f"Made by `make faults`, last on {date.today()}, {os.cpu_count()} cores, {platform.machine()}."
    table = [
        "| what was done | tried | survived | note | seconds | commit |",
        "|---|---|---|---|---|---|",
        *of.values(),
    ]
    file.write_text("\n".join(["# Faults, injected for real", "", head, "", *table, ""]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
