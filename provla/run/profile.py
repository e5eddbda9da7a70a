"""The page that says where a run's time went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provla.core.files import write_text
from provla.core.progress import console
from provla.trainer.profile import FOLDER, FORWARD, PARTS, STAGES, TRACE

PAGE, PICTURE = "profile.md", "stages.png"
REST, EVALUATE, TRACING, OTHER = "rest of the loss", "evaluate", "the trace itself", "other"
FIRST, LAST = ("data", *PARTS.values()), (REST, "backward", "optimiser", "log", "validate", "checkpoint", EVALUATE)


def stages_of(found: dict[str, Any], evaluated: float) -> dict[str, float]:
    """Stage → seconds that stand in no other one, in the order of a step. found: what a training left."""
    known = {name: max(0.0, one["seconds"] - one["inside"]) for name, one in found["stages"].items()}
    known[REST] = known.pop(FORWARD, 0.0)
    known |= {EVALUATE: evaluated, TRACING: found["trace"]}
    own = [name for name in known if name not in (*FIRST, *LAST, TRACING)]  # of a policy's other parts
    known = {name: known[name] for name in (*FIRST, *own, *LAST, TRACING) if known.get(name)}
    return known | {OTHER: max(0.0, found["wall"] + evaluated - sum(known.values()))}


def write_profile(folder: Path, evaluated: float) -> None:
    """The page of a run that was trained here with trainer.profile=true. evaluated: seconds of its judgement."""
    from provla.run.plots import plot_profile

    place = folder / FOLDER
    if not (place / STAGES).is_file():  # a sibling's training was taken over
        return
    found = json.loads((place / STAGES).read_text())
    stages, steps = stages_of(found, evaluated), max(1, found["steps"])
    plot_profile(stages, place / PICTURE)
    whole, calls = sum(stages.values()) or 1.0, found["stages"]
    lines = [
        f"# Where the time of {folder.name} went",
        "",
        f"{whole:.1f} s on {found['device']}, of which {found['steps']:,} training steps were timed.",
        "",
        f"![seconds of each stage]({PICTURE})",
        "",
        "| stage | seconds | share | ms per training step |",
        "|---|---|---|---|",
    ]
    for name, seconds in stages.items():
        stepwise = f"{1000 * seconds / steps:.2f}" if name in (*FIRST, REST, "backward", "optimiser") else ""
        lines.append(f"| {name} | {seconds:.2f} | {seconds / whole:.1%} | {stepwise} |")
    lines += ["", *_notes(found, place, calls)]
    write_text(place / PAGE, "\n".join(lines) + "\n")
    console.print(f"where the time went: {place / PAGE}")


def _notes(found: dict[str, Any], place: Path, calls: dict[str, Any]) -> list[str]:
    """How it is to be read."""
    said = []
    if found["device"] != "cpu":
        said.append(
            "- The GPU's stages (encode, fuse, head, the rest of the loss, backward, optimiser) are its own time, by "
            "events; the others are the host's. Host and GPU work at the same time, so that shares are of their sum."
        )
    if FORWARD in calls and not any(name in calls for name in PARTS.values()):
        said.append("- The policy is compiled, or has none of these parts: its forward pass is one piece.")
    said.append(f"- {REST}: normalising, augmenting, the scheduler's objective. {OTHER}: what is in no stage.")
    if (place / TRACE).is_file():
        said.append(
            f"- [{TRACE}]({TRACE}): a few steps, operation by operation, for chrome://tracing or ui.perfetto.dev. They "
            "count in no stage; starting and writing the trace is a line of its own."
        )
    return said
