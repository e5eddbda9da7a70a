"""`policy/`: a trained policy as a folder that loads without Hydra."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from provla.adapter import merge
from provla.backbone import towers
from provla.build import build
from provla.checkpoint import load_state, load_tensors, own_state, save_tensors
from provla.files import atomic, write_json
from provla.trust import check_stored
from provla.types import Spec

WEIGHTS = "weights.safetensors"


def save_policy(folder: Path, policy: nn.Module, node: Mapping[str, Any], spec: Spec) -> None:
    """`policy/`: config.json (the composition, its sizes, its bases), weights with normalisation, and a folder per
    backbone with its configuration and tokenizer or image processor. Loads without Hydra. Frozen weights that have a name
    on the Hub or a folder are not stored: config.json says where to find them."""
    bases = {}
    with atomic(folder) as partial:
        partial.mkdir()
        for path, tower in towers(policy):
            tower.save_files(partial / path)
            if tower.from_base():
                assert tower.base is not None
                bases[path] = asdict(tower.base)
        save_tensors(partial / WEIGHTS, own_state(policy))
        write_json(partial / "config.json", {"policy": node, "spec": asdict(spec), "bases": bases})


def load_policy(
    folder: Path,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
) -> tuple[Any, Spec]:
    """The policy of a folder, in evaluation mode, and its sizes.

    changes: dotted keys of the policy node → values. bases: path of a backbone (`vision`, `text`) → where its frozen
    weights lie now. trust: modules of other people's classes that may run. Errors: `ValueError`, also for a base that cannot
    be found or is another one.
    """
    try:
        stored = json.loads((folder / "config.json").read_text())
        spec = stored["spec"]
        for key in ("cameras", "image_size", "instructions"):
            spec[key] = tuple(spec[key])
        sizes = Spec(**spec)
        node, wanted = stored["policy"], stored["bases"]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no policy (no config.json); give the folder of a finished run, or its policy/ folder") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json is damaged: {error!r}") from error
    check_stored({"policy": node}, folder / "config.json", trust)
    for key, value in (changes or {}).items():
        _set(node, key, value)
    unknown = [path for path in bases or {} if path not in wanted]
    if unknown:
        raise ValueError(f"bases names {unknown[0]!r}; this policy needs bases for: {', '.join(wanted) or 'nothing'}")
    for files in sorted(folder.iterdir()):
        if files.is_dir() and files.name not in wanted:
            _set(node, f"{files.name}.files", str(files), new=True)
    for path, name in (bases or {}).items():
        _set(node, f"{path}.name", name)
        _set(node, f"{path}.revision", None)
    try:
        policy = build(node, "policy", nn.Module, spec=sizes, device=device)
    except ValueError as error:
        if not wanted:
            raise
        names = ", ".join(f"{path}: {base['name']}" + (f" at {base['revision']}" if base["revision"] else "") for path, base in wanted.items())
        raise ValueError(
            f"{folder} stores what was trained and needs its frozen bases ({names}); they could not be loaded: {error}\n"
            'If one lies elsewhere, say so: provla.load(path, bases={"vision": <folder>}), or +bases.vision=<folder> on the command line.'
        ) from error
    for path, tower in towers(policy):
        if path in wanted and tower.base is not None and tower.base.fingerprint != wanted[path]["fingerprint"]:
            raise ValueError(f"{folder}: the base of {path}, {tower.base.name!r}, is not the one this policy was trained on; its weights or their sizes differ")
    load_state(policy, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return policy.eval(), sizes


def _set(node: dict[str, Any], key: str, value: Any, new: bool = False) -> None:
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    if last not in node and not new:
        raise ValueError(f"the stored policy has no {key}; {'.'.join(path) or 'policy'} has: {', '.join(node)}")
    node[last] = value


def export_policy(source: Path, target: Path, device: torch.device, bases: Mapping[str, str] | None = None, trust: Sequence[str] = ()) -> dict[str, int]:
    """The policy of `source` with its adapters merged and its quantised weights expanded, whole, into `target`.

    Returns how many layers of each backbone were merged. The export needs no base, no peft and no bitsandbytes.
    """
    policy, spec = load_policy(source, device, bases=bases, trust=trust)
    node = json.loads((source / "config.json").read_text())["policy"]
    merged = {key: merge(getattr(part, "adaptable", part)) for key, part in (("vision", policy.vision), ("text", policy.text))}
    for _, tower in towers(policy):
        tower.base = None
    node["adapter"], node["quant"] = {"_target_": node["adapter"]["_target_"], "mode": "full"}, {"_target_": node["quant"]["_target_"]}
    for key in merged:
        node[key] |= {"adapter": None, "quant": None}
    save_policy(target, policy, node, spec)
    return merged
