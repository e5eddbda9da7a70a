"""The contract of each swappable part. A class that fits is an arm; nothing has to be registered or inherited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from provla.core.world import Embodiment, Episode

if TYPE_CHECKING:  # a world's process imports no torch
    from torch import Generator, Tensor

    from provla.core.cameras import Images
    from provla.core.types import Anchor, Batch, Observation, Tokens

# One generator for the whole batch, or one per row, so that a row's noise does not depend on its neighbours.
type Generators = Generator | list[Generator] | None
Array = NDArray[Any]


class Vision(Protocol):
    """images (B,T,C,3,h,w) uint8 → Tokens (B,N,width). Resizes and scales pixels itself.

    Built with `num_images` (T·C) and `image_size` (h, w). One that says `many_sizes = True` is also given cameras that
    differ in size: images are then a tuple of C tensors (B,T,3,h,w), and `image_size` is camera → (h, w), in that
    order (`core/cameras.py`, `vision/parts.seen_by`). An encoder may also have `adaptable`, the module that
    adapters and quantisation act on (else the encoder itself), and `pretrained` (else false); `backbone.Tower` gives
    both.
    """

    width: int

    def __call__(self, images: Images) -> Tokens: ...


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

    def sample(
        self,
        head: Head,
        context: Tokens,
        shape: tuple[int, int, int],
        generator: Generators = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """(B,H,A) of the given shape; all noise comes from the generator, or row by row from a list of B generators.

        anchor: at each step the predicted clean chunk is pulled to it; asked for by `execution=rtc` alone.
        """
        ...


class Augmentation(Protocol):
    """batch → its images (B,T,C,3,h,w) uint8, changed; called in training only. `many_sizes` as of `Vision`.

    All it draws stands in the batch (crop, color, or what `Batch.key` seeds), so that a sample's change does not depend
    on its neighbours; it draws for itself where the batch holds no draws.
    """

    def __call__(self, batch: Batch) -> Images: ...


class Policy(Protocol):
    """What the trainer and the rollout know of a policy."""

    def loss(self, batch: Batch) -> dict[str, Tensor]: ...

    def act(self, observation: Observation, generator: Generators = None, anchor: Anchor | None = None) -> Tensor: ...


class World(Protocol):
    """A simulation of one task. Twenty lines are enough: chunks, history, films, limits and processes are provla's.

    embodiment: its cameras, state, actions and fps. A world says whether it is solved by `success`, or how well, by
    `score() -> float` instead: then an episode has succeeded once it reaches the suite's `success_score`. It may have:

    over() -> str: empty while an episode can go on, else why it cannot (`world.OVER`).
    rules() -> name → whether another rule of success has been met in the episode so far.
    expert(): the action (A,) that a scripted expert takes now, with which `provla.record` records demonstrations.
    frame(): (h, w, 3) uint8 for people, else the first camera's picture; close().
    eyes, beyond, step_size: what perturbations use: the cameras (`env.mujoco.Eyes`); how far outside the range of
    initial states episodes begin, in widths of the range; a sizeable change of each number of an action.
    """

    embodiment: Embodiment

    def reset(self, seed: int) -> None:
        """Begins an episode, whose initial state depends on the seed and on nothing else."""
        ...

    def step(self, action: Array) -> None:
        """One control step; action (A,) in the robot's units, within the bounds of the embodiment."""
        ...

    def state(self) -> Array:
        """(S,): what the robot feels, in its units."""
        ...

    def images(self) -> Mapping[str, Array]:
        """Camera → (h, w, 3) uint8. Asked for only when somebody looks; looking changes nothing."""
        ...

    def success(self) -> bool:
        """Whether the task is done now; the first time ends the episode."""
        ...


class Suite(Protocol):
    """What an evaluation plays, and the worlds to play it in. It is sent to the processes of its worlds by pickle.

    It may have `check()`, which raises `ValueError` before anything slow begins; `num_envs`, worlds alive at once;
    `workers`, processes they are spread over; `timeout`, seconds for a reset or a chunk; `video_stride`, control steps
    between the frames of a film; `success_score` (1.0).
    """

    episodes: Sequence[Episode]
    embodiment: Embodiment
    max_episode_steps: int

    def make(self, task: str) -> World: ...


class Source(Protocol):
    """A data set: all episodes as arrays (`provla.dataset.Demonstrations`). val_fraction, split_seed: see its
    `split`.
    """

    val_fraction: float
    split_seed: int

    def load(self) -> Any: ...
