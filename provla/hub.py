"""Loading from the Hugging Face Hub or a local folder, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def explain(error: Exception, name: str, key: str) -> ValueError:
    """The `ValueError` for a Hub id or folder that could not be loaded."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cause: BaseException | None = error
    while cause is not None:  # transformers wraps what the Hub said
        if isinstance(cause, GatedRepoError):
            return ValueError(f"{key}={name!r} is gated: ask for access at https://huggingface.co/{name}, then set HF_TOKEN (in the environment or in .env)")
        if isinstance(cause, RevisionNotFoundError):
            return ValueError(f"{key}={name!r} exists on the Hugging Face Hub, but not in the revision asked for; change {key.rpartition('.')[0]}.revision")
        if isinstance(cause, RepositoryNotFoundError):
            return ValueError(
                f"{key}={name!r} does not exist on the Hugging Face Hub, or is private; check the spelling, or set HF_TOKEN (in the environment or in .env)"
            )
        cause = cause.__cause__ or cause.__context__
    if Path(name).expanduser().exists():
        return ValueError(f"{key}={name!r}: the folder does not hold what is needed: {reason}")
    if name.startswith(("/", ".", "~")):
        return ValueError(f"{key}={name!r}: no such folder")
    return ValueError(
        f"{key}={name!r} is not a folder here and could not be fetched from the Hugging Face Hub: {reason}\n"
        f"Check the spelling and the connection, or download it elsewhere and set {key}=<folder>."
    )


def from_pretrained(cls: Any, name: str, revision: str | None, key: str, **options: Any) -> Any:
    """`cls.from_pretrained`; `ValueError` that names the key when the weights cannot be had."""
    import transformers
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    transformers.logging.set_verbosity_error()  # what is missing or left over is checked by the caller
    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()  # of downloads, which the line above silenced too
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    return guarded(lambda: cls.from_pretrained(source, revision=revision, **options), name, key)


def guarded(load: Callable[[], Any], name: str, key: str) -> Any:
    """Runs `load`, which reads `name`, and turns what goes wrong outside our code into `explain`'s error."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, HTTPError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        raise explain(error, name, key) from error
