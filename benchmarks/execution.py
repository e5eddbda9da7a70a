"""What lateness costs, by how chunks are executed: python benchmarks/execution.py outputs/<run>

Judges one trained policy on the same episodes with whole chunks, averaged ones and continued ones, at delays of 0, 4
and 8 control steps, without training. Judgements lie under outputs/execution and are kept; writes
benchmarks/execution.csv and prints the README's table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from provla.command.entry import ROOT
from provla.core.files import csv_text, write_text

OUT = ROOT / "outputs" / "execution"
# Averaging looks at every step, so a chunk may arrive one step late and no later; every=8 averages two.
KINDS = {"chunk": [], "ensemble": ["execution.every=8"], "rtc": []}
DELAYS = (0, 4, 8)


def main(run: Path) -> None:
    rows = []
    for kind, options in KINDS.items():
        for delay in DELAYS:
            folder = OUT / f"{kind}_{delay}"
            if not (folder / "result.json").is_file():
                how = [f"execution={kind}", f"execution.delay={delay}", *options]
                command = [sys.executable, "-m", "provla.evaluate", f"checkpoint={run}", f"hydra.run.dir={folder}"]
                subprocess.run([*command, *how], check=True, cwd=ROOT)
            cell = json.loads((folder / "result.json").read_text())["success"]["success_rate"]
            rows.append({"execution": kind, "delay": delay} | {key: cell[key] for key in ("rate", "low", "high")})
            rows[-1] |= {"episodes": cell["episodes"]}
    write_text(ROOT / "benchmarks" / "execution.csv", csv_text(rows))
    print("| | " + " | ".join(f"{delay} steps late" for delay in DELAYS) + " |\n" + "|---" * (len(DELAYS) + 1) + "|")
    for kind in KINDS:
        cells = [f"{r['rate']:.0%} ({r['low']:.0%} – {r['high']:.0%})" for r in rows if r["execution"] == kind]
        print(f"| `execution={kind}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
