"""What remembering frames and remembering sentences share: what decides an encoder's output, and how it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from provla.core.machine import machine
from provla.run.rehearsal import broken


def decided_by(config: Mapping[str, Any], part: str, device: torch.device, *libraries: str) -> dict[str, Any]:
    """All but its weights that decides, to the last bit, what a frozen encoder makes of what it is shown."""
    node = {key: value for key, value in config["policy"][part].items() if key not in ("adapter", "name", "files")}
    found, quant = machine(device), config["policy"].get("quant") or {}
    rounds = ("gpu", "cuda") if device.type == "cuda" else [*sorted(found.keys() - {"ranks"})]
    return {
        part: node,
        "quant": quant if quant.get("bits") else None,
        "machine": {key: found[key] for key in rounds},  # not how many ranks: each encodes by itself
        "versions": [version(name) for name in ("torch", "transformers", *libraries)],
    }


@contextmanager
def asking(policy: Any, part: str, where: str, device: torch.device) -> Iterator[None]:
    """In this block an encoder works in the precision of deployment; `ValueError` names it where it fails."""
    policy.eval()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            yield
        except Exception as error:  # whatever library it is made of
            raise broken(part, where, error) from error
