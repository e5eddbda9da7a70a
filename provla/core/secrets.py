"""Keys, tokens and passwords: refused where they are typed, hidden in whatever is written or shown.

Secrets come from the environment. A configuration names them (`${oc.env:WANDB_API_KEY}`), and what is stored of its
resolved form passes `hide_in`; messages and tracebacks pass `hide`. Hidden are: values of keys that are secrets by
their name, values of the environment's own secrets wherever they stand, credentials in URLs, and what has the form of a
known service's key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

HIDDEN = "<hidden>"  # also in YAML a plain word
# Secrets whatever their value is; `pad_token`, `state_key`, `tokens` and the like are none.
CERTAIN = (
    r"(?:[\w\-]*[_\-])?(?:api[_\-]?key|access[_\-]?key|secret[_\-]?key|private[_\-]?key|secret|password|passwd|passphrase|credentials)"
    r"|(?:[\w\-]*[_\-])?(?:hf|hub|huggingface|access|auth|api|bearer|refresh|session|github|gh|gitlab|wandb|private|secret)[_\-]token|token"
)
# Secrets where their value looks drawn at random.
LIKELY = r"[\w\-]*[_\-](?:key|token|pat)"
RANDOM = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(?=(?:\D*\d){2})[\w\-+=~]{16,}")
NO_SECRET = re.compile(r"(?i)|null|none|true|false|\?\?\?|\.{3}.*|…|<.*|\$\{.*|\d{1,5}")
VALUE = r"""(?P<value>\\"[^"]*\\"|\\'[^']*\\'|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\$\{[^}]*\}|[^\s,;&(){}\[\]'"]+)"""
ASSIGNED = re.compile(
    rf"(?i)(?P<head>(?<![\w\-])(?:(?P<certain>{CERTAIN})|{LIKELY})(?P<between>\\?['\"]?\s*=\s*))(?!=){VALUE}"
)
LISTED = re.compile(
    rf"(?i)(?P<head>(?<![\w\-])(?:(?P<certain>{CERTAIN})|{LIKELY})(?P<between>\\?['\"]?\s*:\s*)){VALUE}"
)
ENVIRONMENT = re.compile(r"(?i).+_(?:KEY|TOKEN|SECRET|PASSWORD)")
FORMS = {
    "credentials in a URL": re.compile(r"(?<=://)(?:[^/\s:@'\"]*:[^/\s@'\"]+|[^/\s:@'\"]{12,})(?=@)"),
    "a key in a URL": re.compile(
        r"(?i)(?<=[?&])((?:[\w\-]*(?:token|secret|password|signature|credential|key)|sig|auth)=)[^&\s#'\"]{4,}"
    ),
    "a Hugging Face token": re.compile(r"\bhf_(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}"),
    "a key": re.compile(r"\b(?:sk-|wandb_v1_|gh[pousr]_|github_pat_|glpat-|AKIA)(?=\w*\d)[\w\-]{16,}"),
    "a bearer token": re.compile(r"(?i)(\bbearer\s+)[\w\-.~+/=]{12,}"),
}
# A W&B key; a commit looks alike, and is told by what stands before it.
HEX = re.compile(r"(?<![\w/@\-])[0-9a-f]{40}(?![\w\-])")
COMMIT = re.compile(r"(?i)(?:revision|commit|sha|hash|fingerprint|\bat)\W*$")


def hide(text: str) -> str:
    """The text with every secret blotted out."""
    return _hide(text, "", _environment(), listed=True)


def hide_in(value: Any, key: str = "") -> Any:
    """A configuration, or whatever JSON can hold, with every secret blotted out; classes' names stay. key: the value's
    own.

    In its strings `name: value` is left alone, which may be a sentence that a policy was trained on.
    """
    return _hide_in(value, key, _environment())


def _hide_in(value: Any, key: str, own: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: inner if name == "_target_" else _hide_in(inner, str(name), own) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_in(inner, key, own) for inner in value]
    if _is_secret(key, value):
        return HIDDEN
    return _hide(str(value), key, own, listed=False) if isinstance(value, str | PurePath) else value


def check_arguments(arguments: Sequence[str]) -> None:
    """`ValueError` for a command line that holds a secret: it would stand in process lists, histories and records."""
    for argument in arguments:
        if (shown := hide(argument)) != argument:
            raise ValueError(_refusal(_reason(argument), shown))


def check_literal(config: Any) -> None:
    """`ValueError` for a composed configuration that holds a secret as it stands, before it is resolved."""
    for key, value in _leaves(config):
        shown = hide_in(value, key.rpartition(".")[2])
        if shown != value or HIDDEN in str(value):  # hidden already in a sweep's copy of the files
            raise ValueError(_refusal(_reason(f"{key.rpartition('.')[2]}={value}"), f"{key}={shown}"))


def _refusal(reason: str, shown: str) -> str:
    way_out = "Put it into the environment or into .env, and write ${oc.env:NAME} where a key needs it"
    return f"{shown} holds {reason}; nothing was started. {way_out}"


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _leaves(value, f"{key}.{name}".lstrip("."))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _leaves(value, key)
    else:
        yield key, config


def _is_secret(key: str, value: Any) -> bool:
    """By the key's name, and where that could be another thing's, by the value."""
    if value is None or isinstance(value, bool) or NO_SECRET.fullmatch(str(value)):
        return False
    return bool(
        re.fullmatch(CERTAIN, key, re.IGNORECASE)
        or (re.fullmatch(LIKELY, key, re.IGNORECASE) and RANDOM.fullmatch(str(value)))
    )


def _hide(text: str, key: str, own: Iterable[str], listed: bool) -> str:
    for value in own:
        text = text.replace(value, HIDDEN)
    for form in FORMS.values() if len(text) > 12 else ():
        text = form.sub(lambda found: (found[1] if found.re.groups else "") + HIDDEN, text)
    text = ASSIGNED.sub(_blot, text) if "=" in text else text
    text = LISTED.sub(_blot, text) if listed and ":" in text else text
    return (
        text
        if len(text) < 40 or COMMIT.search(key)
        else HEX.sub(lambda found: found[0] if COMMIT.search(text[: found.start()][-24:]) else HIDDEN, text)
    )


def _blot(found: re.Match[str]) -> str:
    value = found["value"]
    quote = value[: 2 if value[0] == "\\" else 1] if value[0] in "\\'\"" else ""
    bare = value.strip("'\"\\")
    listed, random = ":" in found["between"], RANDOM.fullmatch(bare)
    if NO_SECRET.fullmatch(bare) or not (found["certain"] or random) or (listed and not quote and len(bare) < 8):
        return found[0]
    return f"{found['head']}{quote}{HIDDEN}{quote}"


def _environment() -> dict[str, str]:
    """The environment's secrets → their names, longest first; a path or a short word is none."""
    found = {
        value: name
        for name, value in os.environ.items()
        if len(value) >= 8 and value[0] not in "/.~" and ENVIRONMENT.fullmatch(name)
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _reason(text: str) -> str:
    """What makes a text secret, in words that do not tell it."""
    named = next((f"the value of {name}" for value, name in _environment().items() if value in text), None)
    formed = next((what for what, form in FORMS.items() if form.search(text)), None)
    return named or formed or "a secret"
