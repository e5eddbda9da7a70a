"""The contract of worlds: what keeps it plays; what breaks it is named, by a rehearsal or by check=env."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose
from walks import (
    Blind,
    Far,
    Forgetful,
    Idle,
    Long,
    Lost,
    Nameless,
    Same,
    Scored,
    Shy,
    Silent,
    Square,
    Vague,
    Walk,
    Wild,
)

from provla.core.build import build
from provla.core.trust import check_stored
from provla.core.types import Spec
from provla.env.chunk import Chunked, Sizes
from provla.env.contract import check_contract
from provla.env.rollout import rollout
from provla.env.suite import check_suite
from provla.env.worlds import rehearse

Command = Callable[..., tuple[int, str, str]]

SPEC = Spec(("top",), (16, 24), 2, 1, 4, 1, 4, ("go",), {}, 10.0)


def suite(kind: type, **changes: Any) -> Any:
    node = {
        "_target_": "provla.env.WorldSuite",
        "world": {"_target_": f"walks.{kind.__name__}"},
        "tasks": {"go": "Go there"},
        "episodes_per_task": 3,
        "max_episode_steps": 20,
        "workers": 1,
    }
    return build({**node, **changes}, "env")


def played(world: type, chunk: float = 1.0, limit: int = 20, **options: Any) -> Any:
    it = Chunked(world(), Sizes(("top",), 1), limit, **options)
    seen = it.begin(0)
    while not seen.ending:
        seen = it.execute(np.full((4, 1), chunk, np.float32))
    return seen


def test_success_is_a_yes_or_a_score_that_is_enough() -> None:
    assert played(Walk).ending == "success"
    assert played(Walk, 0.0).ending == "timeout"
    far = played(Scored, success_score=0.5)
    assert far.ending == "success"
    assert far.score is not None
    assert 0.5 <= far.score < 0.8
    back = played(Scored, -1.0, limit=1000)
    assert back.ending == "over"
    assert back.steps < 20  # it was over
    assert back.score is not None
    assert back.score <= 0


def test_actions_are_brought_within_their_bounds() -> None:
    it = Chunked(Walk(), Sizes(("top",), 2), 20)
    it.begin(0)
    assert it.execute(np.full((4, 1), 7, np.float32)).state[-1, 1] == 1


def test_a_frame_for_people_is_the_first_picture_where_there_is_none() -> None:
    it = Chunked(Walk(), Sizes(("top",), 1), 20)
    assert it.begin(0, film=2).frames[0].shape == (16, 24, 3)
    assert len(it.execute(np.zeros((4, 1), np.float32)).frames) == 2


class Right:
    """A policy that knows where to go."""

    def eval(self) -> None: ...

    def act(self, observation: Any, generator: Any) -> torch.Tensor:
        return torch.ones(len(observation), 4, 1)


def test_scores_reach_the_outcomes_and_their_csv(tmp_path: Path) -> None:
    from provla.run.judging import write_episodes

    found = rollout(Right(), suite(Scored, success_score=0.5), SPEC, 0, torch.device("cpu"))
    assert all(o.success and o.score is not None and 0.5 <= o.score < 0.8 for o in found)
    write_episodes(found, tmp_path / "episodes.csv")
    head, *rows = (tmp_path / "episodes.csv").read_text().splitlines()
    assert head.split(",")[-1] == "score"
    assert float(rows[0].split(",")[-1]) == pytest.approx(found[0].score)
    plain = rollout(Right(), suite(Walk), SPEC, 0, torch.device("cpu"))
    write_episodes(plain, tmp_path / "plain.csv")
    assert "score" not in (tmp_path / "plain.csv").read_text()


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (Blind, "env.world: Blind has no images; a world needs embodiment, reset, step, state, images, and success"),
        (Silent, "env.world: Silent.embodiment is a str; expected a provla.env.Embodiment"),
    ],
)
def test_what_is_no_world_is_named_at_once(world: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_suite(suite(world))


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (Square, r"images\(\)\['top'\] is \(16, 16, 3\) uint8, expected \(16, 24, 3\) uint8 \(reset\)"),
        (Nameless, r"images\(\) has no camera 'top'; it has: front \(reset\)"),
        (Lost, r"state is not finite \(reset\)"),
        (Long, r"state\(\) is \(3,\) float64, expected \(2,\) float32 \(reset\)"),
    ],
)
def test_what_a_world_does_wrong_is_found_by_its_rehearsal(world: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rehearse(suite(world), SPEC)


@pytest.mark.parametrize(
    ("world", "what", "found"),
    [
        (Forgetful, "same seed, same episode, after other episodes", "the first state differs"),
        (Shy, "looking changes nothing", "the state differs from step 1 on"),
        (Same, "another seed, another episode", "the seeds 100000 and 100001 begin alike"),
        (Wild, "same seed, same episode, in a new world", "the first state differs"),
        (Far, "state and pictures are what the embodiment says", "out of its bounds -0.01 to 0.01"),
        (Vague, "success is a yes or no, score a number", "success() is 0.3, expected True or False"),
        (Idle, "the expert succeeds", "in none of 3 episodes of 20 steps"),
        (Square, "state and pictures are what the embodiment says", "images()['top'] is (16, 16, 3) uint8"),
    ],
)
def test_the_table_says_what_is_broken(world: type, what: str, found: str) -> None:
    rows = {row.what: row for row in check_contract(suite(world))}
    assert not rows[what].kept
    assert found in rows[what].found
    assert all(row.kept for row in check_contract(suite(Walk)))


def test_an_expert_that_never_succeeds_records_nothing(tmp_path: Path) -> None:
    from provla.dataset.recorded import WorldRecording
    from provla.dataset.recording import record

    def asked(world: type) -> WorldRecording:
        return WorldRecording({"_target_": f"walks.{world.__name__}"}, {"go": "Go"}, 1, 0, 0.0, 0.0, 3, 5, 1.0)

    with pytest.raises(ValueError, match=r"Walk has no expert\(\)"):
        asked(Walk)
    with pytest.raises(ValueError, match="the expert of go failed 20 times in a row .* within 5 steps each"):
        record(asked(Idle), tmp_path, 1)
    assert not [file for file in tmp_path.iterdir() if not file.name.endswith(".claim")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "expected at least one task with its sentence"),
        ({"tasks": {"a": "A", "b": "B"}}, "the constructor of walks.Walk takes no task; give it one"),
        (
            {"world": {"_target_": "walks.Nobody"}},
            "env.world._target_='walks.Nobody' cannot be imported",
        ),
        ({"world": {"_target_": "walks.Walk", "speed": 3}}, "nothing reads env.world.speed=3"),
        (
            {"instructions": {"stay": "Stay"}},
            "env.instructions.stay='Stay': expected sentences for one of env.tasks: go",
        ),
    ],
)
def test_bad_suites_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(Walk, **changes)


GYM = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Dot(gym.Env):
    metadata = {"render_fps": 10, "render_modes": []}
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space = spaces.Dict(
        pixels=spaces.Box(0, 255, (16, 24, 3), np.uint8), agent_pos=spaces.Box(-9, 9, (2,), np.float64)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 0)
        return self._see(), {}

    def step(self, action):
        self.x += 0.2 * float(action[0])
        done = self.x > 1
        return self._see(), float(done), done, False, {"is_success": done}

    def _see(self):
        level = int(np.clip(100 + 50 * self.x, 0, 255))
        return {"pixels": np.full((16, 24, 3), level, np.uint8), "agent_pos": np.array([self.x, 0.0])}


gym.register("Dot-v0", Dot, max_episode_steps=50)
"""


@pytest.fixture
def dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A gymnasium environment in a module of the working folder, and the node that plays it."""
    (tmp_path / "my_gym.py").write_text(GYM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_gym", raising=False)
    node = compose("env=gym", "dataset=fake", "env.id='my_gym:Dot-v0'", "env.instruction=Go", "eval_episodes=3")["env"]
    return {**node, "camera": "top", "workers": 1}


def test_a_gymnasium_environment_needs_no_class(dot: dict[str, Any]) -> None:
    it = build(dot, "env")
    assert it.embodiment.cameras == {"top": (16, 24)}
    assert it.embodiment.fps == 10
    assert all(row.kept for row in check_contract(it)), list(check_contract(it))
    found = rollout(Right(), it, SPEC, 0, torch.device("cpu"))
    assert [o.episode.task for o in found] == ["Dot-v0"] * 3
    assert all(o.success for o in found)
    by_reward = build({**dot, "success": None, "success_reward": 1.0}, "env")
    assert [o.steps for o in rollout(Right(), by_reward, SPEC, 0, torch.device("cpu"))] == [o.steps for o in found]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "CartPole-v1"}, r"env.pixels='pixels' is not in the observations of CartPole-v1; they are Box"),
        ({"id": "Nothing-v7"}, "env.id='Nothing-v7': Environment `Nothing` doesn't exist"),
        ({"id": "no_such_module:X-v0"}, "env.id='no_such_module:X-v0' with env.kwargs={}: "),
        ({"kwargs": {"size": 3}}, "with env.kwargs={'size': 3}: "),
        ({"state": "qpos"}, "env.state='qpos' is not in the observations of my_gym:Dot-v0; it has: agent_pos, pixels"),
        ({"success": None}, "env.success=null: give env.success .a key of info. or env.success_reward"),
    ],
)
def test_what_a_gymnasium_environment_lacks_is_said(changes: dict[str, Any], message: str, dot: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        check_suite(build(dot | changes, "env"))


def test_success_that_is_not_in_info_is_found_before_the_training(dot: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="env.success='solved' is not in the info of my_gym:Dot-v0; it has: is_success"
    ):
        rehearse(build(dot | {"success": "solved"}, "env"), SPEC)


def test_a_stored_run_may_not_import_a_module_by_gymnasiums_colon(dot: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"env.id='my_gym:Dot-v0' in there names a module .* trust=\[my_gym\]"):
        check_stored({"env": dot}, "there")
    assert "my_gym" not in sys.modules
    check_stored({"env": dot}, "there", ["my_gym"])


def test_a_plain_gymnasium_class_is_told_the_way(command: Command, dot: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "raw.yaml").write_text("_target_: my_gym.Dot\n")
    code, _, err = command("evaluate", "check=env", "env=raw")
    assert code == 2
    assert "Dot has no episodes, embodiment, max_episode_steps, make" in err
    assert "it is a gymnasium environment: env=gym env.id=<its id>" in err
    code, _, err = command("evaluate", "check=env", "env=none")
    assert code == 2
    assert "env=none simulates nothing" in err
    code, _, err = command("evaluate", "check=all")
    assert code == 2
    assert "check='all'; valid: env" in err
