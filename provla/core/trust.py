"""What a stored configuration may name: nothing that its reader has not agreed to run.

A run's `config.json`, a `policy/` folder or an export can come from anybody. Its `_target_`s are checked as text before
anything is imported, by a rule and no list: a node of the group `fusion` may name `provla.fusion.<Class>`, and so on.
Classes of other modules need the reader's word, `trust=[my_ideas]`. What somebody types, or writes into their own YAML,
is theirs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from provla.core.checks import value_in
from provla.core.identity import NODES
from provla.core.renamed import now

# What the class of a group that is no part of a policy has, one of these; parts of a policy are an `nn.Module`, which
# `build` checks.
MEMBERS = {
    "dataset": ("load",),
    "env": ("episodes", "make"),
    "execution": ("begin", "stride"),
    "trainer": ("fit",),
    "logger": ("log",),
    "pruner": ("prune",),
}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Target(NamedTuple):
    """A `_target_` of a configuration. key: its node. group: the nearest key above it that is a group; None: under
    none.
    """

    key: str
    group: str | None
    name: Any


def targets(config: Any, key: str = "", group: str | None = None) -> Iterator[Target]:
    """Every `_target_` at any depth, in lists too."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == "_target_":
                yield Target(key, group, now(value))
            else:
                yield from targets(value, f"{key}.{name}".lstrip("."), name if name in NODES else group)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from targets(value, f"{key}[{number}]", group)


def check_stored(config: Mapping[str, Any], source: Any, trust: Sequence[str] = ()) -> None:
    """`ValueError` where a stored configuration names anything but provla's own parts and classes of the modules in
    `trust`.

    source: where it was stored, for the message. All names are read before the first is imported; then each must be a
    class that was written in the module it is named after, and that its group can use.
    """
    wrong = (
        [name for name in trust if not isinstance(name, str) or not DOTTED.fullmatch(name)]
        if not isinstance(trust, str)
        else [trust]
    )
    if wrong:
        raise ValueError(f"trust={wrong[0]!r}: expected a list of modules, such as trust=[my_ideas]")
    found = list(targets(config))
    for target in found:
        if not _allowed(target, trust):
            raise _refusal(target, source)
    # gymnasium imports the module before the colon.
    id = value_in(value_in(config, "env"), "id")
    module = str(id).rpartition(":")[0] if id is not None else ""
    if module and not _inside(module, trust):
        raise ValueError(
            f"env.id={id!r} in {source} names a module whose code would run, and nothing was imported or run. If you "
            f"know it: trust=[{module}]"
        )
    for target in found:
        _check_class(target, source, trust)


def modules(config: Mapping[str, Any]) -> list[str]:
    """The modules that a configuration names: what its own author trusts."""
    return sorted({str(target.name).rpartition(".")[0] for target in targets(config)} - {""})


def _rooms(group: str | None) -> tuple[str, ...]:
    return () if group is None else (f"provla.{group}",)


def _inside(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _allowed(target: Target, trust: Sequence[str]) -> bool:
    """By its text alone: a public class in a room of its group, or in a module that the reader named."""
    if not isinstance(target.name, str) or not DOTTED.fullmatch(target.name):
        return False
    module, _, name = target.name.rpartition(".")
    return not name.startswith("_") and _inside(module, (*_rooms(target.group), *trust))


def _refusal(target: Target, source: Any) -> ValueError:
    rooms = " or ".join(f"{room}.<Class>" for room in _rooms(target.group)) or "no class at all"
    module = (
        str(target.name).rpartition(".")[0] if isinstance(target.name, str) and DOTTED.fullmatch(target.name) else ""
    )
    way_out = (
        f" If you know the module {module} and want its code to run here, say so: trust=[{module}] on the command "
        f"line, trust=[{module!r}] in Python."
        if module
        else ""
    )
    return ValueError(
        f"{target.key}._target_={target.name!r} in {source}: a stored configuration may name provla's own parts alone "
        f"(here: {rooms}), and nothing was imported or run.{way_out}"
    )


def _check_class(target: Target, source: Any, trust: Sequence[str]) -> None:
    module, _, name = target.name.rpartition(".")
    where = f"{target.key}._target_={target.name!r} in {source}"
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where} cannot be imported ({error}); the module must be on the import path, as it was for the training"
        ) from error
    if not inspect.isclass(found) or not _inside(found.__module__, (*_rooms(target.group), *trust)):
        home = getattr(found, "__module__", None) or type(found).__module__
        what = "a class" if inspect.isclass(found) else "no class but a " + type(found).__name__
        raise ValueError(
            f"{where} is {what} of {home}; a stored configuration may name classes alone, each by the module that it "
            "is written in"
        )
    members = MEMBERS.get(target.group or "", ())
    if members and target.key == target.group and not any(hasattr(found, member) for member in members):
        raise ValueError(f"{where} is nothing that {target.group} can use: it has no {' or '.join(members)}")
