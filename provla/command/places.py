"""Where configuration files are looked for: in the working folder first, then in what came with provla."""

from __future__ import annotations

import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from provla.core.files import ROOT
from provla.study.compose import WORKING_FOLDER


def own(name: str) -> Path | None:
    """`conf` or `experiments` of the working folder, where it has one besides the shipped one."""
    place = Path.cwd() / name
    return place if place.is_dir() and not (ROOT / name).samefile(place) else None


class WorkingFolder(SearchPathPlugin):
    """Puts `conf/` of the working folder before the shipped one, and its `experiments/` before the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if conf := own("conf"):
            search_path.prepend(WORKING_FOLDER, f"file://{conf}", anchor=SearchPathQuery(provider="main"))
        if studies := own("experiments"):
            search_path.append(WORKING_FOLDER, f"file://{studies.parent}", anchor=SearchPathQuery(provider="main"))


def look_here_first() -> None:
    """For this process alone; other Hydra applications of the environment know nothing of it. Says which files stand
    in for shipped ones.
    """
    Plugins.instance().register(WorkingFolder)
    for name in ("conf", "experiments"):
        place = own(name)
        found = sorted(str(file.relative_to(place)) for file in place.rglob("*.yaml")) if place else []
        if hidden := [file for file in found if (ROOT / name / file).is_file()]:
            print(f"{name}/ of this folder stands in for what came with provla: {', '.join(hidden)}", file=sys.stderr)
