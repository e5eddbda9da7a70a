"""The configurations of a sweep's jobs: composed once, from a copy of the files, and handed to launchers as
they are.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

Overrides = tuple[str, ...]
WORKING_FOLDER = "working folder"  # who put its conf/, and the folder of its experiments/, on Hydra's search path


class Composed:
    """What launchers need of a config loader: the configuration of a job, as it was composed when the sweep put it into
    its queue.
    """

    def __init__(self, configs: Mapping[Overrides, DictConfig]) -> None:
        self.configs = dict(configs)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        return copy.deepcopy(self.configs[tuple(sweep_overrides)])


class Composer:
    """Composes jobs. base: the sweep's own configuration. root: of the files, what `PROVLA_ROOT` says meanwhile."""

    def __init__(self, base: DictConfig, loader: ConfigLoader, root: Path) -> None:
        self._base, self._loader, self._root = base, loader, root
        self._configs: dict[Overrides, DictConfig] = {}

    def compose(self, overrides: Overrides) -> DictConfig:
        """A job's configuration, with its `hydra` node."""
        if overrides not in self._configs:
            before = os.environ.get("PROVLA_ROOT")
            os.environ["PROVLA_ROOT"] = str(self._root)
            try:
                self._configs[overrides] = self._loader.load_sweep_config(self._base, list(overrides))
            finally:
                os.environ.pop("PROVLA_ROOT")
                if before is not None:
                    os.environ["PROVLA_ROOT"] = before
        return self._configs[overrides]

    def plain(self, overrides: Overrides) -> dict[str, Any]:
        """The resolved configuration of a job, as its folder will hold it. `ValueError` where it asks for a part that
        its policy does not read.
        """
        from provla.core.secrets import check_literal
        from provla.core.unread import check_read

        config = copy.deepcopy(self.compose(overrides))
        check_read(OmegaConf.to_container(config, resolve=False), overrides, config.hydra.runtime.choices.get("policy"))  # type: ignore[arg-type]
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        check_literal(OmegaConf.to_container(config))
        found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}

    def value(self, overrides: Overrides, key: str) -> str:
        """What a job has on an axis that its overrides do not name: the option of a group, or a value."""
        from provla.jobs.sweep import spelled

        config, plain = self.compose(overrides), key.lstrip("+~")
        choice = config.hydra.runtime.choices.get(plain)
        found = OmegaConf.select(config, plain) if choice is None else choice
        return spelled(found)

    def place(self, overrides: Overrides, folder: str) -> None:
        """Makes `folder` that of a job, whatever its overrides would call it."""
        hydra = self.compose(overrides).hydra
        OmegaConf.set_readonly(hydra, False)
        hydra.sweep.subdir = folder


def frozen_copy(loader: Any, kept: Path, root: Path) -> tuple[ConfigLoader, Path]:
    """A loader of a copy of the configuration files, in `kept`, and the copy's root: what is edited meanwhile changes
    no job.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

    shutil.rmtree(kept, ignore_errors=True)
    copied = kept / "root"
    for part in ("conf", "experiments"):
        if (root / part).is_dir():
            shutil.copytree(root / part, copied / part, ignore=_only_yaml, copy_function=_copy)
    path = ConfigSearchPathImpl()
    for number, element in enumerate(loader.get_search_path().get_path()):
        place, provider = str(element.path), str(element.provider)
        source = Path(place.removeprefix("file://"))
        if place.startswith("file://") or (source.is_dir() and "://" not in place):
            inside = source.resolve()
            if inside.is_relative_to(root) and (copied / inside.relative_to(root)).is_dir():
                place = f"file://{copied / inside.relative_to(root)}"
            elif source.is_dir() and inside != root:
                wanted = "experiments" if provider == WORKING_FOLDER and source == Path.cwd() else ""
                shutil.copytree(source / wanted, kept / f"{number}" / wanted, ignore=_only_yaml, copy_function=_copy)
                place = f"file://{kept / str(number)}"
        path.append(provider, place)
    return ConfigLoaderImpl(config_search_path=path), copied


def _only_yaml(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_dir() and not name.endswith((".yaml", ".yml"))]


def _copy(source: str, target: str) -> None:
    """A configuration file, without secrets; a job that would read one is refused by name."""
    from provla.core.secrets import hide

    Path(target).write_text(hide(Path(source).read_text()))
