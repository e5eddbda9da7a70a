"""Hydra's side of a study: two sweepers, a grid and an Optuna search, that can be killed anywhere and started again.

They add to Hydra's own what section 4 of a run's contract asks: every job is composed before the first one starts, from
a copy of the configuration files; what is done is not done again; a failed job is tried once more; and a lock keeps a
second sweep out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf


def register() -> None:
    """Puts provla's sweepers and launchers (`conf/` beside this file) in the place of those of the same names, for this
    process alone.
    """
    from hydra.core.config_store import ConfigStore

    Plugins.instance()  # imports all plugins, which register theirs; the later one stays
    for file in sorted((Path(__file__).parent / "conf").glob("*/*.yaml")):
        ConfigStore.instance().store(
            group=f"hydra/{file.parent.name}", name=file.stem, node=OmegaConf.load(file), provider="provla"
        )


def plan(config: DictConfig, arguments: list[str]) -> tuple[Any, int]:
    """The sweep that a composed configuration (with its `hydra` node) and its command line ask for, and the closed-loop
    episodes of a run.

    Nothing is started or written. `ValueError` as the sweep itself would raise it.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from provla.jobs.sweep import Sweep
    from provla.study.grid import GridSweeper
    from provla.study.plan import episodes_of

    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.mode = RunMode.MULTIRUN
    settings = config.hydra.sweeper
    sweeper = GridSweeper(settings.params, settings.get("timeout"))
    sweeper.prepare(config, GlobalHydra.instance().config_loader())
    axes = sweeper._axes(arguments)
    if str(settings._target_).endswith("SearchSweeper"):
        sweep = Sweep(
            config.study, config.get("question"), "search", "", config.objective, "", [], int(settings.n_trials)
        )
        sweep.space = [str(override.input_line) for override in axes.values() if override.is_sweep_override()]
        fixed = tuple(str(override.input_line) for override in axes.values() if not override.is_sweep_override())
        return sweep, episodes_of(sweeper.files.plain(fixed))
    sweep, asked = sweeper.ask(axes)
    return sweep, episodes_of(sweeper.files.plain(next(iter(asked))))
