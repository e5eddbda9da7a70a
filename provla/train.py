"""python -m provla.train: compose a policy, train it, judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command, time_limit
from provla.core.ranks import launched


def follow() -> None:
    """A rank beside the first."""
    from provla.run.follow import follow

    follow()


@command("train", follow=follow, paths=("resume", "rerun", "hydra.run.dir", "hydra.sweep.dir"), studies=True)
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float:
    """See conf/train.yaml."""
    if config["rerun"] and launched().size > 1:
        raise ValueError("rerun under several ranks: a run is made again as one process; start it without the launcher")
    if config["rerun"]:
        from hydra.core.hydra_config import HydraConfig

        from provla.run.rerun import rerun

        return rerun(config, list(HydraConfig.get().overrides.task), folder)
    from provla.run.train import train

    return train(config, folder, choices, time_limit())


if __name__ == "__main__":
    main()
