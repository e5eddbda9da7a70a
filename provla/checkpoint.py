"""What is kept on disk: policy folders and training checkpoints. safetensors and JSON only; whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from provla.adapter import load_quantized, merge
from provla.backbone import towers
from provla.build import build
from provla.files import atomic, write_json
from provla.types import Spec

WEIGHTS = "weights.safetensors"


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


def load_policy(folder: Path, device: torch.device, changes: Mapping[str, Any] | None = None, bases: Mapping[str, str] | None = None) -> tuple[Any, Spec]:
    """The policy of a folder, in evaluation mode, and its sizes.

    changes: dotted keys of the policy node → values. bases: path of a backbone (`vision`, `text`) → where its frozen
    weights lie now. Errors: `ValueError`, also for a base that cannot be found or is another one.
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


def export_policy(source: Path, target: Path, device: torch.device, bases: Mapping[str, str] | None = None) -> dict[str, int]:
    """The policy of `source` with its adapters merged and its quantised weights expanded, whole, into `target`.

    Returns how many layers of each backbone were merged. The export needs no base, no peft and no bitsandbytes.
    """
    policy, spec = load_policy(source, device, bases=bases)
    node = json.loads((source / "config.json").read_text())["policy"]
    merged = {key: merge(getattr(part, "adaptable", part)) for key, part in (("vision", policy.vision), ("text", policy.text))}
    for _, tower in towers(policy):
        tower.base = None
    node["adapter"], node["quant"] = {"_target_": node["adapter"]["_target_"], "mode": "full"}, {"_target_": node["quant"]["_target_"]}
    for key in merged:
        node[key] |= {"adapter": None, "quant": None}
    save_policy(target, policy, node, spec)
    return merged


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
