"""What a policy does not read: chosen on the command line it would change nothing, and arms that differ in it alone
would be equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PARTS = ("augmentation", "vision", "text", "adapter", "quant", "fusion", "head", "scheduler")


def check_read(config: Mapping[str, Any], overrides: Sequence[str], policy: str) -> None:
    """`ValueError` where overrides choose or change a part that the policy does not read.

    config: composed, with its interpolations unresolved. overrides: as they were typed. policy: the option of that
    name, for the message. What a default or a preset chose and nobody reads is no error.
    """
    if "policy" not in config:
        return
    read = _read(config)
    asked = {one: re.split(r"[=.@:]", one.lstrip("+~"), maxsplit=1)[0] for one in overrides}
    unread = {one: part for one, part in asked.items() if part in PARTS and part in config and part not in read}
    if not unread:
        return
    parts = list(dict.fromkeys(unread.values()))
    own = [
        f"policy.{part}.{key}"
        for part in parts
        if isinstance(node := config["policy"].get(part), Mapping)
        for key in node
    ]
    raise ValueError(
        f"policy={policy} does not read {', '.join(parts)}: {' '.join(unread)} would change nothing. Leave it out"
        + (f", or set {', '.join(own)}" if own else "")
        + "; in a study, put it into the arms that read it (arms: name → overrides)"
    )


def _read(config: Mapping[str, Any]) -> set[str]:
    """The parts that the policy's node refers to, itself or through other parts."""
    read: set[str] = set()
    todo = ["policy"]
    while todo:
        words = {word for text in _texts(config[todo.pop()]) if "${" in text for word in re.findall(r"\w+", text)}
        new = [part for part in PARTS if part in words - read and part in config]
        read |= set(new)
        todo += new
    return read


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _texts(value)
