"""The reference experiment at full size, with random weights and a small local data set: python benchmarks/reference.py

Runs `experiments=reference` for quant none, 8bit and 4bit, each in a process of its own: on a CPU 20 steps of 1 × 10
samples, on a CUDA GPU 100 steps of 32 samples in bf16, there with and without torch.compile too. Writes
benchmarks/reference.csv (a row per run, with the device and the day) and prints the README's table. Finished runs are
kept under outputs/reference.
"""

from __future__ import annotations

import csv
import datetime
import json
import platform
import subprocess
import sys
from typing import Any

import torch
from aloha import write

from provla.command.entry import ROOT
from provla.core.files import csv_text, write_text

OUT = ROOT / "outputs" / "reference"
CSV = ROOT / "benchmarks" / "reference.csv"


def run(name: str, *overrides: str) -> dict[str, Any]:
    """result.json of one run."""
    folder = OUT / name
    data = OUT / "aloha"
    if not data.exists():
        write(data, episodes=10, steps=60)
    arguments = [
        sys.executable,
        "-m",
        "provla.train",
        "experiments=reference",
        "vision.pretrained=false",
        "text.pretrained=false",
        f"dataset.root={data}",
    ]
    arguments.append("trainer.warmup_steps=0.1")  # of a few steps
    subprocess.run([*arguments, "logger=csv", f"hydra.run.dir={folder}", *overrides], check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def row(device: str, quant: str, compiled: bool, batch: int, result: dict[str, Any]) -> dict[str, Any]:
    errors = {key: report["error"] for key, report in result["quantization"].items()}
    seconds = result["train_seconds"] / result["train_steps"]
    return {
        "device": device,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quant": quant,
        "compile": compiled,
        "samples_per_step": batch,
        "seconds_per_step": round(seconds, 3),
        "samples_per_second": round(batch / seconds, 1),
        "ms_per_chunk": round(result["ms_per_chunk"]),
        "peak_memory_gb": round(result["peak_memory_mb"] / 1024, 2),
        "peak_gpu_memory_gb": round(result["peak_gpu_memory_mb"] / 1024, 2) if "peak_gpu_memory_mb" in result else "",
        "trainable_parameters": result["parameters"]["trainable"],
        "total_parameters": result["parameters"]["total"],
        "megabytes": round(result["parameters"]["bytes"] / 1e6),
        "vision_error": "" if errors["vision"] is None else round(errors["vision"], 4),
        "text_error": "" if errors["text"] is None else round(errors["text"], 4),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} cores, {platform.machine()}"
    rows: list[dict[str, Any]] = []
    for quant in ("none", "8bit", "4bit"):
        for compiled in (False, True) if cuda else (False,):
            overrides = [f"quant={quant}", f"policy.compile={str(compiled).lower()}", "trainer.val_samples=8"]
            overrides += (
                ["trainer.max_steps=100", "trainer.batch_size=32", "trainer.grad_accumulation=1"]
                if cuda
                else ["trainer.max_steps=20"]
            )
            name = "-".join([device.replace(" ", "_").replace(",", ""), quant, *(["compiled"] if compiled else [])])
            rows.append(row(device, quant, compiled, 32 if cuda else 10, run(name, *overrides)))
    kept = [r for r in csv.DictReader(CSV.open()) if r["device"] != device] if CSV.exists() else []
    write_text(CSV, csv_text([*kept, *rows], list(rows[0])))
    print(
        "| device | quant | compile | s per step | samples/s | ms per chunk | peak memory | trainable / total | "
        "weights | error vision, text |\n" + "|---" * 10 + "|"
    )
    for r in [*kept, *rows]:
        memory = f"{r['peak_gpu_memory_gb'] or r['peak_memory_gb']} GB"
        size = f"{int(r['trainable_parameters']) / 1e6:.2f} / {int(r['total_parameters']) / 1e6:.0f} M"
        error = f"{float(r['vision_error']):.1%}, {float(r['text_error']):.1%}" if r["vision_error"] != "" else ""
        speed = f"{r['seconds_per_step']} | {r['samples_per_second']} | {r['ms_per_chunk']}"
        print(
            f"| {r['device']}, {r['date']} | {r['quant']} | {r['compile']} | {speed} | {memory} | {size} | "
            f"{r['megabytes']} MB | {error} |"
        )


if __name__ == "__main__":
    main()
