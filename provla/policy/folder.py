"""`policy/`: a trained policy as a folder that loads without Hydra."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from provla.backbone.tower import towers
from provla.core.build import build
from provla.core.files import atomic, refuse_links_out, write_json
from provla.core.manifest import MANIFEST, check_file, check_manifest, read_manifest, write_manifest
from provla.core.progress import console
from provla.core.trust import check_stored
from provla.core.types import Spec, fake_observation
from provla.policy.weights import check_bases, count_bytes, load_state, load_tensors, own_state, save_tensors
from provla.quant import merge

WEIGHTS = "weights.safetensors"
PROBES = 16  # observations on which an export is compared with its policy


def save_policy(
    folder: Path,
    policy: nn.Module,
    node: Mapping[str, Any],
    spec: Spec,
    export: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:
    """`policy/`: config.json (the composition, its sizes, its bases), weights with normalisation, and a folder per
    backbone with its configuration and tokenizer or image processor. Loads without Hydra. Frozen weights that have a
    name
    on the Hub or a folder are not stored: config.json says where to find them.

    export: what config.json says of an export. facts: of the run, kept in manifest.json. `NoSpace` on a full disk.
    """
    bases, state = {}, own_state(policy)
    with atomic(folder, count_bytes(state)) as partial:
        partial.mkdir()
        for path, tower in towers(policy):
            tower.save_files(partial / path)
            if tower.from_base():
                assert tower.base is not None
                bases[path] = asdict(tower.base)
        save_tensors(partial / WEIGHTS, state)
        write_json(
            partial / "config.json",
            {"policy": node, "spec": asdict(spec), "bases": bases} | ({"export": export} if export else {}),
        )
        write_manifest(partial, **facts)


def find_policy(path: Path) -> Path:
    """The folder of the policy: that of the run `path`, or `path` itself. `ValueError` where the run's is a link that
    leads out of it.
    """
    refuse_links_out(path, "policy")
    return path if (path / WEIGHTS).is_file() else path / "policy"


def run_beside(folder: Path) -> dict[str, Any]:
    """The configuration of the run that a policy's folder lies in; empty where it lies in none. `ValueError` where it
    is damaged.
    """
    file = folder.parent / "config.json"
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error
    return config if isinstance(config, dict) and "trainer" in config else {}  # LeRobot's, of an export


def load_policy(
    folder: Path,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    driving: str | None = None,
) -> tuple[Any, Spec]:
    """The policy of a folder, in evaluation mode, and its sizes.

    changes: dotted keys of the policy node → values. bases: path of a backbone (`vision`, `text`) → where its frozen
    weights lie now. trust: modules of other people's classes that may run. driving: whose robot, see `Spec.source`.
    Errors: `ValueError`, also for a base that cannot be found or is another one, and for a folder that is not what its
    manifest says.
    """
    _check(folder)
    node, wanted, sizes = _read(folder)
    sizes = sizes.driving(driving)
    check_stored({"policy": node}, folder / "config.json", trust)
    _check_no_files(node, folder)
    for key, value in (changes or {}).items():
        _set(node, key, value)
    _say_where(node, folder, wanted, bases or {})
    try:
        policy = build(node, "policy", nn.Module, spec=sizes, device=device)
    except ValueError as error:
        if not wanted:
            raise
        raise _without_bases(folder, wanted, error) from error
    for _, tower in towers(policy):  # whoever loads a policy may do anything with it
        tower.stay()
    check_bases(policy, {path: base["fingerprint"] for path, base in wanted.items()}, folder)
    load_state(policy, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return policy.eval(), sizes


def _say_where(
    node: dict[str, Any], folder: Path, wanted: Mapping[str, Mapping[str, Any]], bases: Mapping[str, str]
) -> None:
    """Tells the policy's node where its backbones' files and weights lie."""
    unknown = [path for path in bases if path not in wanted]
    if unknown:
        raise ValueError(f"bases names {unknown[0]!r}; this policy needs bases for: {', '.join(wanted) or 'nothing'}")
    for files in sorted(folder.iterdir()):
        if files.is_dir() and files.name not in wanted:
            _set(node, f"{files.name}.files", str(files), new=True)
    for path, name in bases.items():
        _set(node, f"{path}.name", name)
        _set(node, f"{path}.revision", None)


def read_spec(folder: Path) -> Spec:
    """The sizes of a policy's folder, with nothing loaded; `ValueError` for one that holds none, or is damaged."""
    refuse_links_out(folder)
    if (folder / MANIFEST).exists():
        check_file(folder, "config.json")
    return _read(folder)[2]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Spec]:
    """The policy's node, the bases it needs, and its sizes."""
    try:
        stored = json.loads((folder / "config.json").read_text())
        spec = stored["spec"]
        for key in ("cameras", "instructions"):
            spec[key] = tuple(spec[key])
        for key in ("state_names", "action_names", "sources"):
            spec[key] = tuple(spec.get(key, ()))
        spec["action_bounds"] = tuple(map(tuple, spec.get("action_bounds", ())))
        spec["recorded"] = {camera: tuple(size) for camera, size in spec.get("recorded", {}).items()}
        return stored["policy"], stored["bases"], Spec(**spec)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no policy (no config.json); give the folder of a finished run, or its policy/ folder"
        ) from error
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise ValueError(f"{folder}/config.json is damaged: {error!r}") from error


def _without_bases(folder: Path, wanted: Mapping[str, Mapping[str, Any]], error: ValueError) -> ValueError:
    names = ", ".join(
        f"{path}: {base['name']}" + (f" at {base['revision']}" if base["revision"] else "")
        for path, base in wanted.items()
    )
    return ValueError(
        f"{folder} stores what was trained and needs its frozen bases ({names}); they could not be loaded: {error}\n"
        'If one lies elsewhere, say so: provla.load(path, bases={"vision": <folder>}), or bases.vision=<folder> on '
        "the command line."
    )


def _check(folder: Path) -> None:
    """Before anything of it is used: no link leads out of it, and every file is what was written."""
    refuse_links_out(folder)
    if (folder / MANIFEST).exists():
        check_manifest(folder)
    elif (folder / WEIGHTS).exists():
        console.print(
            f"{folder} has no {MANIFEST} (an earlier provla wrote it), so nobody can say whether its files are what "
            "was written"
        )


def _check_no_files(node: Any, folder: Path) -> None:
    """A backbone's files lie in the folder, and only `load_policy` says where; a stored place could be anywhere."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key == "files" and value is not None:
            raise ValueError(
                f"{folder}/config.json names files={str(value)!r} for a backbone: a policy keeps them in its own "
                "folder and stores no place"
            )
        _check_no_files(value, folder)


def _set(node: dict[str, Any], key: str, value: Any, new: bool = False) -> None:
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    if last not in node and not new:
        raise ValueError(f"the stored policy has no {key}; {'.'.join(path) or 'policy'} has: {', '.join(node)}")
    node[last] = value


def export_policy(
    source: Path,
    target: Path,
    device: torch.device,
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    driving: str | None = None,
) -> dict[str, int]:
    """The policy of `source` with its adapters merged and its quantised weights expanded, whole, into `target`.

    driving: of a policy with statistics of several sources, whose robot the export drives where nobody says otherwise.
    Returns how many layers of each backbone were merged; a policy without backbones has none. The export needs no base,
    no peft and no bitsandbytes. By how much it acts otherwise than the policy it comes from, on a probe, is said and
    kept in its config.json: LLM.int8 rounds activations as well, which a merged weight does not. Errors: `ValueError`,
    also for a policy that cannot do without something from elsewhere.
    """
    policy, spec = load_policy(source, device, bases=bases, trust=trust, driving=driving)
    before = _probe(policy, spec, device)
    node = json.loads((source / "config.json").read_text())["policy"]
    if hasattr(policy, "whole"):
        node = policy.whole(node)
    parts = {key: part for key in ("vision", "text") if isinstance(part := getattr(policy, key, None), nn.Module)}
    merged = {key: merge(getattr(part, "adaptable", part)) for key, part in parts.items()}
    for _, tower in towers(policy):
        tower.base = None
    if merged:
        node["adapter"], node["quant"] = (
            {"_target_": node["adapter"]["_target_"], "mode": "full"},
            {"_target_": node["quant"]["_target_"]},
        )
    for key in merged:
        node[key] |= {"adapter": None, "quant": None}
    difference = (_probe(policy, spec, device) - before).abs()
    found = {
        "observations": PROBES,
        "max_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
    }
    told = read_manifest(source) if (source / MANIFEST).exists() else {}
    facts = {key: told[key] for key in ("identity", "step") if key in told}  # it is still that run's policy
    save_policy(target, policy, node, spec, found | {"mean_action": before.abs().mean().item()}, **facts)
    console.print(
        f"actions on {PROBES} random observations differ from the policy's by {found['mean_difference']:.2g} on "
        f"average and {found['max_difference']:.2g} at most (they are {before.abs().mean():.2g} large on average)"
    )
    return merged


def _probe(policy: Any, spec: Spec, device: torch.device) -> Tensor:
    """Actions (PROBES, H, A) for random pixels and states, with fixed noise."""
    actions: Tensor = policy.act(fake_observation(spec, PROBES).to(device), torch.Generator().manual_seed(0))
    return actions.float().cpu()
