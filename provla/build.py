"""From a configuration node to an object: `_target_` names the class, `_partial_` leaves sizes for later.

Hydra composes; this builds, so that a policy folder loads without Hydra, so that every wrong key gets the same clear
error, and so that a configuration somebody hands in can only make what the caller asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any


def locate(path: str, where: str) -> Any:
    """The class or function behind a dotted path; `ValueError` that names the configuration key when there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}._target_={path!r} cannot be imported ({error}); it must be the dotted path of a class on the import path") from error


def build(node: Mapping[str, Any], where: str, kind: type | None = None, **extra: Any) -> Any:
    """The object a node describes, with `extra` arguments from the caller.

    where: the node's key, for messages. kind: the class must be a subclass of it (pass it for a node that comes from a
    file somebody hands in). Errors: `ValueError` for a key that the class does not take, with those it takes.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{where}={node!r}: expected a node with a _target_")
    target = locate(str(node["_target_"]), where)
    if kind is not None and not (inspect.isclass(target) and issubclass(target, kind)):
        raise ValueError(f"{where}._target_={node['_target_']!r} is not a {kind.__name__}")
    given = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    parameters = inspect.signature(target).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in given if key not in parameters]
    if unknown and not takes_all:
        valid = ", ".join(name for name in parameters if name not in extra)
        raise ValueError(f"nothing reads {where}.{unknown[0]}={given[unknown[0]]!r}; {node['_target_']} takes: {valid}")
    call = partial(target, **given, **extra)
    if node.get("_partial_"):
        return call
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in given and name not in extra
    ]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing; {node['_target_']} needs it")
    return call()
