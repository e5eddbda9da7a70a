"""The contract of each swappable part. A class that fits is an arm; nothing has to be registered or inherited."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from provla.core.types import Batch, Observation, Tokens

# One generator for the whole batch, or one per row, so that a row's noise does not depend on its neighbours.
Generators = Generator | list[Generator] | None


class Vision(Protocol):
    """images (B,T,C,3,h,w) uint8 → Tokens (B,N,width). Resizes and scales pixels itself.

    Built with `num_images` (T·C) and `image_size` (h, w). An encoder may also have `adaptable`, the module that
    adapters and quantisation act on (else the encoder itself), and `pretrained` (else false); `backbone.Tower` gives
    both.
    """

    width: int

    def __call__(self, images: Tensor) -> Tokens: ...


class Text(Protocol):
    """B instructions → Tokens (B,N,width). Tokenises itself. Built with `instructions`, those of the training episodes.

    `adaptable` and `pretrained` as of `Vision`.
    """

    width: int

    def __call__(self, instructions: list[str]) -> Tokens: ...


class Fusion(Protocol):
    """Vision Tokens, text Tokens and normalised state (B,T,S) → context Tokens (B,K,width).

    Built with `vision_width`, `text_width` and `state_size` (T·S).
    """

    width: int

    def __call__(self, vision: Tokens, text: Tokens, state: Tensor) -> Tokens: ...


class Head(Protocol):
    """(noisy actions (B,H,A), time (B,), context Tokens) → prediction (B,H,A). Built with `action_size`, `horizon`,
    `context_width`.
    """

    def __call__(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor: ...


class Scheduler(Protocol):
    """The training objective and the sampler, both on normalised actions. Noise and steps are float32 whatever the head
    computes in.
    """

    def loss(
        self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None, time: Tensor | None
    ) -> Tensor:
        """Mean over the unpadded steps and the joints, a scalar. noise (B,H,A) and time (B,) are drawn here
        when None.
        """
        ...

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) of the given shape; all noise comes from the generator, or row by row from a list of B generators."""
        ...


class Augmentation(Protocol):
    """batch → its images (B,T,C,3,h,w) uint8, changed; called in training only.

    All it draws stands in the batch (crop, color, or what `Batch.key` seeds), so that a sample's change does not depend
    on its neighbours; it draws for itself where the batch holds no draws.
    """

    def __call__(self, batch: Batch) -> Tensor: ...


class Policy(Protocol):
    """What the trainer and the rollout know of a policy."""

    def loss(self, batch: Batch) -> dict[str, Tensor]: ...

    def act(self, observation: Observation, generator: Generators = None) -> Tensor: ...
