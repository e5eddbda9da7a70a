"""Loading from the Hugging Face Hub or a local folder, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def explain(error: Exception, name: str, key: str) -> ValueError:
    """The `ValueError` for a Hub id or folder that could not be loaded."""
    if Path(name).exists():
        return ValueError(f"{key}={name!r}: the folder does not hold what is needed: {error}")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"{key}={name!r} is not a folder here and could not be fetched from the Hugging Face Hub: {reason}\n"
        f"Check the spelling and the connection, or download it elsewhere and set {key}=<folder>."
    )


def from_pretrained(cls: Any, name: str, revision: str | None, key: str, **options: Any) -> Any:
    """`cls.from_pretrained`; `ValueError` that names the key when the weights cannot be had."""
    return guarded(lambda: cls.from_pretrained(name, revision=revision, **options), name, key)


def guarded(load: Callable[[], Any], name: str, key: str) -> Any:
    """Runs `load`, which reads `name`, and turns what goes wrong outside our code into `explain`'s error."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, HTTPError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        raise explain(error, name, key) from error
