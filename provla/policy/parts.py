"""What the compositions share: outside of them everything is in the robot's units, inside it is normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from provla.core.interfaces import Generators
from provla.core.precision import deployed
from provla.core.types import Anchor, Observation, Spec
from provla.policy.normalize import Normalizer


class Normalized(nn.Module):
    """A policy whose `sample` knows normalised actions alone. reach: how far its sampler goes, and the key that says
    so.
    """

    spec: Spec
    state_norm: Normalizer
    action_norm: Normalizer
    _normalization: Mapping[str, Any]

    def fit_normalization(self, states: Tensor, actions: Tensor) -> None:
        """states (N,S) and actions (N,A) of the training episodes, in the robot's units."""
        self.state_norm.fit(states, self._normalization["state"])
        self.action_norm.fit(actions, self._normalization["action"])
        self.action_norm.check_reach(actions, self._normalization["action"], *self.reach)

    @property
    def reach(self) -> tuple[float, str]:
        raise NotImplementedError

    def sample(self, observation: Observation, generator: Generators, anchor: Anchor | None) -> Tensor:
        """(B,H,A) normalised, as the anchor's actions are."""
        raise NotImplementedError

    @deployed
    def act(self, observation: Observation, generator: Generators = None, anchor: Anchor | None = None) -> Tensor:
        """(B,H,A) float32 in the robot's units, as the anchor's actions are; the sampler's noise comes from `generator`
        (one, or a list of B).
        """
        if anchor is not None:
            anchor = replace(anchor, actions=self.action_norm(anchor.actions))
        chunk: Tensor = self.action_norm.undo(self.sample(observation, generator, anchor).float())
        return chunk
