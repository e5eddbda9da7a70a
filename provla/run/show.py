"""What a run says on the console, and how trackers name it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from provla.core.identity import NODES
from provla.core.progress import console
from provla.core.result import Result
from provla.jobs.sweep import load_sweep
from provla.run.setting import Setting


def announce(policy: Any, parameters: Mapping[str, Any], setting: Setting, device: torch.device) -> None:
    """The table a run begins with."""
    data, train, val = setting.data, len(setting.learn.episodes), len(setting.held.episodes)
    console.print(
        f"data: {train} training and {val} validation episodes, {len(data.actions)} steps, {len(data.instructions)} "
        f"instructions ({data.source})"
    )
    if sources := setting.learn.sources():
        how = ", each source normalised by statistics of its own" if setting.spec.sources else ""
        table = Table(title=f"the mix{how}", title_justify="left")
        for column in ("source", "training episodes", "validation", "steps", "share of samples", "times an epoch"):
            table.add_column(column, justify="left" if column == "source" else "right")
        for name, (share, one) in sources.items():
            counts = len(one.episodes), len(data.parts[name].val), len(one)
            times = share * len(setting.learn) / len(one)
            table.add_row(name, *(f"{count:,}" for count in counts), f"{share:.1%}", f"{times:.2f}")
        console.print(table)
    table = Table(title=f"parameters, on {device}", title_justify="left")
    for column, justify in (
        ("part", "left"),
        ("train", "right"),
        ("in all", "right"),
        ("MB", "right"),
        ("quantised", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    reports = getattr(policy, "quant_report", {})
    for name, count in [*parameters["parts"].items(), ("all", parameters)]:
        report, note = reports.get(name), ""
        if report is not None and report.layers:
            note = f"{report.layers} layers, {report.bytes_before / 1e6:.2f} → {report.bytes_after / 1e6:.2f} MB"
            note += "" if report.error is None else f", error {report.error:.1%}"
        table.add_row(name, f"{count['trainable']:,}", f"{count['total']:,}", f"{count['bytes'] / 1e6:.1f}", note)
    console.print(table)


def show(result: Result, folder: Path) -> None:
    """The short table a run ends with."""
    if result.success:
        table = Table(title="closed loop", title_justify="left")
        counted = [key for key in ("ended/opposite", "ended/unsafe") if any(key in c for c in result.success.values())]
        table.add_column("task")
        for column in ("success", "95 % Wilson interval", "episodes", *(key.partition("/")[2] for key in counted)):
            table.add_column(column, justify="right")
        for name, cell in sorted(result.success.items(), key=lambda item: item[0] == "success_rate"):
            label = "all tasks" if name == "success_rate" else name
            table.add_row(
                label,
                f"{cell['rate']:.0%}",
                f"{cell['low']:.0%} – {cell['high']:.0%}",
                f"{cell['episodes']}",
                *(f"{cell.get(key, 0)}" for key in counted),
            )
        console.print(table)
        if result.faults:
            console.print(
                f"{result.faults} of these failures are faults, not the policy's failing at its task: see `reason` "
                "in episodes.csv"
            )
    offline = {name: value for name, value in result.metrics.items() if "/" not in name and name != "success_rate"}
    if offline:
        table = Table(title="held-out demonstrations, in the robot's units", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in offline.items():
            table.add_row(name, f"{value:.4f}")
        console.print(table)
    console.print(
        f"{result.ms_per_chunk:.0f} ms per action chunk (99 % within {result.ms_per_chunk_p99:.0f}), "
        f"{result.wall_seconds:.0f} s in all, peak memory {result.made['peak_memory_mb'] / 1024:.1f} GB"
    )
    console.print(f"written to {folder}")


def tags(config: Mapping[str, Any], folder: Path, choices: Mapping[str, str]) -> list[str]:
    """What a tracker's runs are filtered by: study, arm, and every part's option."""
    tags = [f"study={config['study']}"] if config["study"] else []
    with contextlib.suppress(ValueError):  # not in a sweep, or in one whose file is damaged
        tags += [f"arm={job.arm}" for job in load_sweep(folder.parent).jobs if job.folder == folder.name]
    return tags + [
        f"{group}={option}" for group, option in choices.items() if group in NODES and group not in ("logger", "pruner")
    ]


def run_name(folder: Path, choices: Mapping[str, str]) -> str:
    """A run in a tracker's list."""
    return f"{choices.get('fusion', '')}-{folder.parent.name}-{folder.name}".strip("-")
