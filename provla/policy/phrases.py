"""Sentences that were read already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from provla.backbone.later import is_standing_in
from provla.backbone.tower import Tower
from provla.core.types import Tokens

KEPT = 1024  # sentences


class Phrases:
    """A text encoder that reads each sentence once, as long as its weights stay what they are and nobody learns from
    how it reads: in training where it is frozen, and wherever no gradients are taken.

    Each sentence is then read by itself, so that what is kept does not depend on which others it was read with. An
    encoder that is no tower reads by itself. What stands in for one that rests is not kept.
    """

    def __init__(self, text: nn.Module) -> None:
        self._text, self._weights = [text], ()  # in a list: the module is the policy's, not this one's
        self._known: dict[str, Tokens] = {}
        self._kept: tuple[Any, dict[str, Tokens]] = (), {}

    def keep(self, known: Mapping[str, Tokens]) -> None:
        """These are not read again while the weights stay what they are, whatever precision a step computes in."""
        self._kept = self._versions(), dict(known)

    def __call__(self, sentences: list[str]) -> Tokens:
        text: Any = self._text[0]
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in text.parameters())
        if learns or not isinstance(text, Tower) or (text.resting and is_standing_in()):
            self._known = {}  # what learns changes next, and fused kernels do not count it as a new version
            found: Tokens = text(sentences)
            return found
        of, kept = self._kept
        if kept.keys() >= set(sentences) and of == self._versions():
            return _side_by_side([kept[sentence] for sentence in sentences])
        text.wake()
        if (now := self._state()) != self._weights or len(self._known) > KEPT:
            self._known, self._weights = {}, now
        for sentence in sentences:
            if sentence not in self._known:
                found = text([sentence])  # torch.compile's graphs write into what they gave before
                self._known[sentence] = Tokens(found.features.clone(), found.mask)
        return _side_by_side([self._known[sentence] for sentence in sentences])

    def _state(self) -> tuple[Any, ...]:
        """What changes when a weight does, or the precision that the encoder reads in."""
        text: Any = self._text[0]
        device = next(text.parameters()).device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        return (text.model.training, *autocast, *self._versions())

    def _versions(self) -> tuple[Any, ...]:
        text: Any = self._text[0]
        return tuple((w.data_ptr(), w._version) for w in (*text.parameters(), *text.buffers()))


def _side_by_side(found: list[Tokens]) -> Tokens:
    """One batch of them all; the shorter ones' rest is absent."""
    if len(found) == 1:
        return found[0]
    features = nn.utils.rnn.pad_sequence([one.features[0] for one in found], batch_first=True)
    return Tokens(features, nn.utils.rnn.pad_sequence([one.mask[0] for one in found], batch_first=True))
