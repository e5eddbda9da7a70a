"""The simulation: initial states, chunks, cameras; and rollouts."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, compose
from worlds import Blind, ToySuite, ToyWorld

from provla.core.build import build
from provla.core.types import Observation, Spec
from provla.env import worlds
from provla.env.chunk import Chunked, Sizes
from provla.env.metaworld import MT10, MetaworldSuite, MetaworldTask
from provla.env.rollout import Outcome, rollout, write_videos
from provla.env.suite import check_suite
from provla.env.worlds import rehearse

CPU = torch.device("cpu")


def suite(**changes: Any) -> MetaworldSuite:
    node = (
        compose("dataset=metaworld_five", "dataset.image_size=32")["env"]
        | {"tasks": ["drawer-close", "window-open"], "episodes_per_task": 3, "num_envs": 3, "video_size": 64}
        | changes
    )
    found = build(node, "env")
    assert isinstance(found, MetaworldSuite)
    return found


def spec(**changes: Any) -> Spec:
    sizes = {
        "cameras": ("corner2",),
        "image_size": (32, 32),
        "state_size": 4,
        "action_size": 4,
        "horizon": 16,
        "n_obs_steps": 1,
        "n_action_steps": 8,
    }
    return Spec(**(sizes | {"instructions": ("a",), "joint_groups": {"all": [0, 1, 2, 3]}, "fps": 80.0} | changes))


def test_initial_state_depends_on_the_seed_alone() -> None:
    for task in compose("dataset=metaworld_five")["dataset"]["tasks"]:
        fresh, used = MetaworldTask(task, ["corner2"], 32), MetaworldTask(task, ["corner2"], 32)
        rng = np.random.default_rng(0)
        for seed in (5, 6):
            used.reset(seed)
            for _ in range(40):
                used.step(rng.uniform(-1, 1, 4))
        fresh.reset(7)
        used.reset(7)
        np.testing.assert_array_equal(fresh.state(), used.state())
        np.testing.assert_array_equal(fresh.full_state, used.full_state)
        np.testing.assert_array_equal(fresh.images()["corner2"], used.images()["corner2"])
        used.reset(8)
        assert not np.array_equal(fresh.full_state, used.full_state)
        fresh.close()
        used.close()


def test_experts_succeed_also_where_they_must_know_the_goal() -> None:
    """In `reach` nothing but the goal says where to go; a policy sees it as a sphere in the picture."""
    for task in sorted({*compose("dataset=metaworld_five")["dataset"]["tasks"], *MT10}):
        world, won = MetaworldTask(task, ["corner2"], 16), 0
        for seed in range(3):
            world.reset(seed)
            assert np.isfinite(world.full_state).all()
            np.testing.assert_array_equal(world.full_state[-3:], world._sim._target_pos)
            for _ in range(300):
                world.step(world.expert())
                if world.success():
                    break
            won += world.success()
        assert won >= 2, task


def test_the_picture_is_that_of_lerobot() -> None:
    """The same scene through LeRobot's own environment, reduced to our size; only lights and shadows may differ."""
    import cv2
    from lerobot.envs.metaworld import MetaworldEnv as Theirs

    ours = MetaworldTask("drawer-open", ["corner2"], 96)
    ours.reset(3)
    theirs = Theirs("drawer-open-v3", obs_type="pixels_agent_pos", observation_width=480, observation_height=480)
    observation, _ = theirs.reset(seed=3)
    # Theirs looks before the last kinematics.
    np.testing.assert_allclose(observation["agent_pos"], ours.full_state[:4], atol=1e-3)
    picture = cv2.resize(observation["pixels"], (96, 96), interpolation=cv2.INTER_AREA).astype(float)
    mine = ours.images()["corner2"].astype(float)
    error = np.abs(picture - mine).mean()
    assert error < 12
    assert error < 0.5 * np.abs(picture - mine[::-1, ::-1]).mean()
    theirs.close()
    ours.close()


def test_chunks_execute_every_action_and_show_the_last_observations() -> None:
    plain = MetaworldTask("window-open", ["corner2"], 32)
    chunked = Chunked(MetaworldTask("window-open", ["corner2"], 32), Sizes(("corner2",), 2), 12)
    first = chunked.begin(2)
    plain.reset(2)
    assert first.images.shape == (2, 1, 32, 32, 3)
    np.testing.assert_array_equal(first.state[0], first.state[1])
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4)).astype(np.float32)
    states = []
    for action in actions[:12]:
        plain.step(action)
        states.append(plain.state())
    image = plain.images()["corner2"]
    seen = chunked.execute(actions[:5])
    np.testing.assert_array_equal(seen.state, np.stack(states[3:5]))
    assert (seen.ending, seen.steps) == (None, 5)
    chunked.execute(actions[5:10])
    seen = chunked.execute(actions[10:15])
    assert (seen.ending, seen.steps) == ("timeout", 12)
    np.testing.assert_array_equal(chunked.world.images()["corner2"], image)  # nothing ran after the limit
    chunked.close()
    plain.close()


class Noise:
    """A policy of noise around 1, from the episodes' own generators; what it saw is kept. bad: the seed of an episode
    it has no numbers for.
    """

    def __init__(self, bad: int = -1, size: int = 2) -> None:
        self.bad, self.size = bad, size
        self.seen: list[bytes] = []

    def eval(self) -> None: ...

    def act(self, observation: Observation, generator: Any) -> torch.Tensor:
        self.seen.append(observation.images.numpy().tobytes() + observation.state.numpy().tobytes())
        chunks = torch.stack([torch.randn(8, self.size, generator=one) for one in generator]) + 1
        chunks[observation.state[:, -1, 1] == self.bad] = float("nan")
        return chunks


def toy_spec(**changes: Any) -> Spec:
    return spec(
        **(
            {
                "cameras": ("eye",),
                "image_size": (16, 16),
                "state_size": 3,
                "action_size": 2,
                "horizon": 8,
                "n_action_steps": 4,
            }
            | changes
        )
    )


def toy(faults: dict[int, tuple[str, int]], bad: int = -1, **options: Any) -> tuple[list[Outcome], list[bytes]]:
    policy = Noise(bad)
    return rollout(policy, ToySuite(faults, **options), toy_spec(), 0, CPU), policy.seen


def told(outcomes: list[Outcome]) -> list[Any]:
    return [(o.episode, o.success, o.steps, o.reason, [int(f[0, 0, 0]) for f in o.frames]) for o in outcomes]


def test_rollout_depends_neither_on_processes_nor_on_how_many_run_at_once() -> None:
    one, seen = toy({}, workers=1)
    three, also = toy({}, workers=3)
    assert told(one) == told(three)
    assert seen == also
    assert told(one) == told(toy({}, num_envs=2)[0])
    assert all(o.success for o in one)


def test_a_compiled_policy_sees_batches_of_one_size_and_does_the_same() -> None:
    """One that is not sees as many as play, so that its numbers are those of before."""

    class Counting(Noise):
        def __init__(self, compiled: str) -> None:
            super().__init__()
            self.compiled, self.sizes = compiled, list[int]()

        def act(self, observation: Observation, generator: Any) -> torch.Tensor:
            assert len(generator) == len(observation)
            self.sizes.append(len(observation))
            return super().act(observation, generator)

    plain, compiled = Counting(""), Counting("default")
    found = [rollout(one, ToySuite({0: ("raise", 5)}, each=3), toy_spec(), 0, CPU) for one in (plain, compiled)]
    assert told(found[0]) == told(found[1])
    assert set(compiled.sizes) == {4}
    assert len(set(plain.sizes)) > 1
    assert max(plain.sizes) == 4


def test_a_world_that_fails_costs_its_episode_alone() -> None:
    """Raised, exited, killed, not finite, of another size: all others end as if nothing had been, those in the same
    process too.
    """
    calm, _ = toy({})
    faults = {
        0: ("raise", 5),
        1: ("sys.exit", 0),
        2: ("os._exit", 9),
        100: ("segv", 1),
        101: ("nan", 8),
        102: ("shape", 4),
    }
    stormy, seen = toy(faults)
    reasons = {o.episode.seed: o.reason for o in stormy if o.reason}
    assert reasons == {
        0: "RuntimeError: the gripper fell off (step), after 4 steps",
        1: "SystemExit: 3 (reset), after 0 steps",
        2: "the process exited with code 3: license expired (step), after 8 steps",
        100: "killed by SIGSEGV (step), after 0 steps",
        101: "ValueError: state is not finite (step), after 4 steps",
        102: "ValueError: images()['eye'] is (8, 8, 3) uint8, expected (16, 16, 3) uint8 (step), after 0 steps",
    }
    assert [told([a]) for a in stormy if not a.reason] == [
        told([b]) for a, b in zip(stormy, calm, strict=True) if not a.reason
    ]
    assert not any(o.success for o in stormy if o.reason)
    again, same = toy(faults, workers=1)
    assert told(stormy) == told(again)
    assert seen == same


@pytest.mark.parametrize("kind", ["hang", "hang in C"])
def test_a_world_that_hangs_costs_its_episode_alone(kind: str) -> None:
    calm, _ = toy({})
    stuck, _ = toy({101: (kind, 5)}, timeout=1)
    assert [o.reason for o in stuck if o.reason] == ["no answer within 1 s (step), after 4 steps"]
    assert [told([a]) for a in stuck if not a.reason] == [
        told([b]) for a, b in zip(stuck, calm, strict=True) if not a.reason
    ]


def test_actions_that_are_not_finite_fail_the_episode_and_never_reach_the_world(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from provla.run.judging import write_episodes

    calm, _ = toy({})
    outcomes, _ = toy({}, bad=2)
    assert [o.reason for o in outcomes] == [
        "",
        "",
        "the policy's actions are not finite, after 0 steps",
        "",
        "",
        "",
        "",
        "",
    ]
    assert [told([a]) for a in outcomes if not a.reason] == [
        told([b]) for a, b in zip(outcomes, calm, strict=True) if not a.reason
    ]
    assert "1 of 8 episodes ended by a fault and count as failures" in capsys.readouterr().out
    write_episodes(outcomes, tmp_path / "episodes.csv")
    rows = list(csv.DictReader((tmp_path / "episodes.csv").open()))
    assert [(row["success"], row["reason"]) for row in rows[1:3]] == [
        ("1", ""),
        ("0", "the policy's actions are not finite, after 0 steps"),
    ]


def test_worlds_may_print_and_the_console_stays_clean(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes, _ = toy({0: ("noise", 99)})
    assert outcomes[0].success
    assert "physics is hard" not in "".join(capfd.readouterr())


def test_what_a_world_lacks_is_found_by_a_rehearsal() -> None:
    rehearse(ToySuite({}), toy_spec())
    for wrong, message in (
        (ToySuite({0: ("segv", 3)}), r"a rehearsal of left failed: killed by SIGSEGV \(step\)"),
        (ToySuite({0: ("nan", 0)}), r"state is not finite \(reset\)"),
        (Blind({}), "a rehearsal of left failed: AttributeError: 'ToyWorld' object has no attribute 'pictures'"),
    ):
        with pytest.raises(ValueError, match=message):
            rehearse(wrong, toy_spec())
    with pytest.raises(ValueError, match="cannot be sent to the processes of its worlds"):
        rehearse(ToySuite({0: lambda: None}), toy_spec())  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="ToyWorld has no episodes, max_episode_steps, make; .*it is a world"):
        check_suite(ToyWorld({}))


def test_workers_end_with_an_interrupted_evaluation() -> None:
    from provla.core.errors import Interrupted

    class Impatient(Noise):
        def act(self, observation: Observation, generator: Any) -> torch.Tensor:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        rollout(Impatient(), ToySuite({}), toy_spec(), 0, CPU)
    assert not children()


def children() -> list[str]:
    """Worker processes of this process that neither ended nor are idle."""
    idle = {worker.process.pid for worker in worlds._idle}
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [
        pid for pid in mine if int(pid) not in idle and "provla.env.worker" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


def test_rollout_plays_meta_world(tmp_path: Path) -> None:
    node = compose("dataset=metaworld_five", "dataset.image_size=32")["env"] | {
        "tasks": ["drawer-close", "window-open"],
        "episodes_per_task": 2,
        "num_envs": 3,
        "video_size": 64,
    }
    driven = build(node | {"_target_": "worlds.SelfDrivingSuite"}, "env")
    outcomes = rollout(Noise(size=4), driven, spec(n_action_steps=4, state_size=4), 0, CPU)
    assert [o.episode.seed for o in outcomes] == [100000, 100001] * 2
    assert all(o.success for o in outcomes), told(outcomes)
    videos = write_videos(outcomes, tmp_path, 20)
    assert [v.name for v in videos] == ["drawer-close.mp4", "window-open.mp4"]
    import imageio.v3 as iio

    frames = iio.imread(videos[0], plugin="pyav")
    assert frames.shape[1:] == (64, 2 * 64, 3)
    assert frames[-1][1, 1].argmax() == 1  # a green frame: it succeeded


def test_policies_of_other_sizes_are_refused() -> None:
    for changes, message in (
        ({"action_size": 7, "joint_groups": {"all": [0]}}, "action size is 7, that of the worlds of MetaworldSuite 4"),
        ({"state_size": 9}, "state size is 9"),
        (
            {"image_size": (64, 64)},
            r"image size of corner2 is \(64, 64\), that of the worlds of MetaworldSuite \(32, 32\)",
        ),
        (
            {"cameras": ("topview",)},
            r"camera 'topview', which the worlds of MetaworldSuite do not have; they have: corner2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            rollout(None, suite(), spec(**changes), 0, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, r"env.tasks=\[\]: expected a list of names \(at least one\)"),
        ({"episodes_per_task": 0}, "env.episodes_per_task=0"),
        ({"tasks": ["cook"]}, "unknown Meta-World task 'cook'"),
    ],
)
def test_bad_suites_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(**changes)
    with pytest.raises(ValueError, match="no camera 'eye' in this simulation"):
        suite(cameras=["eye"]).check()


def test_no_opengl_is_one_clear_message() -> None:
    """A process that can load no OpenGL library at all."""
    code = (
        "from provla.env.mujoco import require_opengl\ntry: require_opengl()\nexcept ValueError as error: print(error)"
    )
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
