"""The README's table from outputs/readme/*/result.json: python benchmarks/results.py

Writes benchmarks/results.csv and prints the table as Markdown.
"""

from __future__ import annotations

import csv
import json

from provla.command.entry import ROOT

COLUMNS = (
    "run",
    "success",
    "low",
    "high",
    "episodes",
    "trajectory_mse",
    "trainable_parameters",
    "train_seconds",
    "wall_seconds",
    "ms_per_chunk",
    "peak_memory_mb",
    "commit",
)


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
                "trajectory_mse": round(result["metrics"]["trajectory_mse"], 4),
                "trainable_parameters": result["parameters"]["trainable"],
                "train_seconds": round(result["train_seconds"]),
                "wall_seconds": round(result["wall_seconds"]),
                "ms_per_chunk": round(result["ms_per_chunk"]),
                "peak_memory_mb": round(result["peak_memory_mb"]),
                "commit": result["commit"],
            }
        )
    with (ROOT / "benchmarks" / "results.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(
        "| run | success (95 % Wilson) | trajectory MSE | trainable parameters | training | ms per chunk "
        "|\n|---|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['run']} | {row['success']:.0%} ({row['low']:.0%} – {row['high']:.0%}) | "
            f"{row['trajectory_mse']:.3f} | {row['trainable_parameters'] / 1e6:.2f} M | {row['train_seconds']} s | "
            f"{row['ms_per_chunk']} |"
        )


if __name__ == "__main__":
    main()
