"""From a command line to a configuration: what Hydra reads, what it composes, and what a job is given of it."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal import hydra as hydra_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from provla.command.places import look_here_first
from provla.core.awake import prepare_threads
from provla.core.files import ROOT
from provla.core.secrets import HIDDEN, check_arguments, check_literal, hide
from provla.core.unread import check_read
from provla.study.register import register


class _Parser(argparse.ArgumentParser):
    """Hydra's flags; overrides before, between and after them. `ValueError` where it would exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --hydra-help lists the flags")


def read(arguments: Sequence[str]) -> argparse.Namespace:
    """A command line as Hydra takes it. `ValueError` where it holds a secret, a flag that there is not, or one that
    wants Hydra to load a pickle.
    """
    check_arguments(arguments)
    parser = get_args_parser()
    parser.__class__ = _Parser
    asked, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        key = unknown[0].lstrip("-")
        said = f"a key has no dashes: {key}" if "=" in key else "--hydra-help lists the flags, --help the keys"
        raise ValueError(f"{unknown[0]} is no flag; {said}")
    if asked.experimental_rerun is not None:
        raise ValueError(
            "--experimental-rerun loads a pickle, which can run anything; give the overrides again instead "
            "(.hydra/overrides.yaml)"
        )
    for file in sorted(Path(asked.config_dir).rglob("*.yaml")) if asked.config_dir else ():
        if (ROOT / "conf" / (name := file.relative_to(asked.config_dir))).is_file():
            raise ValueError(
                f"--config-dir {asked.config_dir}: Hydra looks there last, so provla's own {name} is read and not "
                "this one; give it another name, or put it into ./conf, which is looked at first"
            )
    return asked


def shows(asked: argparse.Namespace) -> bool:
    """Whether a command line asks to be shown something, and nothing to be done."""
    return bool(asked.help or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion)


def run(name: str, asked: argparse.Namespace, job: TaskFunction) -> None:
    """Composes conf/<name>.yaml with what was asked and does it: a job, the jobs of a sweep, or what is only shown."""
    version.setbase("1.3")
    with _shown(asked), _composed_once():
        _run_hydra(asked, get_args_parser(), job, str(ROOT / "conf"), name)


class _Loader(ConfigLoaderImpl):
    """Hydra composes twice: to learn its mode, where it forgets what is wrong, and for the run. What was wrong is not
    composed again.
    """

    wrong: Exception | None = None

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        if self.wrong is not None:
            raise self.wrong
        try:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except Exception as error:
            self.wrong = None if validate_sweep_overrides else error  # not of a job among others
            raise


@contextmanager
def _composed_once() -> Iterator[None]:
    module: Any = hydra_module
    module.ConfigLoaderImpl = _Loader
    try:
        yield
    finally:
        module.ConfigLoaderImpl = ConfigLoaderImpl


@contextmanager
def _shown(asked: argparse.Namespace) -> Iterator[None]:
    """What Hydra itself prints of a configuration (--cfg, --info) has no secrets, resolved or not."""
    if not asked.cfg and not asked.info:
        yield
        return
    out = sys.stdout
    with redirect_stdout(io.StringIO()) as text:
        try:
            yield
        finally:
            out.write(hide(text.getvalue()))


def prepare(studies: bool) -> None:
    """What the configuration files refer to, for this process, and what torch's threads are to do."""
    prepare_threads()
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


def plain(argument: str, lists: Sequence[str], paths: Sequence[str], free: Sequence[str] = ()) -> str:
    """An override as Hydra's grammar wants it."""
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


def resolve(config: DictConfig, state: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A job's configuration as plain values, and the options chosen; `ValueError` for what may not stand in it."""
    check_literal(OmegaConf.to_container(config))
    written: Any = OmegaConf.to_container(config, resolve=False)
    options = state.runtime.choices
    check_read(written, state.overrides.task, str(options.get("policy")))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    chosen = {key: value for key, value in options.items() if isinstance(value, str) and not key.startswith("hydra")}
    return {str(key): value for key, value in resolved.items()}, chosen


def keep(folder: Path, config: DictConfig, state: Any) -> None:
    """What was composed and what was typed, in `.hydra/`; Hydra's own copies, which this replaces, would hold
    secrets.
    """
    from provla.core.files import write_text
    from provla.jobs.sweep import refused

    kept = folder / ".hydra"
    if state.run.dir != "." and (not kept.exists() or refused(folder)):
        write_text(kept / "config.yaml", hide(OmegaConf.to_yaml(config)))
        write_text(kept / "overrides.yaml", hide(OmegaConf.to_yaml(state.overrides.task)))


def job_folder(overrides: str) -> str:
    """The folder of a sweep's job: its overrides without those that change no result, shortened by a hash where the
    name would be too long.
    """
    overrides = re.sub(r"(^|,)\+*(pruner|logger)\.[\w.]+=[^,]*", "", overrides).lstrip(",")
    name = re.sub(r"[/\s]+", "_", hide(overrides).replace(HIDDEN, "hidden")) or "default"
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _places(threads: int, jobs_per_gpu: Any) -> int:
    from provla.jobs.sweep import places

    return places(threads, jobs_per_gpu)


def _read_env_file() -> None:
    """Keys such as WANDB_API_KEY from `.env` here or beside the project; the environment itself has the last word."""
    from dotenv import load_dotenv

    for folder in (Path.cwd(), ROOT):
        load_dotenv(folder / ".env")
