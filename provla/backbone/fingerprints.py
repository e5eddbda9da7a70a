"""Which weights a pretrained model has, in one line: hashed whole, once for each set of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from provla.core.errors import NoSpace
from provla.core.files import data_home, fingerprint, write_json
from provla.core.libraries import transformers_library


def weights_fingerprint(model: nn.Module, name: str, revision: str | None) -> str:
    """`sha256:…` over names, shapes, types and bytes of all weights, however the files that they came from are cut.

    name, revision: of the folder or Hub snapshot that `model` was just loaded from. While its files stay as they are
    (place, size, times, inode), the next start takes the hash from `fingerprints/` in the data folder.
    """
    key, kept, stored = _stored(model, name, revision)
    if stored:
        return stored
    found = f"sha256:{content(model)}"
    if key["files"]:
        with contextlib.suppress(OSError, NoSpace):  # it is only a convenience
            write_json(kept, key | {"fingerprint": found})
    return found


def known_fingerprint(model: nn.Module, name: str, revision: str | None) -> str:
    """As `weights_fingerprint`, of a model that may have no weights yet; empty where these files were never hashed."""
    return _stored(model, name, revision)[2]


def _stored(model: nn.Module, name: str, revision: str | None) -> tuple[dict[str, Any], Path, str]:
    """What a hash is of, where it is kept, and the hash that is kept there."""
    files = _files(name, revision)
    key = {"files": files, "layout": content(model, False), "transformers": transformers_library().__version__}
    kept = data_home() / "fingerprints" / f"{fingerprint(key, 32)}.json"
    if files:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(kept.read_text())
            if stored["files"] == files:
                return key, kept, str(stored["fingerprint"])
    return key, kept, ""


def vectors_fingerprint(model: nn.Module) -> str:
    """What policy folders of earlier versions hold: of names, shapes, and the vectors (norms, biases) alone."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if isinstance(tensor, Tensor) and tensor.ndim == 1:
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def content(model: nn.Module, whole: bool = True) -> str:
    """sha256 over names, shapes, types and, unless told otherwise, bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if whole:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _files(name: str, revision: str | None) -> list[Any]:
    """Path, size, times and inode of the files a model lies in; none where they cannot be found."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    paths = sorted(path.resolve() for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json"))
    facts = [(str(path), path.stat()) for path in paths if path.is_file()]
    return [[path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for path, stat in facts]
