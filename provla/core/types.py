"""What flows between the rooms, drawn once.

Legend: B batch, T observation steps, C cameras, H horizon (actions predicted), A action size, S state size, N tokens, D
width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from provla.core.cameras import Images, ImageSize, Size, shared, sizes_of
from provla.core.device import send

JointGroups = Mapping[str, Sequence[str]] | Literal["each"] | None


class _Movable:
    """Moves and slices every tensor (and list) of a dataclass along the batch."""

    def to(self, device: torch.device) -> Self:
        """On `device`; a GPU is not waited for."""
        return self._with(lambda tensor: send(tensor, device), lambda inner: inner.to(device))

    def pinned(self) -> Self:
        """In memory that a GPU copies from while others go on."""
        return self._with(Tensor.pin_memory, Observation.pinned)

    def rows(self, part: slice) -> Self:
        cut = self._with(lambda tensor: tensor[part], lambda inner: inner.rows(part))
        lists = {f.name: value[part] for f in fields(cut) if isinstance(value := getattr(cut, f.name), list)}  # type: ignore[arg-type]
        return replace(cut, **lists)  # type: ignore[type-var]

    def _with(self, tensor: Callable[[Tensor], Tensor], inner: Callable[[Observation], Observation]) -> Self:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple):  # a tensor for each camera, or sentences, which stay
                return tuple(map(changed, value))
            if isinstance(value, Tensor):
                return tensor(value)
            return inner(value) if isinstance(value, Observation) else value

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type, type-var]


@dataclass(frozen=True)
class Observation(_Movable):
    """What a policy sees. images (B,T,C,3,h,w) uint8, or where cameras differ in size a tuple of C tensors (B,T,3,h,w);
    state (B,T,S) float32 in the robot's units; B instructions.

    past_actions (B,P,A) float32 in the robot's units: what was executed before, the oldest first; past_is_pad (B,P)
    bool, True before the episode's start, where the action is 0 (see `past_of`). features (B,T,C,…), or of each camera
    (B,T,…): what a frozen vision encoder has made of the images, where somebody knows it already. sentences, which (B,)
    int64: the sentences to be read, each once, and which of them each sample has, where somebody has looked already
    (see `told`). source (B,) int64: for a policy with statistics of its own for each source of a mix, whose robot each
    is (a position among `Spec.sources`).
    """

    images: Images
    state: Tensor
    instruction: list[str]
    past_actions: Tensor | None = None
    past_is_pad: Tensor | None = None
    features: Images | None = None
    sentences: tuple[str, ...] | None = None
    which: Tensor | None = None
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.instruction)

    def told(self) -> tuple[list[str], Tensor]:
        """The distinct sentences, and which of them each sample has: (B,) int64, where the state lies."""
        if self.sentences is not None and self.which is not None:
            return list(self.sentences), self.which
        place = {text: number for number, text in enumerate(dict.fromkeys(self.instruction))}
        return list(place), send(torch.tensor([place[text] for text in self.instruction]), self.state.device)

    def look_up(self, sentences: Sequence[str]) -> Self:
        """With `which`, of the given sentences, so that a policy has nothing to look for."""
        place = {text: number for number, text in enumerate(sentences)}
        which = torch.tensor([place[text] for text in self.instruction])
        return replace(self, sentences=tuple(sentences), which=which)


@dataclass(frozen=True)
class Batch(_Movable):
    """Observations and the action chunks that were demonstrated from there.

    actions (B,H,A) float32 in the robot's units; is_pad (B,H) bool, True past the episode's end. The random draws of a
    training step travel with the samples they belong to, so that splitting a batch changes no gradient and every arm of
    a study meets the same draws: noise (B,H,A) standard normal; time (B,), crop (B,2) and color (B,2) uniform in [0,
    1); key (B,) int64, a seed per sample for draws whose size only the policy knows, which stays on the host.
    steps_per_sample: unpadded steps per sample of the batch that this one is a part of; None where it is no part.
    """

    observation: Observation
    actions: Tensor
    is_pad: Tensor
    noise: Tensor | None = None
    time: Tensor | None = None
    crop: Tensor | None = None
    color: Tensor | None = None
    key: Tensor | None = None
    steps_per_sample: float | None = None

    def __len__(self) -> int:
        return len(self.observation)

    def to(self, device: torch.device) -> Self:
        """On `device`, but for the keys: generators are seeded by the host, which would have to wait for them."""
        return replace(super().to(device), key=self.key)

    def split(self, parts: int) -> Iterator[Self]:
        """`parts` batches of consecutive rows, of nearly equal size."""
        bounds = [len(self) * i // parts for i in range(parts + 1)]
        if parts == 1:
            return iter((self,))
        mean = self.steps_per_sample or (~self.is_pad).sum().item() / len(self)  # a part's parts are of the whole
        whole = replace(self, steps_per_sample=mean)
        return (whole.rows(slice(a, b)) for a, b in itertools.pairwise(bounds) if b > a)

    def per_sample(self, mean: Tensor) -> Tensor:
        """A mean over samples, weighted so that parts of a batch that count by their unpadded steps add up to
        its own.
        """
        if self.steps_per_sample is None:
            return mean
        return mean * (self.steps_per_sample * len(self)) / (~self.is_pad).sum()


@dataclass(frozen=True)
class Tokens:
    """features (B,N,D); mask (B,N) bool, False where a token is absent. N may be 0."""

    features: Tensor
    mask: Tensor

    @classmethod
    def full(cls, features: Tensor) -> Self:
        """Tokens that are all present."""
        return cls(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))

    def mean(self) -> Tensor:
        """(B,D): the mean of the present tokens; zero where there is none."""
        weight = self.mask.unsqueeze(-1).to(self.features.dtype)  # (B, N, 1)
        return (self.features * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Anchor:
    """What a chunk that is being sampled is to continue. actions (B,H,A); weight (B,H) in [0, 1], 1 where a step is
    fixed.
    """

    actions: Tensor
    weight: Tensor

    def pull(self, clean: Tensor) -> Tensor:
        """clean (B,H,A), brought that near."""
        return torch.lerp(clean, self.actions, self.weight.unsqueeze(-1))


@dataclass(frozen=True)
class Spec:
    """The sizes and names a policy is built for; stored with its weights.

    instructions: those of the training episodes (what a table of task embeddings knows). joint_groups: group name →
    positions in the action vector; metrics are reported for each as well. state_names, action_names: of the numbers, in
    their order; empty where the data set has none, or an earlier provla stored the policy. image_size: (h, w) of all
    cameras' pictures; camera → (h, w) where they differ. recorded: camera → (h, w) of
    its pictures before they were reduced to image_size; a camera that is not named was not reduced. n_past_actions:
    executed actions that the policy reads. action_bounds: lowest and highest that a robot executes of each action, None
    where there is none; empty where nobody knows. sources: of a mix, those that have statistics of their own; empty
    where one normalisation holds for all. source: of these, whose robot is driven where an observation does not say.
    """

    cameras: tuple[str, ...]
    image_size: ImageSize
    state_size: int
    action_size: int
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    instructions: tuple[str, ...]
    joint_groups: dict[str, list[int]]
    fps: float
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    recorded: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    n_past_actions: int = 0
    action_bounds: tuple[tuple[float | None, float | None], ...] = ()
    sources: tuple[str, ...] = ()
    source: str | None = None

    def __post_init__(self) -> None:
        check_steps(self.horizon, self.n_action_steps)
        object.__setattr__(self, "image_size", shared(self.sizes))

    @property
    def sizes(self) -> dict[str, Size]:
        """Camera → (h, w)."""
        return sizes_of(self.image_size, self.cameras)

    def driving(self, source: str | None) -> Self:
        """For the robot of this source; None: as it is. `ValueError` for a source without statistics of its own."""
        if source is None:
            return self
        if source not in self.sources:
            why = f"valid: {', '.join(self.sources)}"
            none = "one normalisation holds for all data (dataset.normalize=per_source has several), so leave it out"
            raise ValueError(f"source={source!r}: {why if self.sources else none}")
        return replace(self, source=source)

    def check_driving(self) -> None:
        """`ValueError` where nobody says whose robot is driven and it matters."""
        if self.sources and self.source is None:
            raise ValueError(
                f"the policy has statistics of its own for each of {', '.join(self.sources)} "
                f"(dataset.normalize=per_source), and nobody says whose robot it drives: give source=<one of them>, in "
                f"Python provla.load(path, source={self.sources[0]!r})"
            )


def check_steps(horizon: int, n_action_steps: int) -> None:
    """`ValueError` for more actions executed than predicted."""
    if n_action_steps > horizon:
        raise ValueError(
            f"n_action_steps={n_action_steps} exceeds horizon={horizon}: a policy cannot execute more actions than it "
            "predicts"
        )


def fake_observation(spec: Spec, batch: int, seed: int = 0) -> Observation:
    """Random pixels and states of the right shapes, for tests and for counting sizes."""
    g = torch.Generator().manual_seed(seed)
    sizes = spec.sizes.values()

    def drawn(cameras: int, size: Size) -> Tensor:
        shape = (batch, spec.n_obs_steps, cameras, 3, *size)
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)

    apart = isinstance(spec.image_size, Mapping)
    found = Observation(
        images=tuple(drawn(1, size)[:, :, 0] for size in sizes) if apart else drawn(len(sizes), next(iter(sizes))),
        state=torch.randn(batch, spec.n_obs_steps, spec.state_size, generator=g),
        instruction=[spec.instructions[i % len(spec.instructions)] for i in range(batch)],
        source=torch.arange(batch) % len(spec.sources) if spec.sources and spec.source is None else None,
    )
    if not spec.n_past_actions:
        return found
    past = torch.rand(batch, spec.n_past_actions, spec.action_size, generator=g) * 2 - 1
    return replace(found, past_actions=past, past_is_pad=torch.zeros(past.shape[:2], dtype=torch.bool))


def fake_batch(spec: Spec, batch: int, seed: int = 0) -> Batch:
    """A `fake_observation` with random chunks, the last quarter of every second one padded."""
    g = torch.Generator().manual_seed(seed + 1)
    is_pad = torch.zeros(batch, spec.horizon, dtype=torch.bool)
    is_pad[1::2, spec.horizon * 3 // 4 :] = True
    actions = torch.rand(batch, spec.horizon, spec.action_size, generator=g) * 2 - 1
    return Batch(fake_observation(spec, batch, seed), actions, is_pad)


def past_of(executed: Sequence[Sequence[NDArray[np.float32]]], spec: Spec) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """`past_actions` and `past_is_pad` of an `Observation`, from what each of B robots has executed so far (n,A), the
    oldest first; the last P count. Whoever gives what was asked for, and not what the robot made of it, is helped where
    the policy knows the robot's bounds. None for a policy that reads none.
    """
    count = spec.n_past_actions
    if not count:
        return None, None
    past = np.zeros((len(executed), count, spec.action_size), np.float32)
    early = np.ones((len(executed), count), bool)
    low, high = np.array(spec.action_bounds or [(None, None)], np.float32).T  # not a number where there is no bound
    for row, actions in enumerate(executed):
        kept = list(actions)[-count:]
        if kept:
            past[row, -len(kept) :] = np.fmin(np.fmax(np.stack(kept), low), high)
            early[row, -len(kept) :] = False
    return torch.from_numpy(past), torch.from_numpy(early)


def anchor_of(
    told: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]] | None], spec: Spec, device: torch.device
) -> Anchor:
    """From actions (H,A) and weight (H,) of each of B robots; None continues nothing."""
    actions = np.zeros((len(told), spec.horizon, spec.action_size), np.float32)
    weight = np.zeros(actions.shape[:2], np.float32)
    for row, one in enumerate(told):
        if one is not None:
            actions[row], weight[row] = one
    return Anchor(torch.from_numpy(actions).to(device), torch.from_numpy(weight).to(device))


def joint_groups_of(names: Sequence[str], groups: JointGroups | str) -> dict[str, list[int]]:
    """Group → positions of its joints. groups: group → names of joints; `each`: one a joint; None: none."""
    if groups is None:
        return {}
    if groups == "each":
        return {name: [i] for i, name in enumerate(names)}
    if isinstance(groups, str):
        raise ValueError(
            f"dataset.joint_groups={groups!r}; valid: null, each, or names of groups with lists of joints, such as "
            f"{{arm: [{names[0]}]}}"
        )
    for group, members in groups.items():
        unknown = [str(name) for name in members if name not in names]
        if unknown:
            raise ValueError(
                f"dataset.joint_groups names {unknown[0]!r}, which is no joint of this data set; it has: "
                f"{', '.join(names)}"
            )
        if not members:
            raise ValueError(f"dataset.joint_groups.{group} has no joints; this data set has: {', '.join(names)}")
    return {group: [names.index(name) for name in members] for group, members in groups.items()}
