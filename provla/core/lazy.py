"""Names that a package exports without importing the module behind one before somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`. homes: a name it exports → the module of the package that holds it."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has: {', '.join(homes)}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
