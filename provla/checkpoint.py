"""Training checkpoints, and the tensors of a policy on disk. safetensors and JSON only; whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from provla.adapter import load_quantized
from provla.backbone import towers
from provla.files import atomic, write_json


def find_device(name: str) -> torch.device:
    """auto: a GPU where there is one. `ValueError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} is not available: {str(error).splitlines()[0]}; valid: auto, cpu, cuda, cuda:<n>") from error
    return device


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """`ValueError` for a file that is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it is missing or damaged: {error}") from error


def own_state(policy: nn.Module) -> dict[str, Tensor]:
    """The policy's state without what the bases of its backbones hold."""
    left_out = _from_bases(policy)
    return {name: tensor for name, tensor in policy.state_dict().items() if name not in left_out}


def _from_bases(policy: nn.Module) -> set[str]:
    return {f"{path}.model.{name}" for path, tower in towers(policy) for name in tower.from_base()}


def load_state(module: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """`own_state`, quantised weights included, into `module`; `ValueError` where names or sizes differ."""
    try:
        missing, unexpected = module.load_state_dict(load_quantized(module, weights), strict=False)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{source} does not fit this policy: {error}") from error
    known = set(weights) | _from_bases(module)
    lost = [name for name in missing if name not in known]
    if lost or unexpected:
        raise ValueError(f"{source} does not fit this policy: missing {lost[:3]}, unexpected {unexpected[:3]}")


class Checkpoints:
    """`checkpoints/step_…` folders, with the links `latest` and `best`; what neither points at is deleted.

    A folder is written aside, its manifest last, and renamed; a link is replaced in one step. So whatever instant the
    process dies at, `latest` points at a whole checkpoint.
    """

    def __init__(self, folder: Path, identity: str = "", on_save: Callable[[Path, list[str]], None] | None = None) -> None:
        """identity: of the configuration; stored, so that `adopt` refuses another run's. on_save: told each checkpoint and what it is."""
        self.folder, self._identity, self._on_save = folder, identity, on_save

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best: bool) -> None:
        """tensors: file stem → its tensors. state: JSON."""
        target = self.folder / f"step_{step:07d}"
        if target.exists():  # of a run that died before it moved the link
            shutil.rmtree(target)
        with atomic(target) as partial:
            partial.mkdir()
            for name, group in tensors.items():
                save_tensors(partial / f"{name}.safetensors", group)
            write_json(partial / "state.json", {**state, "identity": self._identity})
            write_json(partial / "manifest.json", {file.name: file.stat().st_size for file in sorted(partial.iterdir())})
        aliases = ["latest", *(["best"] if best else [])]
        for name in aliases:
            with atomic(self.folder / name) as partial:
                partial.symlink_to(target.name)
        kept = {os.readlink(link) for name in ("latest", "best") if (link := self.folder / name).is_symlink()}
        for old in self.folder.glob("step_*"):
            if old.name not in kept:
                shutil.rmtree(old)
        if self._on_save is not None:
            self._on_save(target, aliases)

    def adopt(self, source: Path) -> None:
        """Makes a checkpoint folder from elsewhere the latest here; it must be of the same configuration (`ValueError`)."""
        _, state = _read(source, "fetch it again")
        if state.get("identity") != self._identity:
            raise ValueError(
                f"resume: the checkpoint {source} is of another configuration ({state.get('identity')}, this is {self._identity}); use the same overrides"
            )
        target = self.folder / f"step_{state['fit']['step']:07d}"
        with atomic(target) as partial:
            shutil.copytree(source, partial)
        for name in ("latest", "best"):
            with atomic(self.folder / name) as partial:
                partial.symlink_to(target.name)

    def load(self, which: str = "latest") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """None where there is none yet; `ValueError` where one is damaged."""
        folder = self.folder / which
        return _read(folder, f"delete {self.folder} to start the run anew") if folder.exists() else None


def _read(folder: Path, way_out: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}; {way_out}") from error
    for name, size in manifest.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"checkpoint {folder} is damaged: {name} is missing or truncated; {way_out}")
    return {Path(name).stem: load_tensors(folder / name) for name in manifest if name.endswith(".safetensors")}, state
