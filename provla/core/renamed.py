"""Classes that had another name in an earlier provla: what that one wrote still loads, and is still the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Then → now.
RENAMED = {"provla.adapter.Quant": "provla.quant.Quant", "provla.baseline.LeRobotPolicy": "provla.policy.LeRobotPolicy"}
FIRST = {now: then for then, now in RENAMED.items()}


def now(name: Any) -> Any:
    """The name of today."""
    return RENAMED.get(name, name) if isinstance(name, str) else name


def as_first_named(node: Any) -> Any:
    """A configuration under the names that its classes had first: identities are hashes of those, and so outlive a
    renaming.
    """
    if isinstance(node, Mapping):
        return {
            key: FIRST.get(value, value) if key == "_target_" and isinstance(value, str) else as_first_named(value)
            for key, value in node.items()
        }
    return [as_first_named(value) for value in node] if isinstance(node, list | tuple) else node
