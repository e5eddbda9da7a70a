"""From a configuration node to an object: `_target_` names the class, `_partial_` leaves sizes for later.

Hydra composes; this builds, so that a policy folder loads without Hydra, so that every wrong key gets the same clear
error, and so that a configuration somebody hands in can only make what the caller asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from provla.core.checks import check, check_values, did_you_mean, shown
from provla.core.renamed import now

# What torch says of sizes that are too large.
NO_ROOM = ("allocate memory", "out of memory", "Storage size calculation overflowed", "not enough memory", "overflow")


def locate(path: str, where: str) -> Any:
    """The class or function behind a dotted path; `ValueError` that names the configuration key when there is none."""
    module, _, name = now(path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where}._target_={path!r} cannot be imported ({error}); it must be the dotted path of a class on the "
            "import path"
        ) from error


def build(node: Mapping[str, Any], where: str, kind: type | None = None, **extra: Any) -> Any:
    """The object a node describes, with `extra` arguments from the caller; of a `_partial_` one, what makes it from the
    rest.

    where: the node's key, for messages. kind: the class must be a subclass of it (pass it for a node that comes from a
    file somebody hands in). Errors: `ValueError` as of `check_node`, for a key that is missing, and for sizes that no
    memory holds.
    """
    target, given = check_node(node, where, kind, extra)
    later = partial(_make, target, given, where, str(node["_target_"]))
    return partial(later, **extra) if node.get("_partial_") else later(**extra)


def check_node(
    node: Any, where: str, kind: type | None = None, extra: Collection[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """The class of a node and the keys given to it, nothing built.

    extra: parameters that the caller supplies. Errors: `ValueError` for a key that the class does not take, with those
    it takes, and for a value that is not of the type its signature names (see `provla.core.checks`).
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{where}={shown(node)}: expected a node with a _target_")
    target = locate(str(node["_target_"]), where)
    if kind is not None and not (inspect.isclass(target) and issubclass(target, kind)):
        raise ValueError(f"{where}._target_={node['_target_']!r} is not a {kind.__name__}")
    check(bool, node.get("_partial_", False), f"{where}._partial_")
    given = {str(key): value for key, value in node.items() if key not in ("_target_", "_partial_")}
    parameters, takes_all = _parameters(target, where)
    valid = [name for name in parameters if name not in extra]
    unknown = [key for key in given if key not in valid]
    if unknown and not takes_all:
        hint = did_you_mean(unknown[0], valid)
        raise ValueError(
            f"nothing reads {where}.{unknown[0]}={shown(given[unknown[0]])}{hint}; {node['_target_']} takes: "
            f"{', '.join(valid) or 'nothing'}"
        )
    check_values(target, given, where)
    missing = [name for name in valid if parameters[name].default is inspect.Parameter.empty and name not in given]
    if node.get("_partial_") and not missing and not takes_all:
        raise ValueError(f"{where}._partial_=true: {node['_target_']} leaves nothing for later; set it to false")
    if hasattr(target, "check_parts") and not missing:
        target.check_parts(given, where)
    return target, given


def check_nodes(config: Mapping[str, Any]) -> None:
    """`check_node` for everything that a run is made of, in a second or two and with nothing built."""
    from torch import nn

    for key in ("trainer", "env", "logger", "pruner", "dataset"):
        check_node(config[key], key)
    check_node(config["policy"], "policy", nn.Module, ("spec", "device"))


def _parameters(target: Any, where: str) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters of a class or function, and whether it takes any others."""
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}._target_={target!r} is no class or function that can be called with keys") from error
    named = {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in found.values())


def _make(target: Any, given: Mapping[str, Any], where: str, name: str, /, **extra: Any) -> Any:
    parameters, takes_all = _parameters(target, where)
    twice, refused = [key for key in extra if key in given], [key for key in extra if key not in parameters]
    if twice:
        raise ValueError(f"{where}.{twice[0]}={shown(given[twice[0]])}: provla sets this itself; leave it out")
    if refused and not takes_all:
        raise ValueError(f"{where}: provla gives {', '.join(extra)}, and {name} does not take {', '.join(refused)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in given and key not in extra]
    if missing:
        raise ValueError(
            f"{where}.{missing[0]} is missing; {name} needs it (a part that gets it from provla says _partial_: true)"
        )
    try:
        return target(**given, **extra)
    except (MemoryError, OverflowError) as error:
        raise ValueError(f"{where}: {name} of these sizes does not fit into memory: {first_line(error)}") from error
    except RuntimeError as error:
        if any(word in str(error) for word in NO_ROOM):
            raise ValueError(f"{where}: {name} of these sizes does not fit into memory: {first_line(error)}") from error
        raise


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
