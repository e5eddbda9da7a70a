"""What every command shares: composing with Hydra, and one clear message instead of somebody else's traceback."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from provla.command.explain import complain, explain, explained
from provla.command.help import command_help
from provla.command.places import look_here_first
from provla.core import signals
from provla.core.errors import Interrupted, exit_code
from provla.core.files import ROOT, in_words
from provla.core.ranks import LAUNCHED, launched
from provla.core.secrets import HIDDEN, check_arguments, check_literal, hide
from provla.core.unread import check_read
from provla.study.register import register

# libgomp's own is 300,000 (10 ms): alone no faster, and where two trainings share their cores each of torch's thousand
# waits in a step takes as long as the other's turn.
SPINS = "1000"

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
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(command_help(self.name, sys.modules[self.task.__module__].__doc__ or self.name, ROOT, sys.argv[1:]))
            sys.exit(0)
        refuse_several_processes(self.follow is not None, sys.argv[1:])
        sys.argv[1:] = [_plain(argument, self.lists, self.paths, self.free) for argument in sys.argv[1:]]
        with explained():
            _prepare(self.studies)
            _check(sys.argv[1:])
            with _shown():
                hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name=self.name)(self._job)()
        sys.exit(self.failures[0] if self.failures else 0)

    def _follow(self, follow: Callable[[], None]) -> None:
        """A process beside rank 0, which alone composes."""
        if any(ONLY_SHOWN.fullmatch(argument.partition("=")[0]) for argument in sys.argv[1:]):
            sys.exit(0)
        refuse_several_processes(True, sys.argv[1:])
        with explained():
            _prepare(self.studies)
            follow()

    def _job(self, config: DictConfig) -> float | None:
        logging.getLogger().setLevel(logging.WARNING)  # libraries speak up when something is wrong
        state = HydraConfig.get()
        alone = state.mode is None or state.mode.name != "MULTIRUN"
        try:
            composed, choices = _resolve(config, state)
            folder = Path(state.runtime.output_dir)
            _keep(folder, config, state)
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


def _prepare(studies: bool) -> None:
    """What the configuration files refer to, for this process; and how long torch's threads wait awake for each other,
    which has to be said before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("PROVLA_ROOT", str(ROOT))
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("places", _places, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", lambda study, now: study or f"sweep-{now}", replace=True)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints errors itself and exits
    if studies:
        register()
    look_here_first()
    if not {str(Path.cwd()), ""} & set(sys.path) and not sys.flags.safe_path:
        sys.path.append(str(Path.cwd()))  # as python -m does: classes of the working folder, for the console commands
    _read_env_file()


def _resolve(config: DictConfig, state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A job's configuration as plain values, and the options chosen; `ValueError` for what may not stand in it."""
    check_literal(OmegaConf.to_container(config))
    written: Any = OmegaConf.to_container(config, resolve=False)
    options = state.runtime.choices
    check_read(written, state.overrides.task, str(options.get("policy")))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    chosen = {key: value for key, value in options.items() if isinstance(value, str) and not key.startswith("hydra")}
    return {str(key): value for key, value in resolved.items()}, chosen


def _check(arguments: Sequence[str]) -> None:
    """`ValueError` for a command line with a secret in it, or one that wants Hydra to load a pickle."""
    check_arguments(arguments)
    if any(argument.startswith("--e") for argument in arguments):
        raise ValueError(
            "--experimental-rerun loads a pickle, which can run anything; give the overrides again instead "
            "(.hydra/overrides.yaml)"
        )


@contextmanager
def _shown() -> Iterator[None]:
    """What Hydra itself prints of a configuration (--cfg, --info) has no secrets, resolved or not."""
    if not any(re.match(r"-[ci]|--cfg?|--i", argument) for argument in sys.argv[1:]):
        yield
        return
    out = sys.stdout
    with redirect_stdout(io.StringIO()) as text:
        try:
            yield
        finally:
            out.write(hide(text.getvalue()))


def _keep(folder: Path, config: DictConfig, state: Any) -> None:
    """What was composed and what was typed, in `.hydra/`; Hydra's own copies, which this replaces, would hold
    secrets.
    """
    from provla.core.files import write_text

    kept = folder / ".hydra"
    if state.run.dir != "." and not kept.exists():
        write_text(kept / "config.yaml", hide(OmegaConf.to_yaml(config)))
        write_text(kept / "overrides.yaml", hide(OmegaConf.to_yaml(state.overrides.task)))


# What says how many processes were started side by side: torchrun and accelerate, srun, and MPI's starters.
# (SLURM_NTASKS is set in a batch script too, where one process runs.)
SIDE_BY_SIDE = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


# Flags with which a command shows something and does nothing.
ONLY_SHOWN = re.compile(r"-h|--help|--hydra-help|--version|-c|--cfg|-i|--info|-p|--package|--resolve|-sc|--shell.*")


def refuse_several_processes(ranked: bool, arguments: Sequence[str]) -> None:
    """Ends this process with exit code 2 where a launcher started it as one of several, and they are not the ranks of
    one training: they would all want the same folder. ranked: whether the command takes ranks.
    """
    if ranked and (size := launched().size) > 1:
        if not {"-m", "--multirun"} & set(arguments):
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


def _plain(argument: str, lists: Sequence[str], paths: Sequence[str], free: Sequence[str] = ()) -> str:
    """An argument as Hydra's grammar wants it."""
    key, _, value = argument.partition("=")
    if key in paths and key in lists:
        if value.startswith("[") and value.endswith("]"):
            return f"{key}=[{','.join(_plain_path(one) for one in _split(value[1:-1]))}]"
        lists = ()
    if "." in key and key.partition(".")[0] in free and key not in lists:
        return f"++{argument}"
    if key in lists and re.fullmatch(r"[^\[{,]+(,[^,]+)+", value):
        return f"{key}=[{value}]"
    return f"{key}={_plain_path(value)}" if key in paths and value else argument


def _plain_path(value: str) -> str:
    return f"'{value}'" if re.search(r"[=,\s]", value) and not value.startswith(("'", '"')) else value


def _split(values: str) -> list[str]:
    """At commas that stand outside quotes."""
    return [one.strip() for one in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,'"])+""", values)]


def _places(threads: int, jobs_per_gpu: Any) -> int:
    from provla.jobs.sweep import places

    return places(threads, jobs_per_gpu)


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


def job_folder(overrides: str) -> str:
    """The folder of a sweep's job: its overrides without those that change no result, shortened by a hash where the
    name would be too long.
    """
    overrides = re.sub(r"(^|,)\+*(pruner|logger)\.[\w.]+=[^,]*", "", overrides).lstrip(",")
    name = re.sub(r"[/\s]+", "_", hide(overrides).replace(HIDDEN, "hidden")) or "default"
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _read_env_file() -> None:
    """Keys such as WANDB_API_KEY from `.env` here or beside the project; the environment itself has the last word."""
    from dotenv import load_dotenv

    for folder in (Path.cwd(), ROOT):
        load_dotenv(folder / ".env")
