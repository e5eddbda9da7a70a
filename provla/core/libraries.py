"""transformers and diffusers, without the seconds that their imports spend on what no part here uses."""

from __future__ import annotations

import csv
import importlib.metadata
import inspect
import sys
from collections import defaultdict
from functools import cache
from importlib import import_module
from typing import Any
from unittest.mock import patch

FINDS = "importlib.metadata.packages_distributions"


@cache
def packages_distributions() -> dict[str, list[str]]:
    """Top-level package → the distributions that bring it, as `importlib.metadata.packages_distributions` finds it;
    that one asks the disk for each file of each distribution, and both libraries ask it when they are imported.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for one in importlib.metadata.distributions():
        for package in (one.read_text("top_level.txt") or "").split() or _recorded(one):
            found[package].append(one.metadata["Name"])
    return dict(found)


def _recorded(one: importlib.metadata.Distribution) -> set[str]:
    """What lies topmost among a distribution's files."""
    if (record := one.read_text("RECORD")) is None:
        paths = [path.parts for path in one.files or ()]
    else:
        paths = [tuple(row[0].split("/")) for row in csv.reader(record.splitlines()) if row]
    names = {parts[0] if len(parts) > 1 else inspect.getmodulename(parts[0]) for parts in paths}
    return {name for name in names if name and "." not in name}


def transformers_library() -> Any:
    """transformers, without scikit-learn and scipy: it would import them for assisted generation and for the loss of
    detectors, which no part here does.
    """
    with patch(FINDS, packages_distributions):
        import transformers
    for module, asks in (
        ("transformers.loss.loss_utils", "is_scipy_available"),
        ("transformers.generation.candidate_generator", "is_sklearn_available"),
    ):
        if module not in sys.modules:
            with patch.object(transformers.utils, asks, lambda: False):
                import_module(module)
    return transformers


def diffusers_library() -> Any:
    """diffusers, of which nothing is imported before it is asked for."""
    with patch(FINDS, packages_distributions):
        import diffusers
    return diffusers
