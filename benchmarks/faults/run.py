"""Does damage for real and counts what survives: `make faults`, or python benchmarks/faults/run.py [name …].

Every `fault_*.py` beside this file holds functions `fault_<what>(place: Path) -> tuple[int, int, str]`: they damage something in the empty
folder `place`, and return how often they tried, how often provla survived, and a note. A docstring's first line is what RESULTS.md says.
"""

from __future__ import annotations

import importlib
import inspect
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(wanted: list[str]) -> int:
    sys.path.insert(0, str(HERE))
    rows, lost = [], 0
    for file in sorted(HERE.glob("fault_*.py")):
        for name, fault in inspect.getmembers(importlib.import_module(file.stem), inspect.isfunction):
            if not name.startswith("fault_") or (wanted and not any(one in f"{file.stem} {name}" for one in wanted)):
                continue
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="fault-") as place:
                try:
                    tried, survived, note = fault(Path(place))
                except Exception:
                    tried, survived, note = 1, 0, traceback.format_exc().strip().splitlines()[-1]
            lost += survived < tried
            what = (inspect.getdoc(fault) or name).splitlines()[0]
            rows.append(f"| {what} | {tried} | {survived} | {note} | {time.monotonic() - begun:.0f} |")
            print(rows[-1], flush=True)
    if not wanted:
        write(rows)
    return int(bool(lost))


def write(rows: list[str]) -> None:
    """RESULTS.md beside this file."""
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False)
    head = f"Made by `make faults` on {date.today()}, {os.cpu_count()} cores, {platform.machine()}, commit {commit.stdout.strip()}."
    table = ["| what was done | tried | survived | note | seconds |", "|---|---|---|---|---|", *rows]
    (HERE / "RESULTS.md").write_text("\n".join(["# Faults, injected for real", "", head, "", *table, ""]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
