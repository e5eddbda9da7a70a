"""Sentences that a frozen encoder has read once are not read again, by any run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from provla.backbone.tower import Tower
from provla.core.claims import claimed
from provla.core.errors import NoSpace
from provla.core.files import fingerprint, write_bytes, write_json, writing
from provla.core.types import Tokens
from provla.policy.phrases import KEPT
from provla.run.frozen import asking, decided_by


def remember_sentences(config: Mapping[str, Any], policy: Any, sentences: Sequence[str], folder: Path) -> None:
    """Gives a policy what its frozen text encoder makes of all its data's sentences, from a file that is made now if it
    is not there; its weights may rest then. What is kept is in the precision of deployment, as pictures' features are.
    """
    text, phrases = getattr(policy, "text", None), getattr(policy, "phrases", None)
    if phrases is None or not isinstance(text, Tower) or text.base is None or len(sentences) > KEPT:
        return
    if any(p.requires_grad for p in text.parameters()):
        return
    facts = decided_by(config, "text", text.device, "tokenizers")
    facts |= {"weights": text.base.fingerprint, "sentences": list(sentences)}
    path = folder / f"sentences_{fingerprint(facts, 24)}.safetensors"
    known = _known(path, sentences)
    if known is None:
        with suppress(NoSpace), writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with claimed(path.with_suffix(".claim")):
                known = _known(path, sentences) or _read(path, policy, sentences)
    known = known or _read(path, policy, sentences)
    text.rest()
    phrases.keep({s: Tokens(t.features.to(text.device), t.mask.to(text.device)) for s, t in known.items()})


def _known(path: Path, sentences: Sequence[str]) -> dict[str, Tokens] | None:
    """None where there is no file, or it is not what was written."""
    with suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
        data = path.read_bytes()
        if json.loads(path.with_suffix(".json").read_text())["sha256"] == hashlib.sha256(data).hexdigest():
            held = load(data)
            return {s: Tokens(held[f"{n}.features"], held[f"{n}.mask"]) for n, s in enumerate(sentences)}
    return None


def _read(path: Path, policy: Any, sentences: Sequence[str]) -> dict[str, Tokens]:
    """Each by itself, as `Phrases` has it."""
    with asking(policy, "text", f"on {sentences[0]!r}", policy.text.device):
        found = {sentence: policy.text([sentence]) for sentence in sentences}
    held: dict[str, Tensor] = {}
    for number, tokens in enumerate(found.values()):
        held |= {f"{number}.features": tokens.features.cpu().clone(), f"{number}.mask": tokens.mask.cpu().clone()}
    with suppress(NoSpace):  # then the next run reads them again
        data = save(held)
        write_bytes(path, data)
        write_json(path.with_suffix(".json"), {"sha256": hashlib.sha256(data).hexdigest()})
    return found
