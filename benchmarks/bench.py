"""All benchmarks that stand against something, and a page of what they found: python benchmarks/bench.py [name …]

Each is a command that prints lines of JSON {what, against, ours, theirs, ratio, n}. Lines are kept in
benchmarks/results.jsonl, with date, machine, commit and versions: a name that is asked for is measured again, and
others stay. Writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from provla.command.entry import ROOT
from provla.core.files import write_text
from provla.core.machine import commit, find_device, machine
from provla.core.progress import console

HERE = ROOT / "benchmarks"
BEFORE = "16af15d"  # the default run and its evaluation are held against this commit
# Name → command, and what no program could do better, or what the figure needs to be read rightly.
BENCHMARKS: dict[str, tuple[list[str], str]] = {
    "data": (
        ["data.py", "large"],
        "A sample of 224×224 is 151 kB, and memory is copied at some 10 GB/s: 66 thousand a second on one core.",
    ),
    "lora": (["steps.py", "lora"], "The plain way reads 4 × 64 tokens and makes 4 × 64 × 151,936 logits of them."),
    "frozen": (["steps.py", "frozen"], "What is left is the fusion and the head."),
    "head": (["steps.py", "head"], "The same operations: only how they are laid out differs."),
    "chunk": (
        ["steps.py", "chunk"],
        "The vision encoder reads two pictures anew, 67 GFLOPs, of which two cores do some 420 a second (bf16: 900).",
    ),
    "layout": (["layouts.py"], "Channels last, GroupNorm's backward is what takes longer."),
    "waits": (["waits.py"], "Two trainings on two cores can take no less than one each: twice the time of one alone."),
    "sweep": (["sweeps.py"], "What is left of a run are its steps, a validation and the writing."),
    "startup": (
        ["startup.py"],
        "ratio: ours / theirs. Hydra composes the configuration, once where a key is wrong too.",
    ),
    "memory": (["memory.py"], "ratio: ours / theirs, in MB. Imports alone are a part, which stands in results.jsonl."),
    "default": (["before.py", BEFORE, "run"], "The recording is there on both sides."),
    "evaluation": (
        ["before.py", BEFORE, "evaluation"],
        "Worlds draw in software, in a process per core, on both sides.",
    ),
    "together": (
        ["together.py"],
        "Shared are imports, worlds, and the time in which one policy's worlds work; the cores are the same two.",
    ),
}


def kept(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def measured(name: str) -> list[dict[str, Any]]:
    """The lines of a benchmark; none where it fails, which is said."""
    console.print(f"{name}: python benchmarks/{' '.join(BENCHMARKS[name][0])}")
    command = [sys.executable, str(HERE / BENCHMARKS[name][0][0]), *BENCHMARKS[name][0][1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        console.print(f"{name} ended with {done.returncode}; what was known of it stays")
        return []
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    where = {**machine(find_device("auto")), "cpus": os.cpu_count(), "system": platform.platform()}
    versions = {package: version(package) for package in ("torch", "transformers", "lerobot", "mujoco")}
    made = {"date": time.strftime("%Y-%m-%d"), "commit": commit()["commit"], "machine": where, "versions": versions}
    return [{"benchmark": name, **line, **made} for line in found]


def number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def page(rows: list[dict[str, Any]]) -> str:
    """benchmarks/RESULTS.md."""
    text = ["# What was measured against what", "", "`make bench` makes it, from [results.jsonl](results.jsonl)."]
    text += [
        "Both sides in turns on one machine; medians, of the ratios too (theirs / ours, if a section says no other)."
    ]
    for name, (command, limit) in BENCHMARKS.items():
        mine = [row for row in rows if row["benchmark"] == name]
        text += ["", f"## {name}", "", f"`python benchmarks/{' '.join(command)}`. {limit}", ""]
        if not mine:
            text += ["Not measured yet."]
            continue
        text += ["| what | against | ours | theirs | ratio | n |", "|---|---|---|---|---|---|"]
        for row in mine:
            cells = (number(row.get(key, "")) for key in ("what", "against", "ours", "theirs", "ratio", "n"))
            text.append(f"| {' | '.join(cells)} |")
        last = mine[-1]
        where, versions = last["machine"], ", ".join(f"{k} {v}" for k, v in last["versions"].items())
        device = where.get("gpu") or where["cpu"]
        text += ["", f"{last['date']}, commit {last['commit']}, {device}, {where['threads']} threads; {versions}."]
    return "\n".join(text) + "\n"


def main(asked: list[str]) -> None:
    if unknown := [name for name in asked if name not in BENCHMARKS]:
        sys.exit(f"no benchmark is called {unknown[0]!r}; valid: {', '.join(BENCHMARKS)}")
    file = HERE / "results.jsonl"
    for name in asked or BENCHMARKS:
        if found := measured(name):
            rows = [row for row in kept(file) if row["benchmark"] != name] + found
            write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
            write_text(HERE / "RESULTS.md", page(rows))
    write_text(HERE / "RESULTS.md", page(kept(file)))


if __name__ == "__main__":
    main(sys.argv[1:])
