"""Two arms: gym-aloha's physics to the bit, a rule that is stricter than its own, and an expert that meets it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from conftest import ROOT, compose
from worlds import Frames

from provla.core.build import build
from provla.dataset.aloha import AlohaRecording
from provla.dataset.recording import _demonstrate
from provla.env import aloha
from provla.env.aloha import HELD, JOINTS, SCENES, AlohaSuite, AlohaTask
from provla.env.perturb import stream
from provla.env.scene import View
from provla.evaluate import _own_data

Array = np.ndarray[Any, Any]
CAMERAS = ["top", "left_wrist", "right_wrist"]
_worlds: dict[str, AlohaTask] = {}


def world(task: str) -> AlohaTask:
    """One for all tests."""
    if task not in _worlds:
        _worlds[task] = AlohaTask(task, CAMERAS, 64)
    return _worlds[task]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _worlds:
        _worlds.popitem()[1].close()


def shown(task: str, seed: int) -> list[Array]:
    """The expert's actions up to its success."""
    found, actions = world(task), []
    found.reset(seed)
    while not found.success():
        assert found.over() == ""
        assert len(actions) < 250
        actions.append(found.expert())
        found.step(actions[-1])
    return actions


@pytest.mark.parametrize("task", SCENES)
def test_the_physics_is_that_of_gym_aloha_to_the_bit(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gym_aloha.env import AlohaEnv
    from gym_aloha.tasks.sim import BimanualViperXTask

    def blind(self: Any, physics: Any) -> dict[str, Any]:  # three large pictures a step would take half a minute
        return {"qpos": self.get_qpos(physics), "images": {"top": np.zeros((1, 1, 3), np.uint8)}}

    monkeypatch.setattr(BimanualViperXTask, "get_observation", blind)
    theirs, mine = AlohaEnv(task, obs_type="pixels_agent_pos"), world(task)
    rng, body = np.random.default_rng(0), mine.embodiment.action
    for seed, tremble, steps in ((100000, 0.0, 190), (7, 0.3, 40)):
        seen, _ = theirs.reset(seed=seed)
        mine.reset(seed)
        met = False
        for _ in range(steps):
            np.testing.assert_array_equal(theirs._env.physics.data.qpos, mine._data.qpos)
            np.testing.assert_array_equal(seen["agent_pos"].astype(np.float32), mine.state())
            action = body.clip(mine.expert() + rng.normal(0, tremble, 14)).astype(np.float32)
            seen, reward, *_ = theirs.step(action)
            mine.step(action)
            met |= reward == 4
            assert mine.rules() == {"gym_aloha": met}
        assert met == (not tremble)
    limits = np.array([*aloha.LIMITS.values()])[:6]
    np.testing.assert_array_equal(theirs._env.physics.model.actuator_ctrlrange[:6], limits)


@pytest.mark.parametrize("task", SCENES)
def test_the_expert_meets_the_strict_rule_after_the_lenient_one(task: str) -> None:
    found = world(task)
    for seed in (100000, 100001):
        actions, met = shown(task, seed), []
        found.reset(seed)
        for action in actions:
            assert not found.success()
            found.step(action)
            met.append(found.rules()["gym_aloha"])
        assert found.success()
        assert 185 < len(met) < 230
        assert met.index(True) <= len(met) - HELD


@pytest.mark.parametrize(("task", "since", "opening"), [("transfer_cube", 120, 0.0), ("insertion", 178, 1.0)])
def test_touching_is_not_enough(task: str, since: int, opening: float) -> None:
    """The right hand keeps the cube, or lets go of the peg as soon as it is at the pin."""
    actions, found = shown(task, 3), world(task)
    found.reset(3)
    for step, action in enumerate([*actions, *actions[-1:] * 40]):
        found.step(np.append(action[:-1], opening if step >= since else action[-1]))
        assert (found.success(), found.over()) == (False, "")
    assert found.rules() == {"gym_aloha": True}


def test_what_is_unsafe_ends_the_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log into the working folder
    found = world("transfer_cube")
    found.reset(0)
    rest = found.state()
    for step in range(100):  # both hands go for the same place
        assert found.over() == "" or step > 25
        towards = rest.reshape(2, 7).copy()
        towards[:, 1:3] += [[min(1.2, 0.02 * step), max(-0.8, -0.013 * step)]]
        found.step(towards.ravel())
    assert found.over() == "unsafe"
    found.reset(0)
    assert found.over() == ""
    found._data.joint("red_box_joint").qpos[:3] = [0, 0.1, 0]  # beside the table
    for _ in range(10):
        found.step(rest)
    assert (found.success(), found.over()) == (False, "unsafe")
    found.reset(0)
    found._data.qvel[:] = 1e12
    found.step(rest)
    assert (found.success(), found.over()) == (False, "unsafe")


@pytest.mark.parametrize("task", SCENES)
def test_the_initial_state_depends_on_the_seed_alone(task: str) -> None:
    fresh, used = AlohaTask(task, CAMERAS, 64), world(task)
    fresh.reset(5)
    shown(task, 4)
    used.reset(5)
    for _ in range(2):
        np.testing.assert_array_equal(fresh._data.qpos, used._data.qpos)
        for camera in CAMERAS:
            np.testing.assert_array_equal(fresh.images()[camera], used.images()[camera])
        fresh.step(fresh.expert())
        used.step(used.expert())
    fresh.close()
    used.reset(6)
    assert not np.array_equal(fresh._poses, used._poses)
    used.beyond = 0.5
    used.reset(6)
    used.beyond = 0.0
    at = np.array(used._poses)[:, :2]
    low, high = np.array(list(SCENES[task].things.values())).swapaxes(0, 1)
    assert ((at < low) | (at > high)).sum() == 1


def test_every_camera_sees_the_cube_and_wrist_cameras_turn_with_the_hand() -> None:
    found, mounted = world("transfer_cube"), []
    actions = shown("transfer_cube", 100003)
    found.reset(100003)
    assert red(found.images()["top"]) == pytest.approx(4, abs=2.5)  # two pixels by two
    for action in actions[:170]:
        found.step(action)
        hand, eye = found._data.body("vx300s_left/gripper_link"), found._data.camera("left_wrist")
        mounted.append(hand.xmat.reshape(3, 3).T @ eye.xmat.reshape(3, 3))
    np.testing.assert_allclose(mounted, np.broadcast_to(mounted[0], (170, 3, 3)), atol=1e-9)
    pictures = found.images()
    assert {camera: picture.shape for camera, picture in pictures.items()} == dict.fromkeys(CAMERAS, (64, 64, 3))
    assert red(pictures["top"]) > 1
    assert red(pictures["left_wrist"]) > 200
    assert red(pictures["right_wrist"]) > 200
    assert found.frame().shape == (240, 240, 3)


def test_a_camera_on_an_arm_is_turned_about_what_the_hand_would_hold() -> None:
    found = world("transfer_cube")
    found.reset(100003)
    model, data = found.eyes.model, found.eyes.data
    seen = View(model, data, CAMERAS, {"camera_yaw": 20.0}, lambda name: stream(0, name))
    scene, option, eye = mujoco.MjvScene(model, 1000), mujoco.MjvOption(), mujoco.MjvCamera()
    eye.type, moved = mujoco.mjtCamera.mjCAMERA_FIXED, {}
    for camera in CAMERAS:
        eye.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(model, data, option, None, eye, mujoco.mjtCatBit.mjCAT_ALL, scene)
        before = np.array(scene.camera[0].pos)
        seen(scene, camera)
        moved[camera] = float(np.linalg.norm(scene.camera[0].pos - before))
    assert moved["top"] > 0.2
    assert max(moved["left_wrist"], moved["right_wrist"]) <= 0.3 * 2 * np.sin(np.radians(10)) + 0.02  # an eye's width


def red(picture: Array) -> float:
    """How many pixels the cube covers, parts included."""
    level = picture.astype(float)
    return float(((level[..., 0] - level[..., 1]).clip(0) / 190).sum())


def test_the_options_offer_both_tasks() -> None:
    config = compose("dataset=aloha_sim", "dataset.tasks=[transfer_cube,insertion]")
    source, suite = build(config["dataset"], "dataset"), build(config["env"], "env")
    assert isinstance(suite, AlohaSuite)
    assert source.recording.sentences == suite.sentences
    assert {*suite.paraphrases} == {*suite.sentences} == {*SCENES}
    assert suite.embodiment == source.recording.embodiment == world("insertion").embodiment
    assert list(compose("dataset=aloha_sim")["dataset"]["tasks"]) == ["transfer_cube"]
    assert _own_data(["check=env", "env=aloha_sim"]) == ["dataset=aloha_sim"]
    with pytest.raises(ValueError, match="no camera 'eye' in this simulation; valid: left_pillar, right_pillar, top, "):
        build(config["env"] | {"cameras": ["eye"]}, "env").check()


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for tasks, message in (
        (
            ["transfer"],
            "gym-aloha has no task 'transfer'; did you mean transfer_cube.; valid: transfer_cube, insertion",
        ),
        (["insertion", "insertion"], "name insertion once"),
    ):
        config = compose("dataset=aloha_sim", f"dataset.tasks={tasks}")
        for group in ("dataset", "env"):
            with pytest.raises(ValueError, match=rf"{group}.tasks=\[.*{message}"):
                build(config[group], group)
    monkeypatch.setattr(aloha, "find_spec", lambda name: None)
    for attempt in (lambda: AlohaTask("insertion", ["top"], 64), asked().check):
        with pytest.raises(ValueError, match=r"gym_aloha is not installed; pip install 'provla\[aloha\]'"):
            attempt()


def test_nothing_of_gym_aloha_is_imported() -> None:
    code = (
        "import sys, provla.dataset.aloha; from provla.env.aloha import AlohaTask; before = {*sys.modules}\n"
        "AlohaTask('insertion', ['top'], 64)\n"
        "print({'gym_aloha', 'dm_control', 'mujoco'} & before, {'gym_aloha', 'dm_control'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set() set()\n"


def asked() -> AlohaRecording:
    return AlohaRecording(("transfer_cube",), 1, (), 64, 0, 0.01, 0.8, 3)


def test_demonstrations_are_recorded() -> None:
    frames, blind = Frames(), AlohaTask("transfer_cube", (), 64)
    _demonstrate(asked(), blind, "transfer_cube", 0, frames)
    assert frames.stored == 1
    assert 185 < len(frames) < 230
    assert {frame["task"] for frame in frames} == {
        "Pick up the cube with the right arm and transfer it to the left arm."
    }
    off = np.abs([frame["action"] - frame["observation.state"] for frame in frames])
    assert off[:, [*range(6), *range(7, 13)]].max() < 0.3  # a command is near where the arm is, noise included
    assert len(JOINTS) == off.shape[1] == 14
