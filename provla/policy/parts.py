"""What the compositions share: outside of them everything is in the robot's units, inside it is normalised."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from provla.core.cameras import Images, each, in_words
from provla.core.interfaces import Generators
from provla.core.precision import deployed
from provla.core.types import Anchor, Batch, Observation, Spec
from provla.policy.normalize import Normalizer
from provla.policy.relative import Relative


def check_seen(observation: Observation, spec: Spec) -> None:
    """`ValueError` for pictures and states that are not what a policy was built for: one camera of two would be taken
    for both without a word.
    """
    _check_pictures(observation.images, (len(observation), spec.n_obs_steps), spec)
    state = observation.state
    states = (len(observation), spec.n_obs_steps, spec.state_size)
    if tuple(state.shape) != states:
        raise ValueError(f"state is {tuple(state.shape)}: expected (B,T,S) = {states} in the robot's units")
    whose = observation.source
    if whose is None:
        spec.check_driving()
    elif not spec.sources or tuple(whose.shape) != (len(observation),):
        raise ValueError(
            f"source is {tuple(whose.shape)}: expected "
            + (f"(B,) = ({len(observation)},)" if spec.sources else "None, as one normalisation holds for all data")
        )
    if observation.past_actions is not None and not spec.n_past_actions:
        raise ValueError("past_actions: this policy reads none (n_past_actions=0); leave them out")


def _check_pictures(images: Images, looks: tuple[int, int], spec: Spec) -> None:
    """looks: samples and observation steps."""
    apart, order = isinstance(spec.image_size, Mapping), f"the cameras {', '.join(spec.cameras)} in this order"
    each_one = {camera: (*looks, 3, *size) for camera, size in spec.sizes.items()}
    wanted = tuple(each_one.values()) if apart else (*looks, len(spec.cameras), 3, *next(iter(spec.sizes.values())))
    found = each(images, lambda one: tuple(one.shape))
    kinds = {str(one.dtype).removeprefix("torch.") for one in (images if isinstance(images, tuple) else (images,))}
    if found == wanted and kinds == {"uint8"}:
        return
    told = f"images is {found} {', '.join(sorted(kinds))}"
    if not apart:
        raise ValueError(f"{told}: expected (B,T,C,3,h,w) = {wanted} uint8, the pictures of {order}")
    raise ValueError(
        f"{told}: the cameras differ in size ({in_words(spec.sizes)}); expected a tuple of (B,T,3,h,w) uint8, one for "
        f"each of {order}: " + ", ".join(f"{camera} {shape}" for camera, shape in each_one.items())
    )


def check_sizes(kind: Any, key: str, spec: Spec) -> None:
    """`ValueError` for a part of a class that knows of one size of pictures alone, where cameras differ."""
    if isinstance(spec.image_size, Mapping) and not getattr(kind, "many_sizes", False):
        raise ValueError(
            f"{key}: {kind.__name__} takes pictures of one size, and the cameras differ ({in_words(spec.sizes)}); "
            f"bring them to one by dataset.image_size=[h,w], or choose another {key} (a class that takes a tuple of "
            "cameras says many_sizes = True, see provla/core/interfaces.py)"
        )


class Normalized(nn.Module):
    """A policy whose `sample` knows normalised actions alone. reach: how far its sampler goes, and the key that says
    so.
    """

    spec: Spec
    state_norm: Normalizer
    action_norm: Normalizer
    relative: Relative | None
    _normalization: Mapping[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.relative = None

    def fit_normalization(
        self,
        states: Tensor,
        actions: Tensor,
        chunks: Iterable[tuple[Tensor, Tensor]] | None = None,
        source: int | None = None,
    ) -> None:
        """states (N,S) and actions (N,A) of the training episodes, in the robot's units. chunks: for relative actions,
        which are no function of their row: of each step of all chunks the states (M,S) that those begin in, and the
        actions (M,A), without what is padded; None: chunks of one action. source: whose they all are, where each has
        statistics of its own.
        """
        if self.relative is not None:
            self.relative.check(states, actions)
            steps = chunks if chunks is not None else [(states, actions)]
            actions = torch.cat([action - self.relative(begun) for begun, action in steps])
        self.state_norm.fit(states, self._normalization["state"], source)
        self.action_norm.fit(actions, self._normalization["action"], source)
        self.action_norm.check_reach(actions, self._normalization["action"], *self.reach, source)

    @property
    def reach(self) -> tuple[float, str]:
        raise NotImplementedError

    def sample(self, observation: Observation, generator: Generators, anchor: Anchor | None) -> Tensor:
        """(B,H,A) normalised, as the anchor's actions are."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> Tensor:
        """(B,H,A): what `sample` is to give."""
        return self.inside(batch.actions, batch.observation)

    def whose(self, observation: Observation) -> Tensor | int | None:
        """Whose statistics hold: of each sample (B,), or of all; None where there is one normalisation."""
        spec = self.spec
        if not spec.sources or observation.source is not None:
            return observation.source
        spec.check_driving()
        return spec.sources.index(str(spec.source))

    def state(self, observation: Observation) -> Tensor:
        """(B,T,S), normalised."""
        found: Tensor = self.state_norm(observation.state, self.whose(observation))
        return found

    def inside(self, actions: Tensor, observation: Observation) -> Tensor:
        """(B,n,A) in the robot's units → as the networks see them."""
        known = actions if self.relative is None else actions - self._base(observation)
        normalised: Tensor = self.action_norm(known, self.whose(observation))
        return normalised

    def outside(self, chunk: Tensor, observation: Observation) -> Tensor:
        """(B,H,A) as the networks give it → float32 in the robot's units."""
        found: Tensor = self.action_norm.undo(chunk.float(), self.whose(observation))
        return found if self.relative is None else found + self._base(observation)

    def _base(self, observation: Observation) -> Tensor:
        """(B,1,A): what actions are relative to."""
        assert self.relative is not None
        found: Tensor = self.relative(observation.state[:, -1:])
        return found

    @deployed
    def act(self, observation: Observation, generator: Generators = None, anchor: Anchor | None = None) -> Tensor:
        """(B,H,A) float32 in the robot's units, as the anchor's actions are; the sampler's noise comes from `generator`
        (one, or a list of B). `ValueError` for an observation of other sizes than the policy's.
        """
        check_seen(observation, self.spec)
        if anchor is not None:
            anchor = replace(anchor, actions=self.inside(anchor.actions, observation))
        return self.outside(self.sample(observation, generator, anchor), observation)


def takes_anchors(policy: Any) -> bool:
    """Whether `act` and the sampler behind it know of chunks that continue others."""
    sample = getattr(getattr(policy, "scheduler", None), "sample", policy.act)
    return all("anchor" in inspect.signature(one).parameters for one in (policy.act, sample))
