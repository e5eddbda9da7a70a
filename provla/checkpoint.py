"""What is kept on disk: policy folders and training checkpoints. safetensors and JSON only; whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from provla.adapter import load_quantized
from provla.build import build
from provla.files import atomic, write_json
from provla.types import Spec

WEIGHTS = "weights.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """`ValueError` for a file that is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it is missing or damaged: {error}") from error


def load_state(module: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Weights, quantised ones included, into `module`; `ValueError` where names or sizes differ."""
    try:
        missing, unexpected = module.load_state_dict(load_quantized(module, weights), strict=False)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{source} does not fit this policy: {error}") from error
    stored = set(weights)
    lost = [name for name in missing if name not in stored]
    if lost or unexpected:
        raise ValueError(f"{source} does not fit this policy: missing {lost[:3]}, unexpected {unexpected[:3]}")


def save_policy(folder: Path, policy: nn.Module, node: Mapping[str, Any], spec: Spec) -> None:
    """`policy/`: config.json (the composition and its sizes) and weights with normalisation; loads without Hydra."""
    with atomic(folder) as partial:
        partial.mkdir()
        save_tensors(partial / WEIGHTS, policy.state_dict())
        write_json(partial / "config.json", {"policy": node, "spec": asdict(spec)})


def load_policy(folder: Path, device: torch.device, changes: Mapping[str, Any] | None = None) -> tuple[Any, Spec]:
    """The policy of a folder, in evaluation mode, and its sizes. `changes`: dotted keys of the policy node → values."""
    try:
        stored = json.loads((folder / "config.json").read_text())
        spec = stored["spec"]
        for key in ("cameras", "image_size", "instructions"):
            spec[key] = tuple(spec[key])
        sizes = Spec(**spec)
        node = stored["policy"]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no policy (no config.json); give the folder of a finished run, or its policy/ folder") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json is damaged: {error!r}") from error
    for key, value in (changes or {}).items():
        _set(node, key, value)
    policy = build(node, "policy", nn.Module, spec=sizes, device=device)
    load_state(policy, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return policy.eval(), sizes


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    if last not in node:
        raise ValueError(f"the stored policy has no {key}; {'.'.join(path) or 'policy'} has: {', '.join(node)}")
    node[last] = value


class Checkpoints:
    """`checkpoints/step_…` folders, with the links `latest` and `best`; what neither points at is deleted.

    A folder is written aside, its manifest last, and renamed; a link is replaced in one step. So whatever instant the
    process dies at, `latest` points at a whole checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best: bool) -> None:
        """tensors: file stem → its tensors. state: JSON."""
        target = self.folder / f"step_{step:07d}"
        if target.exists():  # of a run that died before it moved the link
            shutil.rmtree(target)
        with atomic(target) as partial:
            partial.mkdir()
            for name, group in tensors.items():
                save_tensors(partial / f"{name}.safetensors", group)
            write_json(partial / "state.json", state)
            write_json(partial / "manifest.json", {file.name: file.stat().st_size for file in sorted(partial.iterdir())})
        for name in ["latest", *(["best"] if best else [])]:
            with atomic(self.folder / name) as partial:
                partial.symlink_to(target.name)
        kept = {os.readlink(link) for name in ("latest", "best") if (link := self.folder / name).is_symlink()}
        for old in self.folder.glob("step_*"):
            if old.name not in kept:
                shutil.rmtree(old)

    def load(self, which: str = "latest") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """None where there is none yet; `ValueError` where one is damaged."""
        folder = self.folder / which
        if not folder.exists():
            return None
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {folder} is damaged: {error}; delete {self.folder} to start the run anew") from error
        for name, size in manifest.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise ValueError(f"checkpoint {folder} is damaged: {name} is missing or truncated; delete {self.folder} to start the run anew")
        return {Path(name).stem: load_tensors(folder / name) for name in manifest if name.endswith(".safetensors")}, state
