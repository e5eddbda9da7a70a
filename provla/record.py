"""python -m provla.record: record the demonstrations of a simulated data set, if they are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command

RECORDED = ("metaworld_twins", "metaworld", "metaworld_five", "ogbench_scene", "aloha_sim", "recorded")


@command("record")
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/record.yaml."""
    from provla.core.build import build
    from provla.core.progress import console

    source = build(config["dataset"], "dataset")
    if not hasattr(source, "record"):
        raise ValueError(f"dataset={choices['dataset']} is not recorded here; valid: {', '.join(RECORDED)}")
    console.print(f"recorded in {source.record()}")


if __name__ == "__main__":
    main()
