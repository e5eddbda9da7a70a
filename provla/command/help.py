"""What a command says of itself: `--help`, read from its configuration and the README; nothing is composed and nothing
heavy imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml


def command_help(name: str, about: str, root: Path, more: str | None = None) -> str:
    """The help of `python -m provla.<name>`. about: its docstring. root: where conf/ and README.md lie; conf/ here
    and the folder of `--config-dir`, more, add options.
    """
    text = (root / "conf" / f"{name}.yaml").read_text()
    folders = [root / "conf", Path("conf"), *([Path(more)] if more else [])]
    groups = list(_groups(yaml.safe_load(text)["defaults"], folders, root))
    parts = [
        about.strip().splitlines()[0],
        f"Usage: {called(name)} {'[group=option …] ' if groups else ''}[key=value …]",
    ]
    if groups:
        width = max(len(group) for group, _ in groups)
        parts.append(
            "Groups and their options, * the default:\n"
            + "\n".join(f"  {group:{width}}  {options}" for group, options in groups)
        )
    keys = _keys(text) + ([] if name == "report" else _keys((root / "conf" / "base.yaml").read_text()))
    parts.append("Keys and their defaults:\n" + "\n".join(f"  {line}" for line in keys))
    if groups:
        parts.append("Keys of an option stand in conf/<group>/<option>.yaml and are set as <group>.<key>=value.")
    if examples := _examples(name, root):
        parts.append("Examples:\n" + "\n".join(f"  {line}" for line in examples))
    parts.append(
        "--cfg job shows the composed configuration, -m sweeps over key=a,b,c; --hydra-help has Hydra's own flags. "
        "README.md says more."
    )
    return "\n\n".join(parts)


def called(name: str) -> str:
    """How this command was started."""
    return f"provla-{name}" if Path(sys.argv[0]).name == f"provla-{name}" else f"python -m provla.{name}"


def _groups(defaults: Sequence[object], folders: Sequence[Path], root: Path) -> Iterator[tuple[str, str]]:
    for entry in defaults:
        if not isinstance(entry, dict):
            continue
        for key, default in entry.items():
            group = str(key).split()[-1].split("@")[0].strip("/")
            places = [root / group, Path(group)] if group == "experiments" else [folder / group for folder in folders]
            options = sorted({file.stem for place in places for file in place.glob("*.yaml")})
            if options and not group.startswith("hydra"):
                yield group, ", ".join(f"*{option}" if option == default else option for option in options)


def _keys(text: str) -> list[str]:
    """The keys at the root of a configuration file, as they stand there, with their comments."""
    lines = re.sub(r"^(defaults|hydra):.*\n([ \t-].*\n|\n)*", "", text, flags=re.MULTILINE).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _examples(name: str, root: Path) -> list[str]:
    """The README's lines that call the command."""
    readme = root / "README.md"
    lines = readme.read_text().splitlines() if readme.is_file() else []
    plain = f"python -m provla.{name}"
    found = [line.strip() for line in lines if re.match(rf" {{4}}{re.escape(plain)}\b", line)]
    return [line.replace(plain, called(name)) for line in dict.fromkeys(found)]
