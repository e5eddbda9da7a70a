"""The simulation: initial states, chunks, cameras; and rollouts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, compose

from provla.build import build
from provla.env import ChunkEnv, MetaworldEnv, MetaworldExpert, MetaworldSuite
from provla.rollout import rollout, write_videos
from provla.types import Observation, Spec

CPU = torch.device("cpu")


def suite(**changes: Any) -> MetaworldSuite:
    node = (
        compose("dataset.image_size=32")["env"] | {"tasks": ["drawer-close", "window-open"], "episodes_per_task": 3, "num_envs": 3, "video_size": 64} | changes
    )
    found = build(node, "env")
    assert isinstance(found, MetaworldSuite)
    return found


def spec(**changes: Any) -> Spec:
    sizes = {"cameras": ("corner2",), "image_size": (32, 32), "state_size": 4, "action_size": 4, "horizon": 16, "n_obs_steps": 1, "n_action_steps": 8}
    return Spec(**(sizes | {"instructions": ("a",), "joint_groups": {"all": [0, 1, 2, 3]}, "fps": 80.0} | changes))


def test_initial_state_depends_on_the_seed_alone() -> None:
    for task in compose()["dataset"]["tasks"]:
        fresh, used = MetaworldEnv(task, ["corner2"], 32), MetaworldEnv(task, ["corner2"], 32)
        rng = np.random.default_rng(0)
        for seed in (5, 6):
            used.reset(seed=seed)
            for _ in range(40):
                used.step(rng.uniform(-1, 1, 4))
        (a, _), (b, _) = fresh.reset(seed=7), used.reset(seed=7)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(fresh.full_state, used.full_state)
        np.testing.assert_array_equal(fresh.images(), used.images())
        used.reset(seed=8)
        assert not np.array_equal(fresh.full_state, used.full_state)
        fresh.close()
        used.close()


def test_experts_succeed_on_every_default_task() -> None:
    for task in compose()["dataset"]["tasks"]:
        env, expert = MetaworldEnv(task, ["corner2"], 16), MetaworldExpert(task)
        env.reset(seed=1)
        assert any(env.step(expert(env))[2] for _ in range(150))


def test_the_picture_is_that_of_lerobot() -> None:
    """The same scene through LeRobot's own environment, reduced to our size; only lights and shadows may differ."""
    import cv2
    from lerobot.envs.metaworld import MetaworldEnv as Theirs

    ours = MetaworldEnv("drawer-open", ["corner2"], 96)
    ours.reset(seed=3)
    theirs = Theirs("drawer-open-v3", obs_type="pixels_agent_pos", observation_width=480, observation_height=480)
    observation, _ = theirs.reset(seed=3)
    np.testing.assert_allclose(observation["agent_pos"], ours.full_state[:4], atol=1e-3)  # theirs looks before the last kinematics
    picture = cv2.resize(observation["pixels"], (96, 96), interpolation=cv2.INTER_AREA).astype(float)
    mine = ours.images()[0].astype(float)
    error = np.abs(picture - mine).mean()
    assert error < 12
    assert error < 0.5 * np.abs(picture - mine[::-1, ::-1]).mean()
    theirs.close()
    ours.close()


def test_chunks_execute_every_action_and_show_the_last_observations() -> None:
    plain, chunked = MetaworldEnv("window-open", ["corner2"], 32), ChunkEnv(MetaworldEnv("window-open", ["corner2"], 32), 2, 5, 12)
    first, _ = chunked.reset(seed=2)
    plain.reset(seed=2)
    assert first["images"].shape == (2, 1, 32, 32, 3)
    np.testing.assert_array_equal(first["state"][0], first["state"][1])
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4)).astype(np.float32)
    states = [plain.step(a)[0] for a in actions[:12]]
    image = plain.images()
    seen, _, success, truncated, info = chunked.step(actions[:5])
    np.testing.assert_array_equal(seen["state"], np.stack(states[3:5]))
    assert (success, truncated, info["steps"]) == (False, False, 5)
    chunked.step(actions[5:10])
    *_, truncated, info = chunked.step(actions[10:15])
    assert truncated
    assert info["steps"] == 12
    np.testing.assert_array_equal(chunked.sim.images(), image)  # nothing ran after the limit
    chunked.close()
    plain.close()


class Expert:
    """A policy that cheats: the scripted expert of each environment it is asked for, chunk by chunk, open loop."""

    def __init__(self, envs: list[ChunkEnv]) -> None:
        self.envs = envs
        self.calls: list[int] = []

    def eval(self) -> None: ...

    def act(self, observation: Observation, generator: Any) -> torch.Tensor:
        self.calls.append(len(observation))
        chunks = []
        for images in observation.images[:, -1].permute(0, 1, 3, 4, 2).numpy():
            env = next(e.sim for e in self.envs if np.array_equal(e._images[-1], images))
            noise = torch.randn(16, 4, generator=generator[len(chunks)]).numpy() * 0.02
            chunks.append(MetaworldExpert(env.task)(env)[None].repeat(16, 0) + noise)
        return torch.from_numpy(np.stack(chunks)).float()


def play(num_envs: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Expert]:
    """Outcomes of the cheating policy."""
    asked = suite(num_envs=num_envs)
    made = asked.make(1, 4)
    monkeypatch.setattr(asked, "make", lambda *sizes: made)
    expert = Expert(made)
    return rollout(expert, asked, spec(n_action_steps=4), 0, CPU), expert


def test_rollout_does_not_depend_on_how_many_run_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone, _ = play(2, monkeypatch)
    together, expert = play(6, monkeypatch)
    assert max(expert.calls) == 6
    assert [(o.episode, o.success, o.steps) for o in alone] == [(o.episode, o.success, o.steps) for o in together]
    assert [o.episode.seed for o in together] == [100000, 100001, 100002] * 2
    assert all(o.success for o in together)
    videos = write_videos(together, tmp_path, 20)
    assert [v.name for v in videos] == ["drawer-close.mp4", "window-open.mp4"]
    import imageio.v3 as iio

    frames = iio.imread(videos[0], plugin="pyav")
    assert frames.shape[1:] == (64, 3 * 64, 3)
    assert frames[-1][1, 1].argmax() == 1  # a green frame: it succeeded


def test_policies_of_other_sizes_are_refused() -> None:
    for changes, message in (
        ({"action_size": 7, "joint_groups": {"all": [0]}}, "action size is 7, that of env=metaworld is 4"),
        ({"state_size": 9}, "state size is 9"),
        ({"image_size": (64, 64)}, r"image size is \(64, 64\), that of env=metaworld is \(32, 32\)"),
        ({"cameras": ("topview",)}, r"cameras is \['topview'\], that of env=metaworld is \['corner2'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            rollout(None, suite(), spec(**changes), 0, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tasks": []}, "env.tasks is empty"), ({"episodes_per_task": 0}, "env.episodes_per_task=0"), ({"tasks": ["cook"]}, "unknown Meta-World task 'cook'")],
)
def test_bad_suites_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(**changes)
    with pytest.raises(ValueError, match="no camera 'eye' in this simulation"):
        suite(cameras=["eye"]).check()


def test_no_opengl_is_one_clear_message() -> None:
    """A process that can load no OpenGL library at all."""
    code = "from provla.env import require_opengl\ntry: require_opengl()\nexcept ValueError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"MUJOCO_GL": "osmesa", "PATH": "/nowhere", "LD_LIBRARY_PATH": "/nowhere"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if not done.stdout:
        pytest.skip("OSMesa is installed here")
    assert done.stdout.startswith("no OpenGL for off-screen rendering (MUJOCO_GL=osmesa)")
    assert "apt-get install libegl1" in done.stdout
