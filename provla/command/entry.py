"""What every command is: a task with its configuration, one clear message instead of somebody else's traceback, and an
exit code.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from provla.command import compose
from provla.command.explain import complain, explain, explained
from provla.command.help import command_help
from provla.core import signals
from provla.core.errors import Interrupted, exit_code
from provla.core.files import ROOT, in_words
from provla.core.ranks import LAUNCHED, launched

Task = Callable[[dict[str, Any], Path, dict[str, str]], float | None]


def command(
    name: str,
    lists: Sequence[str] = (),
    paths: Sequence[str] = (),
    studies: bool = False,
    free: Sequence[str] = (),
    follow: Callable[[], None] | None = None,
) -> Callable[[Task], Callable[[], None]]:
    """Makes a command of `task(config, folder, choices)`: composes conf/<name>.yaml, resolves it, and reports errors.

    An error becomes its message and an exit code (see `provla.core.errors`). In a multirun a failed job is reported,
    the others go on, and the exit code is 1 at the end. lists: keys for which `key=1,2,4` is a list and not a sweep.
    paths: keys for which `key=outputs/fusion/fusion=film,seed=0` is a path as it stands; of those that are in `lists`
    too, several stand in brackets, with quotes around one that has a comma. studies: provla's sweepers
    stand in for Hydra's own. free: nodes that take keys which stand elsewhere, so that `env.first_seed=5` needs no `+`;
    the task checks them. follow: what the other processes do where several are started side by side; without it they
    are refused.
    """
    return lambda task: Command(name, task, tuple(lists), tuple(paths), studies, tuple(free), follow)


@dataclass
class Command:
    """See `command`. failures: exit codes of what has failed so far."""

    name: str
    task: Task
    lists: Sequence[str]
    paths: Sequence[str]
    studies: bool
    free: Sequence[str]
    follow: Callable[[], None] | None = None
    failures: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        if self.follow and not launched().leads:
            self._follow(self.follow)
            return
        with signals.listening():
            self._run()

    def _run(self) -> None:
        self.failures.clear()
        sys.argv[1:] = [compose.plain(argument, self.lists, self.paths, self.free) for argument in sys.argv[1:]]
        with explained():
            asked = compose.read(sys.argv[1:])
            if asked.help:
                about = sys.modules[self.task.__module__].__doc__ or self.name
                print(command_help(self.name, about, ROOT, asked.config_dir))
                sys.exit(0)
            refuse_several_processes(self.follow is not None, asked.multirun)
            compose.prepare(self.studies)
            compose.run(self.name, asked, self._job)
        sys.exit(self.failures[0] if self.failures else 0)

    def _follow(self, follow: Callable[[], None]) -> None:
        """A process beside rank 0, which alone composes."""
        with explained():
            asked = compose.read(sys.argv[1:])
            if compose.shows(asked):
                sys.exit(0)
            refuse_several_processes(True, asked.multirun)
            compose.prepare(self.studies)
            follow()

    def _job(self, config: DictConfig) -> float | None:
        logging.getLogger().setLevel(logging.WARNING)  # libraries speak up when something is wrong
        state = HydraConfig.get()
        alone = state.mode is None or state.mode.name != "MULTIRUN"
        try:
            composed, choices = compose.resolve(config, state)
            folder = Path(state.runtime.output_dir)
            compose.keep(folder, config, state)
            with signals.working():
                if alone:
                    return self.task(composed, folder, choices)
                return _in_place(self.task, composed, folder, choices, state)
        except Interrupted:
            if not signals.is_worker():
                raise
            signals.requeue()
            # Raised in a launcher's process it would end the siblings; the sweep has had the signal itself.
            return float("nan")
        except (ValueError, OSError, OmegaConfBaseException, HydraException) as error:
            # Caught here, because Hydra would print the overrides and a traceback around it.
            composing = isinstance(error, OmegaConfBaseException | HydraException)
            message = explain(error) if composing else str(in_words(error))
            complain(message if alone else f"job {state.job.override_dirname} failed: {message}")
            if alone or not self.studies:  # a study's sweeper knows which of its jobs count as failed
                self.failures.append(1 if not alone else 2 if composing else exit_code(error))
            return float("nan")


# What says how many processes were started side by side: torchrun and accelerate, srun, and MPI's starters.
# (SLURM_NTASKS is set in a batch script too, where one process runs.)
SIDE_BY_SIDE = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def refuse_several_processes(ranked: bool, sweeps: bool) -> None:
    """Ends this process with exit code 2 where a launcher started it as one of several, and they are not the ranks of
    one training: they would all want the same folder. ranked: whether the command takes ranks. sweeps: whether it was
    asked for several jobs.
    """
    if ranked and (size := launched().size) > 1:
        if not sweeps:
            return
        complain(
            f"-m under {size} ranks: a sweep starts each job as one process on one device; start it by python -m "
            "provla.train alone, or one run under the launcher without -m"
        )
        sys.exit(2)
    several = [
        f"{key}={value}" for key in SIDE_BY_SIDE if (value := os.environ.get(key, "")).isdecimal() and int(value) > 1
    ]
    ranks = [f"{key}={value}" for key in RANKS if (value := os.environ.get(key, "")).isdecimal()]
    if several or any(int(rank.partition("=")[2]) > 0 for rank in ranks):
        complain(
            f"this is one of several processes ({', '.join([*several, *ranks])}), which this was not made for: "
            "torchrun and accelerate launch start the ranks of python -m provla.train, which they tell "
            f"{', '.join(LAUNCHED)}; start anything else as one process, without several tasks of srun or MPI; several "
            "GPUs take the jobs of a sweep (-m)"
        )
        sys.exit(2)


def _in_place(task: Task, config: dict[str, Any], folder: Path, choices: dict[str, str], state: Any) -> float | None:
    """A sweep's job. Where several run at a time it waits for its place and its GPU, unless Ray has given it both, and
    talks into its own log.txt.
    """
    launcher = state.launcher

    def run() -> float | None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            return task(config, folder, choices)

    if "RayLauncher" in launcher._target_:
        return run()
    if "JoblibLauncher" not in launcher._target_ and "LocalLauncher" not in launcher._target_:
        return task(config, folder, choices)
    from provla.core.ranks import cores
    from provla.jobs.sweep import places, share, slot

    count = int(launcher.get("n_jobs") or places(config["threads"], launcher.get("jobs_per_gpu", 1)))
    count = cores() if count < 0 else count
    if (
        multiprocessing.get_start_method(allow_none=True) == "loky"
    ):  # joblib's workers could start no processes of their own
        multiprocessing.set_start_method("spawn", force=True)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with slot(Path(state.sweep.dir), count) as number:
        config["device"] = share(number, str(config.get("device", "auto")))
        return run()


def time_limit() -> float | None:
    """Minutes that the job of a sweep may take (`hydra.sweeper.timeout`); None: as long as it likes."""
    state = HydraConfig.get()
    minutes = state.sweeper.get("timeout") if state.mode is not None and state.mode.name == "MULTIRUN" else None
    return None if minutes is None else float(minutes)


def _end_with_parent(parent: int) -> None:
    """Ends this process where the sweep that started it was killed; joblib's workers would idle on for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    signals.tell()
    os._exit(1)
