"""python -m provla.train: compose a policy, train it, judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command, time_limit


@command("train", paths=("resume", "rerun", "hydra.run.dir", "hydra.sweep.dir"), studies=True)
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float:
    """See conf/train.yaml."""
    if config["rerun"]:
        from hydra.core.hydra_config import HydraConfig

        from provla.run.rerun import rerun

        return rerun(config, list(HydraConfig.get().overrides.task), folder)
    from provla.run.train import train

    return train(config, folder, choices, time_limit())


if __name__ == "__main__":
    main()
