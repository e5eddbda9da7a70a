"""Loading from the Hugging Face Hub or a local folder: tensors and settings, never code; with errors a user
can act on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from provla.core.libraries import transformers_library
from provla.core.progress import console


def explain(error: Exception, name: str, key: str) -> ValueError:
    """The `ValueError` for a Hub id or folder that could not be loaded."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cause: BaseException | None = error
    while cause is not None:  # transformers wraps what the Hub said
        if isinstance(cause, GatedRepoError):
            return ValueError(
                f"{key}={name!r} is gated: ask for access at https://huggingface.co/{name}, then set HF_TOKEN (in the "
                "environment or in .env)"
            )
        if isinstance(cause, RevisionNotFoundError):
            return ValueError(
                f"{key}={name!r} exists on the Hugging Face Hub, but not in the revision asked for; change "
                f"{key.rpartition('.')[0]}.revision"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return ValueError(
                f"{key}={name!r} does not exist on the Hugging Face Hub, or is private; check the spelling, or set "
                "HF_TOKEN (in the environment or in .env)"
            )
        cause = cause.__cause__ or cause.__context__
    if "trust_remote_code" in str(error) or _brings_code(Path(name).expanduser()):
        return ValueError(
            f"{key}={name!r} cannot be loaded without running Python code that lies beside it (auto_map), and provla "
            "never runs that. Choose a model that transformers itself knows, or make a class of your own of it, in a "
            "module that you trust"
        )
    if "safetensors" in reason and "use_safetensors" in str(error):
        return ValueError(
            f"{key}={name!r} has no safetensors file on the Hugging Face Hub, only a pickle (.bin), which provla "
            f"reads of a pinned commit alone, and tensors alone; set {key.rpartition('.')[0]}.revision to the commit "
            "that you looked at, or choose a model with safetensors"
        )
    if Path(name).expanduser().exists():
        return ValueError(f"{key}={name!r}: the folder does not hold what is needed: {reason}")
    if name.startswith(("/", ".", "~")):
        return ValueError(f"{key}={name!r}: no such folder")
    return ValueError(
        f"{key}={name!r} is not a folder here and could not be fetched from the Hugging Face Hub: {reason}\n"
        f"Check the spelling and the connection, or download it elsewhere and set {key}=<folder>."
    )


def _brings_code(folder: Path) -> bool:
    return folder.is_dir() and any(
        '"auto_map"' in file.read_text(errors="replace") for file in folder.glob("*config.json")
    )


@contextmanager
def tensors_only() -> Iterator[None]:
    """Whoever calls `torch.load` in this block, libraries included, gets torch's restricted unpickler, which makes
    tensors alone.

    `ValueError` for a file that holds anything else.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    except UnpicklingError as error:
        reason = (
            next((line for line in str(error).splitlines() if "Unsupported" in line), "").strip() or "it is damaged"
        )
        raise ValueError(
            f"a file of pretrained weights holds more than tensors, and nothing of it was run ({reason}); fetch it anew"
        ) from error
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def load_weights(cls: Any, name: str, revision: str | None, key: str, **options: Any) -> Any:
    """`from_pretrained` of a model class, from safetensors. A pickle is read only where the Hub has nothing else at a
    pinned commit.
    """
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = (
        "1"  # transformers would ask a service to convert the model, and tell it our token
    )
    try:
        return from_pretrained(cls, name, revision, key, use_safetensors=True, **options)
    except ValueError as error:
        pinned = (
            revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) and not Path(name).expanduser().exists()
        )
        if not pinned or "no safetensors file on the Hugging Face Hub" not in str(error):
            raise
    console.print(
        f"{key}={name} has no safetensors at {revision}; the tensors of its pickle are read, and nothing else of it"
    )
    return from_pretrained(cls, name, revision, key, use_safetensors=False, **options)


def from_pretrained(cls: Any, name: str, revision: str | None, key: str, **options: Any) -> Any:
    """`cls.from_pretrained` without any code from there; `ValueError` that names the key when it cannot be had."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    transformers = transformers_library()
    transformers.logging.set_verbosity_error()  # what is missing or left over is checked by the caller
    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()  # of downloads, which the line above silenced too
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    return guarded(
        lambda: cls.from_pretrained(source, revision=revision, trust_remote_code=False, **options), name, key
    )


def guarded(load: Callable[[], Any], name: str, key: str) -> Any:
    """Runs `load`, which reads `name`, and turns what goes wrong outside our code into `explain`'s error."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    try:
        with tensors_only():
            return load()
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        HTTPError,
        HfHubHTTPError,
        HFValidationError,
        SafetensorError,
    ) as error:
        raise explain(error, name, key) from error
