"""A client's message as what a policy sees, or why it is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.cameras import Looks, together
from provla.core.checks import did_you_mean
from provla.core.types import Spec
from provla.dataset.cache import small
from provla.execution import continued
from provla.serving.wire import Refused

KEYS = ("images", "state", "prompt", "past_actions", "seed", "prev_chunk", "inference_delay")
FLAT = "observation/"  # before a camera's name, or before `state`: how openpi's examples write the same
LONGEST = 4096  # characters of a sentence


@dataclass(frozen=True)
class Observed:
    """images (T,C,h,w,3) uint8, or of each camera (T,h,w,3) where they differ in size; state (T,S) float32; past (n,A)
    float32, what was executed. seed: of the client's noise from here on; None: it goes on. held: actions (H,A) and
    weight (H,) that the chunk is to continue.
    """

    images: Looks
    state: NDArray[np.float32]
    instruction: str
    past: NDArray[np.float32]
    seed: int | None = None
    held: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


def observed(message: Mapping[str, Any], spec: Spec, anchors: bool) -> Observed:
    """`Refused` names the key, what came and what is expected. anchors: whether the sampler can continue a chunk."""
    message, pictures = _told(message)
    if unknown := [key for key in message if key not in KEYS]:
        raise Refused(
            f"nothing reads {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}; valid: {', '.join(KEYS)}, and "
            f"{FLAT}state, {FLAT}<camera>"
        )
    prompt, seed = message.get("prompt"), message.get("seed")
    if not isinstance(prompt, str) or len(prompt) > LONGEST:
        raise Refused(
            f"prompt is {_seen(prompt)}: expected a sentence of at most {LONGEST} characters; trained on: "
            f"{', '.join(spec.instructions[:8])}"
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63):
        raise Refused(f"seed is {_seen(seed)}: expected a whole number from 0 to 2**63 - 1, or none")
    return Observed(
        _images(pictures, spec),
        _state(message, spec),
        prompt,
        _past(message, spec),
        None if seed is None else int(seed),
        _held(message, spec, anchors),
    )


def _told(message: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message with its names made short, and the pictures by camera."""
    found = {key: value for key, value in message.items() if not key.startswith(FLAT)}
    flat = {key.removeprefix(FLAT): value for key, value in message.items() if key.startswith(FLAT)}
    pictures = found.get("images", {})
    if not isinstance(pictures, dict):
        raise Refused(f"images is {_seen(pictures)}: expected a map of cameras to pictures")
    twice = [name for name in flat if name in pictures or (name == "state" and name in found)]
    if twice:
        raise Refused(f"{twice[0]} came twice, as {FLAT}{twice[0]} too: send it once")
    if "state" in flat:
        found["state"] = flat.pop("state")
    return found, {str(name): value for name, value in {**pictures, **flat}.items()}


def _images(pictures: Mapping[str, Any], spec: Spec) -> Looks:
    for what, names in (
        ("no picture of camera", [name for name in spec.cameras if name not in pictures]),
        ("a picture of an unknown camera", [name for name in pictures if name not in spec.cameras]),
    ):
        if names:
            raise Refused(
                f"{what} {', '.join(map(repr, names))}: the policy sees {', '.join(spec.cameras)}; there came "
                f"{', '.join(pictures) or 'none'}"
            )
    found = [_camera(name, pictures[name], spec) for name in spec.cameras]
    return together(found, lambda alike: np.stack(alike, axis=1))


def _camera(name: str, value: Any, spec: Spec) -> NDArray[np.uint8]:
    """(T,h,w,3) of one camera."""
    (h, w), steps = spec.sizes[name], spec.n_obs_steps
    recorded = spec.recorded.get(name)  # the camera's own size, which training data were reduced from
    own = f", of {recorded[0]}×{recorded[1]} as recorded" if recorded else ""
    wanted = f"(h, w, 3) uint8 of {h}×{w}{own}, or larger in the same proportions" + _history(steps)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        way = "; bytes are round(255 x)" if isinstance(value, np.ndarray) and value.dtype.kind == "f" else ""
        raise Refused(f"camera {name!r} is {_seen(value)}: expected {wanted}{way}")
    frames = value[None] if value.ndim == 3 and steps == 1 else value
    if frames.ndim == 4 and frames.shape[1] == 3 and frames.shape[3] != 3:  # channels first, as openpi's ALOHA has them
        frames = frames.transpose(0, 2, 3, 1)
    whole = frames.ndim == 4 and frames.shape[3] == 3 and len(frames) == steps
    if not whole or not _fits(frames.shape[1:3], (h, w), recorded):
        raise Refused(f"camera {name!r} is {_seen(value)}: expected {wanted}")
    if frames.shape[1:3] == (h, w):
        return frames
    return np.stack([small(np.ascontiguousarray(frame), (h, w)).transpose(1, 2, 0) for frame in frames])


def _fits(size: tuple[int, ...], wanted: tuple[int, int], recorded: Sequence[int] | None) -> bool:
    """Whether a picture of `size` is reduced as the training's were: other proportions would change unseen."""
    if recorded and size == tuple(recorded):
        return True
    return size[0] * wanted[1] == size[1] * wanted[0] and size[0] >= wanted[0]


def _state(message: Mapping[str, Any], spec: Spec) -> NDArray[np.float32]:
    steps, wanted = spec.n_obs_steps, f"({spec.state_size},) finite numbers" + _history(spec.n_obs_steps)
    given = message.get("state")
    found = _numbers(given)
    if found is not None and found.ndim == 1 and steps == 1:
        found = found[None]
    if found is None or found.shape != (steps, spec.state_size) or not np.isfinite(found).all():
        raise Refused(f"state is {_seen(given)}: expected {wanted}")
    return found


def _past(message: Mapping[str, Any], spec: Spec) -> NDArray[np.float32]:
    given = message.get("past_actions")
    if given is None and not spec.n_past_actions:
        return np.zeros((0, spec.action_size), np.float32)
    if not spec.n_past_actions:
        raise Refused("past_actions: this policy reads none (n_past_actions=0); leave them out")
    found = _numbers(given)
    if found is not None and not found.size:
        found = np.zeros((0, spec.action_size), np.float32)
    if found is None or found.ndim != 2 or found.shape[1] != spec.action_size or not np.isfinite(found).all():
        raise Refused(
            f"past_actions is {_seen(given)}: expected (n, {spec.action_size}) finite numbers, what was executed since "
            f"the episode began, the oldest first; the last {spec.n_past_actions} count, and [] at the beginning"
        )
    return found


def _held(
    message: Mapping[str, Any], spec: Spec, anchors: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    before, delay = message.get("prev_chunk"), message.get("inference_delay")
    if before is None and delay is None:
        return None
    if not anchors:
        raise Refused("prev_chunk, inference_delay: this policy's sampler cannot continue a chunk; leave them out")
    if before is None or delay is None:
        raise Refused("prev_chunk and inference_delay go together: what is left of the chunk before, and control steps")
    chunk = _numbers(before)
    if (
        chunk is None
        or chunk.ndim != 2
        or chunk.shape[1] != spec.action_size
        or not 1 <= len(chunk) <= spec.horizon
        or not np.isfinite(chunk).all()
    ):
        raise Refused(
            f"prev_chunk is {_seen(before)}: expected (k, {spec.action_size}) finite numbers, k from 1 to "
            f"{spec.horizon}: what is left of the chunk before, from now on, in the robot's units"
        )
    if isinstance(delay, bool) or not isinstance(delay, int | np.integer) or not 0 <= delay <= len(chunk):
        raise Refused(
            f"inference_delay is {_seen(delay)}: expected control steps, from 0 to the {len(chunk)} of prev_chunk"
        )
    return continued(chunk, int(delay), spec.horizon)


def _numbers(value: Any) -> NDArray[np.float32] | None:
    """float32 of an array or a list of numbers; None where it is none."""
    if not isinstance(value, np.ndarray | list):
        return None
    try:
        found = np.asarray(value)
    except ValueError:  # rows of several lengths
        return None
    return found.astype(np.float32) if found.dtype.kind in "iuf" else None


def _history(steps: int) -> str:
    return f", {steps} of them stacked, the oldest first (n_obs_steps={steps})" if steps > 1 else ""


def _seen(value: Any) -> str:
    """What came, in words."""
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        wrong = ", not all finite" if value.dtype.kind == "f" and not np.isfinite(value).all() else ""
        return f"{value.shape} {value.dtype.name}{wrong}"
    text = repr(value)
    return f"a {type(value).__name__} ({text if len(text) <= 60 else f'{text[:57]}...'})"
