"""Whether a suite's worlds keep their contract (`interfaces.World`), tried out: `provla.evaluate check=env`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.types import Spec
from provla.core.world import Embodiment
from provla.env.chunk import check_frame, check_picture, check_state, check_world, close, solved
from provla.env.suite import check_suite, option, tasks_of
from provla.env.worlds import rehearse

Array = NDArray[Any]
STEPS = 20  # of an episode that is tried


@dataclass(frozen=True)
class Row:
    """One line of the contract: what was tried, what was found, and whether it is kept."""

    what: str
    found: str
    kept: bool


class Broken(Exception):
    """What is wrong, in words."""


def check_contract(suite: Any) -> Iterator[Row]:
    """The rows of the table, as they are tried. What raises is a row too."""
    yield (first := _row("the suite has what it needs", lambda: _suite(suite)))
    if not first.kept:
        return
    tasks = tasks_of(suite)
    for what, attempt in (
        ("worlds have what they need", _members),
        ("state and pictures are what the embodiment says", _sizes),
        ("another seed, another episode", _other_seed),
        ("same seed, same episode, in a new world", _same_seed),
        ("same seed, same episode, after other episodes", _after_others),
        ("looking changes nothing", _looking),
        ("success is a yes or no, score a number", _success),
        ("the expert succeeds", _expert),
        ("time of a step and of its pictures", _speed),
    ):
        yield _row(what, lambda attempt=attempt: _each(suite, tasks, attempt))  # type: ignore[misc]
    yield _row("it runs in processes of its own", lambda: _rehearse(suite))


def _row(what: str, attempt: Callable[[], str]) -> Row:
    try:
        return Row(what, attempt(), True)
    except Broken as broken:
        return Row(what, str(broken), False)
    except Exception as error:  # a world can raise anything
        text = " ".join(str(error).split())
        return Row(what, text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}", False)


def _each(suite: Any, tasks: Sequence[str], attempt: Callable[[Any, str, int], str]) -> str:
    """An attempt in every task, with the seed of its first episode."""
    seeds = {episode.task: episode.seed for episode in reversed(suite.episodes)}
    found = {}
    for task in tasks:
        try:
            found[task] = attempt(suite, task, seeds[task])
        except Broken as broken:
            raise Broken(f"{task}: {broken}" if len(tasks) > 1 else str(broken)) from broken
    if len(set(found.values())) == 1:
        return found[tasks[0]]
    return "; ".join(f"{task}: {text}" for task, text in found.items())


@dataclass
class _Told:
    """An episode's states, and its pictures where they were looked at, as bytes."""

    states: list[bytes]
    pictures: list[bytes]


def _actions(body: Embodiment) -> Array:
    """Random ones, the same each time; between the bounds, or -1 and 1 where there are none."""
    low, high = (
        np.broadcast_to(np.asarray(end, float), len(body.action)) for end in (body.action.low, body.action.high)
    )
    low, high = np.where(np.isfinite(low), low, -1), np.where(np.isfinite(high), high, 1)
    found: Array = np.random.default_rng(0).uniform(low, high, (STEPS, len(body.action))).astype(np.float32)
    return found


def _play(world: Any, seed: int, look: Callable[[int], bool]) -> _Told:
    """look: at which steps; 0 is the reset."""
    told, actions = _Told([], []), _actions(world.embodiment)
    world.reset(seed)
    for step in range(STEPS + 1):
        if step:
            world.step(actions[step - 1])
        told.states.append(np.asarray(world.state(), np.float64).tobytes())
        if look(step):
            told.pictures.append(
                b"".join(np.asarray(picture).tobytes() for _, picture in sorted(world.images().items()))
            )
    return told


def _compare(one: _Told, other: _Told) -> None:
    """`Broken` where two episodes that should be equal are not."""
    for what, mine, theirs in (("state", one.states, other.states), ("picture", one.pictures, other.pictures)):
        if mine != theirs:
            step = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
            raise Broken(f"the {what} differs from step {step} on" if step else f"the first {what} differs")


def _suite(suite: Any) -> str:
    check_suite(suite)
    tasks = tasks_of(suite)
    return f"{len(suite.episodes)} episodes of {len(tasks)} task{'s' * (len(tasks) > 1)}: {', '.join(tasks)}"


def _members(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    check_world(world)
    body = world.embodiment
    if body != suite.embodiment:
        raise Broken("its embodiment is not the suite's")
    close(world)
    cameras = ", ".join(f"{camera} {h}×{w}" for camera, (h, w) in body.cameras.items())
    return f"{cameras}; state of {len(body.state)}, action of {len(body.action)}, {body.fps:g} steps a second"


def _sizes(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    body = world.embodiment
    actions = _actions(body)
    world.reset(seed)
    for step in range(STEPS + 1):
        if step:
            world.step(actions[step - 1])
        state = check_state(world.state(), body)
        if body.state.outside(state):
            raise Broken(f"at step {step} the state {state} is out of its bounds {body.state.low} to {body.state.high}")
        pictures = world.images()
        for camera in body.cameras:
            check_picture(pictures, camera, body)
    if hasattr(world, "frame"):
        check_frame(world.frame())
    close(world)
    return f"in {STEPS} steps"


def _other_seed(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    one, other = (_play(world, each, lambda step: step == 0) for each in (seed, seed + 1))
    close(world)
    if one.states[0] == other.states[0] and one.pictures == other.pictures:
        raise Broken(f"the seeds {seed} and {seed + 1} begin alike: all episodes would be one")
    return f"seeds {seed} and {seed + 1}"


def _same_seed(suite: Any, task: str, seed: int) -> str:
    worlds = [suite.make(task) for _ in range(2)]
    told = [_play(world, seed, lambda step: step % 5 == 0) for world in worlds]
    for world in worlds:
        close(world)
    _compare(*told)
    return f"to the last bit, {STEPS} steps"


def _after_others(suite: Any, task: str, seed: int) -> str:
    fresh, used = suite.make(task), suite.make(task)
    for other in (seed + 1, seed + 2):
        _play(used, other, lambda step: False)
    told = [_play(world, seed, lambda step: step % 5 == 0) for world in (fresh, used)]
    for world in (fresh, used):
        close(world)
    _compare(*told)
    return "to the last bit, after two others"


def _looking(suite: Any, task: str, seed: int) -> str:
    worlds = [suite.make(task) for _ in range(2)]
    always = _play(worlds[0], seed, lambda step: True)
    once = _play(worlds[1], seed, lambda step: step == STEPS)
    for world in worlds:
        close(world)
    _compare(_Told(always.states, always.pictures[-1:]), once)
    return "pictures on request are those of always"


def _success(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    world.reset(seed)
    world.step(_actions(world.embodiment)[0])
    name = "success" if hasattr(world, "success") else "score"
    found = getattr(world, name)()
    close(world)
    if name == "success" and not isinstance(found, bool | np.bool_):
        raise Broken(f"success() is {found!r}, expected True or False")
    if name == "score" and not (isinstance(found, int | float | np.number) and np.isfinite(found)):
        raise Broken(f"score() is {found!r}, expected a finite number")
    return name


def _expert(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    if not hasattr(world, "expert"):
        close(world)
        return "it has none; nothing can be recorded"
    done, steps, tries = 0, 0, 3
    for each in range(seed, seed + tries):
        world.reset(each)
        for step in range(1, suite.max_episode_steps + 1):
            world.step(world.embodiment.action.clip(np.asarray(world.expert(), np.float32)))
            if solved(world, option(suite, "success_score")):
                done, steps = done + 1, steps + step
                break
    close(world)
    if not done:
        raise Broken(f"in none of {tries} episodes of {suite.max_episode_steps} steps")
    return f"{done} of {tries} episodes, {steps / done:.0f} steps each"


def _speed(suite: Any, task: str, seed: int) -> str:
    world = suite.make(task)
    world.reset(seed)
    world.images()  # what is made at the first one is made once
    stepping, looking = 0.0, 0.0
    for action in _actions(world.embodiment):
        begun = time.perf_counter()
        world.step(action)
        then = time.perf_counter()
        world.images()
        stepping, looking = stepping + then - begun, looking + time.perf_counter() - then
    close(world)
    return f"{1000 * stepping / STEPS:.1f} ms and {1000 * looking / STEPS:.1f} ms"


def _rehearse(suite: Any) -> str:
    body: Embodiment = suite.embodiment
    rehearse(
        suite,
        Spec(
            cameras=tuple(body.cameras),
            image_size=body.cameras,
            state_size=len(body.state),
            action_size=len(body.action),
            horizon=4,
            n_obs_steps=2,
            n_action_steps=4,
            instructions=("",),
            joint_groups={},
            fps=body.fps,
        ),
    )
    return "a chunk of zeros, filmed"
