"""What a policy survives: a world whose camera, light, surfaces, objects, pictures, actions or sentences are not those
of the demonstrations.

A factor has levels, 1 upward; level 0 is no perturbation, to the last bit. What a factor draws comes from the episode's
seed and its own name, so that policies meet the same perturbation, and one factor's draw does not move another's. Many
factors are those of LIBERO-Plus (2025, arXiv:2510.13626); levels and protocol differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provla.core.checks import did_you_mean, shown
from provla.env.chunk import close
from provla.env.scene import SCENE, View, textured

Array = NDArray[Any]


class Factor(NamedTuple):
    """needs: what a world or a suite must have for it. amounts: of its levels, 1 upward. unit: of the amounts."""

    needs: str
    amounts: tuple[float, ...]
    unit: str


FACTORS = {
    "camera_yaw": Factor("eyes", (4, 10, 20), "degrees around what it looks at, left or right"),
    "camera_pitch": Factor("eyes", (3, 7, 15), "degrees around what it looks at, up or down"),
    "camera_distance": Factor("eyes", (0.05, 0.12, 0.25), "of the distance, nearer or farther"),
    "light_direction": Factor("eyes", (30, 60, 120), "degrees around the vertical"),
    "light_brightness": Factor("eyes", (0.3, 0.5, 0.75), "darker, or as much brighter"),
    "color": Factor("eyes", (0.15, 0.35, 0.7), "of every surface's colour is another's"),
    "texture": Factor("textures", (0.15, 0.35, 0.7), "of the surfaces wear another's texture"),
    "distractors": Factor("eyes", (1, 3, 6), "objects more, drawn where nothing moves"),
    "start": Factor("beyond", (0.25, 0.5, 1.0), "of the range's width beyond its ends"),
    "noise": Factor("", (8, 20, 40), "grey levels, standard deviation"),
    "blur": Factor("", (0.01, 0.02, 0.04), "of the picture's height, standard deviation"),
    "dropped_frames": Factor("", (0.1, 0.3, 0.6), "of the looks show the picture before"),
    "action_noise": Factor("", (0.05, 0.15, 0.3), "of the step (see World), standard deviation"),
    "action_delay": Factor("", (1, 2, 4), "control steps"),
    "paraphrase": Factor("paraphrases", (1,), "other words for the same"),
    "other_object": Factor("objects", (1,), "the sentence of a task with another object"),
    "opposite": Factor("opposites", (1,), "the sentence of the opposite"),
    "empty": Factor("", (1,), "no words"),
}
WORDS = ("paraphrase", "other_object", "opposite", "empty")
USUAL = 2  # the level of `perturb=all`, or the highest there is


def usual_level(name: str) -> int:
    return min(USUAL, len(FACTORS[name].amounts))


def check_levels(levels: Mapping[str, Any], key: str) -> None:
    """`ValueError` for an unknown factor, or a level that it does not have."""
    for name, level in levels.items():
        if name not in FACTORS:
            raise ValueError(
                f"{key}: {name!r} is no factor{did_you_mean(name, list(FACTORS))}; valid: {', '.join(FACTORS)}"
            )
        top = len(FACTORS[name].amounts)
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= top:
            raise ValueError(f"{key}.{name}={shown(level)}: expected a level from 0 (none) to {top}")


def chosen(
    asked: str | Sequence[str] | Mapping[str, int], available: Sequence[str], key: str = "perturb"
) -> dict[str, int]:
    """The factors and levels that `all`, names (at their usual level) or a mapping stand for. `ValueError` for unknown
    ones, and for those that this world does not have.
    """
    if asked == "all":
        return {name: usual_level(name) for name in available}
    names = [asked] if isinstance(asked, str) else list(asked)
    levels = dict(asked) if isinstance(asked, Mapping) else {}
    check_levels({name: levels.get(name, 1) for name in names}, key)
    for name in names:
        if name not in available:
            raise ValueError(
                f"{key}: {name} needs {NEEDS[FACTORS[name].needs]}, which these worlds do not have; valid here: "
                f"{', '.join(available)}"
            )
    return {name: levels.get(name, usual_level(name)) for name in names}


NEEDS = {
    "eyes": "a world that draws with provla's cameras (World.eyes)",
    "textures": "a scene in MuJoCo with textures",
    "beyond": "a world that can start outside its range (World.beyond)",
    "paraphrases": "other words for each task (env.paraphrases)",
    "objects": "tasks with several objects",
    "opposites": "tasks that are each other's opposite",
}


def available(suite: Any) -> list[str]:
    """The factors that the worlds of a suite have what they need for; makes one of them. `ValueError` for a suite that
    takes none.
    """
    if not hasattr(suite, "perturb"):
        raise ValueError(f"perturb: {type(suite).__name__} has no field perturb, so nothing can be perturbed")
    world = suite.make(suite.episodes[0].task)
    has = {
        "": True,
        "eyes": hasattr(world, "eyes"),
        "textures": hasattr(world, "eyes") and len(textured(world.eyes.model)) > 1,
        "beyond": hasattr(world, "beyond"),
    }
    close(world)
    tasks = {episode.task for episode in suite.episodes}
    for name in ("paraphrases", "objects", "opposites"):
        has[name] = bool(tasks & set(getattr(suite, name, None) or ()))
    has["objects"] = has["objects"] and len({suite.objects.get(task) for task in tasks}) > 1
    return [name for name, factor in FACTORS.items() if has[factor.needs]]


def stream(seed: int, name: str) -> np.random.Generator:
    """What a factor draws from in an episode."""
    return np.random.default_rng([seed, *name.encode()])


def perturbed(world: Any, levels: Mapping[str, int] | None) -> Any:
    """The world under these factors; itself where none has a level above 0. Words are the suite's."""
    kept = {name: level for name, level in (levels or {}).items() if level and name not in WORDS}
    return Perturbed(world, kept) if kept else world


class Perturbed:
    """A world (see `interfaces.World`) under factors."""

    def __init__(self, world: Any, levels: Mapping[str, int]) -> None:
        self.world = world
        self.amounts = {name: FACTORS[name].amounts[level - 1] for name, level in levels.items()}
        self._seed, self._step = 0, 0
        self._late: deque[Array] = deque()
        self._seen: dict[str, Array] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def reset(self, seed: int) -> None:
        if "start" in self.amounts:
            self.world.beyond = self.amounts["start"]
        self.world.reset(seed)
        self._seed, self._step = seed, 0
        self._late.clear()
        self._seen.clear()
        scene = {name: amount for name, amount in self.amounts.items() if name in SCENE}
        if scene:
            eyes = self.world.eyes
            eyes.view = View(
                eyes.model, eyes.data, self.world.embodiment.cameras, scene, lambda name: stream(seed, name)
            )

    def step(self, action: Array) -> None:
        """Until the first action has arrived, the world stands still."""
        self._step += 1
        self._late.append(np.asarray(action))
        if len(self._late) <= self.amounts.get("action_delay", 0):
            return
        action, body = self._late.popleft(), self.world.embodiment.action
        if "action_noise" in self.amounts:
            spread = self.amounts["action_noise"] * step_of(self.world)
            action = body.clip(
                action + stream(self._seed + self._step * 2**33, "action_noise").normal(0, 1, len(action)) * spread
            )
        self.world.step(np.asarray(action, np.float32))

    def images(self) -> dict[str, Array]:
        dropped = self.amounts.get("dropped_frames", 0)
        if self._seen and dropped and self._drawn("dropped_frames").random() < dropped:
            return self._seen
        self._seen = {camera: self._blemished(picture, camera) for camera, picture in self.world.images().items()}
        return self._seen

    def frame(self) -> Array:
        if hasattr(self.world, "frame"):
            return self._blemished(self.world.frame(), "")
        return next(iter(self.images().values()))

    def _drawn(self, name: str) -> np.random.Generator:
        return stream(self._seed + self._step * 2**33, name)

    def _blemished(self, picture: Array, camera: str) -> Array:
        if "blur" in self.amounts:
            import cv2

            picture = cv2.GaussianBlur(picture, (0, 0), self.amounts["blur"] * picture.shape[0])
        if "noise" in self.amounts:
            grain = self._drawn(f"noise{camera}").normal(0, self.amounts["noise"], picture.shape)
            picture = (picture + grain).round().clip(0, 255).astype(np.uint8)
        return picture


def outside(draw: np.random.Generator, low: Any, high: Any, beyond: float) -> Array:
    """Numbers like those drawn evenly from low to high, but for one of them, which lies up to `beyond` widths past one
    of its ends.
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    found: Array = draw.uniform(low, high)
    at = draw.choice(np.flatnonzero(high > low))
    past = draw.uniform(0, beyond) * (high - low)[at]
    found[at] = high[at] + past if draw.random() < 0.5 else low[at] - past
    return found


def step_of(world: Any) -> Array:
    """What a factor of the actions is measured by, (A,): the world's own word (`step_size`), or half the range of the
    actions, 1 where that has no ends.
    """
    if hasattr(world, "step_size"):
        return np.broadcast_to(np.asarray(world.step_size, float), len(world.embodiment.action))
    body = world.embodiment.action
    half = (np.asarray(body.high, float) - np.asarray(body.low, float)) / 2
    return np.broadcast_to(np.where(np.isfinite(half), half, 1.0), len(body))


def reworded(name: str, sentences: Mapping[str, str], suite: Any) -> dict[str, list[str]]:
    """Task → what is said of it under a factor of words, without the tasks of which nothing is known to say: they are
    not played. `ValueError` where that is all of them.
    """
    if name == "empty":
        return {task: [""] for task in sentences}
    told: Callable[[str], Iterable[str]] = {
        "paraphrase": lambda task: (suite.paraphrases or {}).get(task, ()),
        "opposite": lambda task: [text] if (text := (suite.opposites or {}).get(task)) else (),
        "other_object": lambda task: _other(task, sentences, suite.objects),
    }[name]
    found = {task: texts for task in sentences if (texts := list(told(task)))}
    if not found:
        raise ValueError(f"env.perturb.{name} needs {NEEDS[FACTORS[name].needs]}; {', '.join(sentences)} have none")
    return found


def _other(task: str, sentences: Mapping[str, str], objects: Mapping[str, str]) -> list[str]:
    """The sentences of the tasks with another object, from the one that follows on."""
    tasks = list(sentences)
    after = [*tasks[tasks.index(task) + 1 :], *tasks[: tasks.index(task)]]
    return [sentences[other] for other in after if objects.get(other) != objects.get(task)]
