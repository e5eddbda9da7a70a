"""The README's table from outputs/readme/*/result.json: python benchmarks/results.py

Writes benchmarks/results.csv and prints the table as Markdown.
"""

from __future__ import annotations

import json
from typing import Any

from provla.command.entry import ROOT
from provla.core.files import csv_text, write_text

COLUMNS = (
    "run",
    "success",
    "low",
    "high",
    "episodes",
    "opposite",
    "trajectory_mse",
    "trainable_parameters",
    "train_seconds",
    "wall_seconds",
    "ms_per_chunk",
    "peak_memory_mb",
    "commit",
)


def trained(result: dict[str, Any]) -> dict[str, Any]:
    """What a training says besides what a judgement does."""
    return {
        "trajectory_mse": round(result["metrics"]["trajectory_mse"], 4),
        "trainable_parameters": result["parameters"]["trainable"],
        "train_seconds": round(result["train_seconds"]),
        "wall_seconds": round(result["wall_seconds"]),
        "ms_per_chunk": round(result["ms_per_chunk"]),
        "peak_memory_mb": round(result["peak_memory_mb"]),
    }


def main() -> None:
    rows = []
    for file in sorted((ROOT / "outputs" / "readme").glob("*/result.json")):
        result = json.loads(file.read_text())
        if result["status"] != "completed":
            print(f"{file.parent.name}: {result['status']}")
            continue
        cell = result["success"]["success_rate"]
        rows.append(
            {
                "run": file.parent.name,
                "success": cell["rate"],
                "low": round(cell["low"], 3),
                "high": round(cell["high"], 3),
                "episodes": cell["episodes"],
                "opposite": cell.get("ended/opposite", 0),
                "commit": result["commit"],
            }
            | (trained(result) if "train_steps" in result else {})
            | {task: one["rate"] for task, one in result["success"].items() if task != "success_rate"}
        )
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)]))
    write_text(ROOT / "benchmarks" / "results.csv", csv_text(rows, columns))
    print("| run | success (95 % Wilson) | did the opposite | trajectory MSE | trainable | training | ms per chunk |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        rest = "| | | |"
        if "train_seconds" in row:
            rest = (
                f"{row['trajectory_mse']:.3f} | {row['trainable_parameters'] / 1e6:.2f} M | {row['train_seconds']} s | "
                f"{row['ms_per_chunk']} |"
            )
        print(
            f"| {row['run']} | {row['success']:.0%} ({row['low']:.0%} – {row['high']:.0%}) | "
            f"{row['opposite'] / row['episodes']:.0%} | {rest}"
        )


if __name__ == "__main__":
    main()
