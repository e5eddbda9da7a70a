"""OGBench's scene: one start for all goals, and what an episode comes to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, compose
from worlds import Frames

from provla.core.build import build
from provla.dataset.ogbench import OgbenchRecording
from provla.dataset.recording import _demonstrate
from provla.env import ogbench
from provla.env.ogbench import GOALS, TWO_STEPS, OgbenchScene, OgbenchSuite
from provla.evaluate import _own_data

Array = np.ndarray[Any, Any]
_worlds: dict[str, OgbenchScene] = {}


def world(task: str) -> OgbenchScene:
    """One for all tests: half a second goes into making it."""
    if task not in _worlds:
        _worlds[task] = OgbenchScene(task, ["front"], 64)
    return _worlds[task]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _worlds:
        _worlds.popitem()[1].close()


def demonstration(task: str, seed: int, limit: int = 200) -> list[Array]:
    """The expert's actions up to its success."""
    found, shown = world(task), []
    found.reset(seed)
    while not found.success():
        assert not found.over()
        assert len(shown) < limit, task
        shown.append(found.expert())
        found.step(shown[-1])
    return shown


def replayed(actions: list[Array], task: str, seed: int) -> OgbenchScene:
    """The world after the same actions, said to be something else."""
    found = world(task)
    found.reset(seed)
    for action in actions:
        if not found.success() and not found.over():
            found.step(action)
    return found


def start(task: str, seed: int) -> list[Array]:
    """All that an episode begins with: what is felt, seen, and what the physics computes from."""
    found = world(task)
    found.reset(seed)
    data, model = found._sim.data, found._sim.model
    parts = [found.state(), found.images()["front"], data.qpos, data.qvel, data.xpos, data.site_xpos]
    return [part.copy() for part in (*parts, data.mocap_pos, model.geom_rgba, model.mat_rgba, model.dof_damping)]


def test_every_goal_has_the_same_start_and_is_not_reached_there() -> None:
    tasks = [*GOALS, "drawer-open-then-button-left"]
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 5))
    for used, seed in zip(tasks, (100000, 7), strict=False):
        replayed(list(actions), used, 1)
        first = start(tasks[-1], seed)
        for task in tasks:
            for mine, theirs in zip(start(task, seed), first, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            found = world(task)
            assert not any(goal.done(found._scene()) for goal in GOALS.values())
            assert (found.success(), found.over()) == (False, "")
        assert not np.array_equal(start(tasks[0], seed + 1)[0], first[0])


def test_what_begins_beyond_the_range_is_still_to_be_done() -> None:
    found, usual = world("window-open"), start("window-open", 3)
    try:
        found.beyond = 1.0
        for seed in range(30):
            found.reset(seed)
            found.step(np.zeros(5))
            assert not any(goal.done(found._scene()) for goal in GOALS.values())
            assert found.over() == ""
            assert not np.array_equal(found.state(), usual[0])
    finally:
        found.beyond = 0.0
    for mine, theirs in zip(start("window-open", 3), usual, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("task", GOALS)
def test_the_expert_reaches_every_goal_and_who_was_told_the_opposite_has_failed(task: str) -> None:
    shown = demonstration(task, 1)
    if opposite := GOALS[task].opposite:
        assert GOALS[opposite].opposite == task
        other = replayed(shown, opposite, 1)
        assert (other.success(), other.over()) == (False, "opposite")


def test_two_steps_count_in_the_order_in_which_they_were_said() -> None:
    for task, (first, second) in TWO_STEPS.items():
        assert f"{GOALS[first].sentence}, then {GOALS[second].sentence}" == ogbench.ogbench_instruction(task)
    for task, turned in (
        ("drawer-open-then-window-close", "window-close-then-drawer-open"),
        ("button-left-then-button-right", "button-right-then-button-left"),
    ):
        shown = demonstration(task, 3)
        other = replayed(shown, turned, 3)
        assert (other.success(), other.over()) == (False, "opposite")
    half = replayed(demonstration("drawer-open", 3), "drawer-open-then-window-close", 3)
    assert (half.success(), half.over()) == (False, "")


def test_physics_that_broke_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working folder
    found = world("drawer-close")
    found.reset(0)
    found._sim.data.qvel[:] = 1e12
    found.step(np.zeros(5))
    assert (found.success(), found.over()) == (False, "unsafe")
    found.reset(0)
    assert found.over() == ""
    found._sim.data.joint("object_joint_0").qpos[:3] = [1.2, 0, 0.02]
    found.step(np.zeros(5))
    assert (found.success(), found.over()) == (False, "unsafe")


def test_the_expert_and_the_generator_of_numpy_leave_each_other_alone() -> None:
    shown = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].tolist()
        shown.append(demonstration("window-close-then-button-right", 5))
        assert np.random.get_state()[1].tolist() == before
    np.testing.assert_array_equal(*shown)


def test_the_options_offer_every_goal() -> None:
    config = compose("dataset=ogbench_scene")
    source, suite = build(config["dataset"], "dataset"), build(config["env"], "env")
    assert isinstance(suite, OgbenchSuite)
    assert source.recording.sentences == suite.sentences
    assert list(suite.sentences) == [*GOALS]
    held_out = build(config["env"] | {"tasks": "two_steps"}, "env")
    assert list(held_out.sentences) == [*TWO_STEPS]
    assert {*suite.paraphrases} == {*GOALS}
    twins = build(config["env"] | {"tasks": [*GOALS][:-1], "perturb": {"opposite": 1}}, "env")
    assert twins.episodes[0].instruction == "close the drawer"
    assert _own_data(["check=env", "env=ogbench_scene"]) == ["dataset=ogbench_scene"]
    assert _own_data(["check=env", "env=ogbench_scene", "dataset=fake"]) == _own_data(["env=none"]) == []
    with pytest.raises(ValueError, match="no camera 'eye' in this simulation; valid: front, front_pixels"):
        build(config["env"] | {"cameras": ["eye"]}, "env").check()


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for tasks, message in (
        (["draw-open"], "has no goal 'draw-open'; did you mean drawer-open.; valid: drawer-open, .*groups one_step"),
        (["one_step", "cube-left"], "name cube-left once"),
    ):
        config = compose("dataset=ogbench_scene", f"dataset.tasks={tasks}")
        for group in ("dataset", "env"):
            with pytest.raises(ValueError, match=rf"{group}.tasks=\[.*{message}"):
                build(config[group], group)
    monkeypatch.setattr(ogbench, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ogbench and dm_control are not installed; pip install 'provla\[ogbench\]'"):
        OgbenchScene("drawer-open", ["front"], 64)


def test_nothing_of_ogbench_is_imported_before_a_world_is_made() -> None:
    code = "import sys, provla.dataset.ogbench; print({'ogbench', 'dm_control', 'mujoco'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_demonstrations_are_recorded() -> None:
    asked = OgbenchRecording(("button-left",), 1, ("front",), 64, 0, 0.1, 0.8, 3)
    asked.check()
    frames = Frames()
    _demonstrate(asked, world("button-left"), "button-left", 0, frames)
    assert frames.stored == 1
    assert 10 < len(frames) < 40
    assert {frame["task"] for frame in frames} == {"press the left button"}
    assert all(frame["action"].dtype == np.float32 and abs(frame["action"]).max() <= 1 for frame in frames)
