"""What of a policy is kept on disk, as tensors, and held against what loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from provla.backbone.tower import towers
from provla.core.progress import console
from provla.quant import load_quantized


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors of any device; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """`ValueError` for a file that is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it is missing or damaged: {error}") from error


def count_bytes(*groups: Mapping[str, Tensor]) -> int:
    """What tensors take on disk."""
    return sum(tensor.nbytes for group in groups for tensor in group.values())


def own_state(policy: nn.Module) -> dict[str, Tensor]:
    """The policy's state without what the bases of its backbones hold."""
    left_out = _from_bases(policy)
    return {name: tensor for name, tensor in policy.state_dict().items() if name not in left_out}


def _from_bases(policy: nn.Module) -> set[str]:
    return {f"{path}.model.{name}" for path, tower in towers(policy) for name in tower.from_base()}


def base_fingerprints(policy: nn.Module) -> dict[str, str]:
    """Path of a backbone → the fingerprint of the frozen weights that its base holds."""
    return {
        path: tower.base.fingerprint for path, tower in towers(policy) if tower.base is not None and tower.from_base()
    }


def check_bases(policy: nn.Module, wanted: Mapping[str, str], source: Path) -> None:
    """`ValueError` where a base of `policy` has other weights than `source` was trained on. wanted: as
    `base_fingerprints`.
    """
    for path, tower in towers(policy):
        if path not in wanted or tower.base is None:
            continue
        whole = wanted[path].startswith("sha256:")
        if wanted[path] != (tower.base.fingerprint if whole else tower.vectors):
            raise ValueError(
                f"{source}: the base of {path}, {tower.base.name!r}, is not the one this policy was trained on; its "
                "weights or their sizes differ"
            )
        if not whole:
            console.print(
                f"{source}: of the base of {path} only norms and biases could be compared, because an earlier provla "
                "wrote this"
            )


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
