"""Perturbations: level 0 is nothing, levels do what they say, episodes stay paired, and bad ones are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import compose
from walks import Walk

from provla.core.build import build
from provla.env.perturb import FACTORS, WORDS, available, chosen, perturbed, stream
from provla.env.scene import SCENE
from provla.env.suite import TaskSuite

Command = Callable[..., tuple[int, str, str]]
SEEN = [name for name in FACTORS if name not in WORDS]


def suite(*overrides: str, **changes: Any) -> TaskSuite:
    node = compose("dataset.image_size=48", *overrides)["env"] | {"episodes_per_task": 2, "workers": 1} | changes
    found = build(node, "env")
    assert isinstance(found, TaskSuite)
    return found


class Played:
    """An episode of fixed actions: states and pictures as bytes."""

    def __init__(self, world: Any, seed: int, steps: int = 6) -> None:
        world.reset(seed)
        self.states, self.pictures = [world.state()], [world.images()["corner2"]]
        for i in range(steps):
            world.step(np.full(4, 0.5 - 0.1 * i, np.float32))
            self.states.append(world.state())
            self.pictures.append(world.images()["corner2"])

    def same(self, other: Played) -> tuple[bool, bool]:
        """States, pictures."""
        return tuple(  # type: ignore[return-value]
            all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((self.states, other.states), (self.pictures, other.pictures))
        )


@pytest.fixture(scope="module")
def worlds() -> Any:
    made = suite()
    return lambda **levels: perturbed(made.make("drawer-open"), levels)


def test_level_0_is_no_perturbation_to_the_last_bit(worlds: Any) -> None:
    plain = Played(worlds(), 5)
    assert plain.same(Played(worlds(**dict.fromkeys(SEEN, 0)), 5)) == (True, True)
    under = suite(perturb=dict.fromkeys(FACTORS, 0))
    assert under.episodes == suite().episodes


@pytest.fixture(scope="module")
def plain(worlds: Any) -> Played:
    return Played(worlds(), 5)


@pytest.mark.parametrize("factor", SEEN)
def test_a_factor_changes_what_it_says_and_nothing_else(factor: str, worlds: Any, plain: Played) -> None:
    top = len(FACTORS[factor].amounts)
    strong = Played(worlds(**{factor: top}), 5)
    moved = factor in ("start", "action_noise", "action_delay")
    assert plain.same(strong)[0] != (moved and factor != "start")  # the hand starts where it did
    assert not plain.same(strong)[1]
    assert Played(worlds(**{factor: top}), 5).same(strong) == (True, True)  # the same perturbation for every policy
    if factor in ("noise", "blur", "camera_yaw", "color"):
        weak = Played(worlds(**{factor: 1}), 5)
        small, large = (np.abs(p.pictures[0].astype(float) - plain.pictures[0]).mean() for p in (weak, strong))
        assert 0 < small < large


def test_what_is_drawn_leaves_the_world_alone_and_ends_with_it(worlds: Any) -> None:
    """The scene's factors, all at once: equal states, and another episode's own draw."""
    plain, changed = Played(worlds(), 5), worlds(**dict.fromkeys(SCENE, 2))
    assert Played(changed, 5).same(plain) == (True, False)
    first = changed.images()["corner2"]
    changed.reset(6)
    assert not np.array_equal(changed.images()["corner2"], first)


def test_distractors_stand_apart_and_are_as_many_as_asked(worlds: Any) -> None:
    world = worlds(distractors=3)
    world.reset(5)
    view, data = world.eyes.view, world.eyes.data
    assert len(view._things) == 6
    moving = [i for i in range(world.eyes.model.ngeom) if world.eyes.model.body_weldid[world.eyes.model.geom_bodyid[i]]]
    for thing in view._things:
        assert np.linalg.norm(data.geom_xpos[moving] - thing.position, axis=1).min() > 0.12


def test_a_start_beyond_the_range_is_beyond_it_and_no_farther_than_asked() -> None:
    from provla.env.twins import OF

    world = perturbed(suite().make("window-open"), {"start": 3})
    low, high = np.array(OF["window-open"].low), np.array(OF["window-open"].high)
    for seed in range(30):
        world.reset(seed)
        place = np.array(world._sim.model.body("window").pos)
        outside = np.maximum(low - place, place - high)
        assert outside.max() > 0
        assert (outside <= FACTORS["start"].amounts[2] * (high - low) + 1e-9).all()


def test_actions_arrive_late_and_pictures_are_dropped() -> None:
    late, plain = perturbed(Walk(), {"action_delay": 2}), Walk()
    late.reset(1)
    plain.reset(1)
    for action in (0.3, 0.2, 0.1, 0.0):
        late.step(np.array([action], np.float32))
    for action in (0.3, 0.2):  # the first two, two steps later
        plain.step(np.array([action], np.float32))
    np.testing.assert_array_equal(late.state(), plain.state())
    dull = perturbed(Walk(), {"dropped_frames": 3})
    dull.reset(1)
    old = 0
    for _ in range(200):
        before = dull.images()["top"].copy()
        dull.step(np.array([1e-3], np.float32))
        dull.world.reset(int(stream(dull._step, "x").integers(1000)))  # another picture at every step
        old += np.array_equal(dull.images()["top"], before)
    assert 0.4 < old / 200 < 0.8


def test_words_are_said_instead() -> None:
    said = {factor: suite(perturb={factor: 1}) for factor in WORDS}
    of = {factor: {e.task: e.instruction for e in one.episodes} for factor, one in said.items()}
    plain = {e.task: e.instruction for e in suite().episodes}
    assert of["opposite"]["drawer-open"] == plain["drawer-close"]
    assert of["opposite"]["drawer-close"] == plain["drawer-open"]
    assert set(of["empty"].values()) == {""}
    assert "drawer" not in of["other_object"]["drawer-open"].lower()
    assert of["other_object"]["drawer-open"] in plain.values()
    assert of["paraphrase"]["drawer-open"] not in plain.values()
    seeds = [(e.task, e.seed) for e in suite().episodes]
    assert all([(e.task, e.seed) for e in one.episodes] == seeds for one in said.values())


def test_what_worlds_have() -> None:
    assert available(suite()) == list(FACTORS)
    assert available(suite("dataset=metaworld_five")) == [n for n in FACTORS if n not in ("paraphrase", "opposite")]
    assert chosen("all", ["noise", "empty"]) == {"noise": 2, "empty": 1}
    assert chosen({"noise": 3}, ["noise"]) == {"noise": 3}
    assert chosen(["noise", "blur"], list(FACTORS)) == {"noise": 2, "blur": 2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.perturb={nois:1}", "env.perturb: 'nois' is no factor; did you mean noise"),
        ("env.perturb={noise:4}", "env.perturb.noise=4: expected a level from 0 (none) to 3"),
        ("env.perturb={empty:2}", "env.perturb.empty=2: expected a level from 0 (none) to 1"),
        (
            "dataset=metaworld_five env.perturb={opposite:1}",
            "env.perturb.opposite needs tasks that are each other's opposite",
        ),
    ],
)
def test_bad_perturbations_are_named(override: str, message: str, command: Command) -> None:
    code, _, err = command("train", *override.split(), "trainer=smoke", "logger=none")
    assert code == 2
    assert message in err


def test_a_factor_that_a_world_does_not_have_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"perturb: opposite needs tasks that are each other's opposite.*valid here: noise"
    ):
        chosen(["opposite"], ["noise"])
    with pytest.raises(ValueError, match="'camera' is no factor"):
        chosen(["camera"], ["noise"])
