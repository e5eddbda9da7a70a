"""Twins: two sentences for one scene, which nothing but the sentence tells apart."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose

from provla.core.build import build
from provla.core.types import Spec
from provla.dataset.metaworld import TwinsRecording
from provla.dataset.recording import record
from provla.env.metaworld import MT10, metaworld_groups, metaworld_menu, metaworld_tasks
from provla.env.rollout import rollout
from provla.env.twins import FIXTURES, OF, MetaworldTwin, TwinsSuite
from provla.run.judging import summarize, write_episodes

Command = Callable[..., tuple[int, str, str]]
SPEC = Spec(("corner2",), (32, 32), 4, 4, 16, 1, 8, ("a",), {}, 80.0)


def suite(**changes: Any) -> TwinsSuite:
    small = {"episodes_per_task": 2, "num_envs": 4, "videos_per_task": 0, "workers": 1}
    found = build(compose("dataset.image_size=32")["env"] | small | changes, "env")
    assert isinstance(found, TwinsSuite)
    return found


@pytest.mark.parametrize("fixture", FIXTURES, ids=[fixture.joint for fixture in FIXTURES])
def test_twins_cannot_be_told_apart(fixture: Any) -> None:
    """50 seeds: picture, state and every body's position of both are equal, bit for bit; and they differ between
    seeds.
    """
    pair = [MetaworldTwin(task, ["corner2"], 64) for task in fixture.tasks]
    seen = set()
    for seed in range(50):
        for world in pair:
            world.reset(seed)
            assert abs(world.way) < 1e-9
            assert not world.success()
            assert not world.over()
        one, other = pair
        np.testing.assert_array_equal(one.state(), other.state())
        np.testing.assert_array_equal(one._sim.data.xpos, other._sim.data.xpos)
        np.testing.assert_array_equal(one._sim.data.qpos, other._sim.data.qpos)
        np.testing.assert_array_equal(one.images()["corner2"], other.images()["corner2"])
        seen.add(one._sim.data.body(one._sim.model.nbody - 1).xpos.tobytes())
    assert len(seen) == 50
    for world in pair:
        world.close()


@pytest.mark.parametrize("task", list(OF))
def test_experts_do_what_is_said_and_their_twins_the_opposite(task: str) -> None:
    asked = MetaworldTwin(task, ["corner2"], 16)
    other = MetaworldTwin(next(twin for twin in OF[task].tasks if twin != task), ["corner2"], 16)
    asked.reset(3)
    other.reset(3)
    for _ in range(150):
        action = asked.expert()  # one expert moves both scenes
        asked.step(action)
        other.step(action)
        if asked.success():
            break
    assert asked.success()
    assert asked.over() == ""
    assert other.over() == "opposite"
    assert not other.success()


def test_recorded_first_frames_have_one_distribution(tmp_path: Path) -> None:
    """Of both sentences of a pair: the states that demonstrations begin with come from one range."""
    import pyarrow.parquet as pq

    made = TwinsRecording(("drawer-open", "drawer-close"), 3, ("corner2",), 16, 0, 0.0, 0.8, 20)
    root = record(made, tmp_path, 1)
    table = pq.read_table(sorted((root / "data").rglob("*.parquet"))[0]).to_pandas()
    first = table[table.frame_index == 0]
    states = np.stack(first["observation.state"])
    assert len(states) == 6
    assert len(set(map(bytes, states.astype(np.float32)))) == 1  # the hand starts in one place; only the scene differs
    # A demonstration's seed depends on the task's name, so the places are other draws of the one range that both have.
    for task in made.tasks:
        low, high = OF[task].low, OF[task].high
        world = made.make(task)
        places = []
        for number in range(20):
            world.reset(int(np.random.default_rng([0, *task.encode(), number, 0]).integers(2**31)))
            places.append(np.array(world._sim.model.body("drawer").pos))
        world.close()
        assert (np.array(places) >= np.array(low) - 1e-9).all()
        assert (np.array(places) <= np.array(high) + 1e-9).all()
        assert np.ptp(np.array(places)[:, 0]) > 0.7 * (high[0] - low[0])


class Opener(MetaworldTwin):
    """Its own expert opens the drawer, whatever it is told."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        from metaworld.policies import SawyerDrawerOpenV3Policy

        self._opens = SawyerDrawerOpenV3Policy()

    def step(self, action: Any) -> None:
        super().step(np.clip(self._opens.get_action(self.full_state), -1, 1))


class OpenerSuite(TwinsSuite):
    def make(self, task: str) -> Opener:
        return Opener(task, self.cameras, self.image_size, self.video_size)


class Still:
    def eval(self) -> None: ...

    def act(self, observation: Any, generator: Any) -> torch.Tensor:
        return torch.zeros(len(observation), 16, 4)


def test_the_opposite_ends_an_episode_as_a_failure_of_its_own(tmp_path: Path) -> None:
    node = compose("dataset.image_size=32", "dataset.tasks=[drawer-open,drawer-close]")["env"]
    small = {"episodes_per_task": 2, "num_envs": 4, "videos_per_task": 0, "workers": 1}
    deaf = OpenerSuite(**{key: value for key, value in (node | small).items() if key != "_target_"})
    found = rollout(Still(), deaf, SPEC, 0, torch.device("cpu"))
    assert {(o.episode.task, o.ending) for o in found} == {("drawer-open", "success"), ("drawer-close", "opposite")}
    assert max(o.steps for o in found) < 150
    write_episodes(found, tmp_path / "episodes.csv")
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ending"] for row in rows] == ["success", "success", "opposite", "opposite"]
    assert [row["success"] for row in rows] == ["1", "1", "0", "0"]
    cells = summarize(found)
    assert cells["drawer-close"]["ended/opposite"] == 2
    assert cells["success_rate"]["rate"] == 0.5
    still = rollout(Still(), suite(tasks=["faucet-open"], max_episode_steps=16), SPEC, 0, torch.device("cpu"))
    assert {o.ending for o in still} == {"timeout"}


def test_groups_are_those_of_the_field() -> None:
    from metaworld.env_dict import MT10_V3, MT50_V3

    assert [f"{task}-v3" for task in MT10] == list(MT10_V3)
    assert {f"{task}-v3" for task in metaworld_tasks("mt50")} == set(MT50_V3)
    groups = metaworld_groups()
    assert [len(groups[level]) for level in ("easy", "medium", "hard", "very_hard")] == [28, 11, 6, 5]
    assert metaworld_tasks(["hard", "reach"]) == (*groups["hard"], "reach")
    assert set(metaworld_tasks("mt50")) == set(metaworld_menu())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.tasks=[drawer-opne]", "'drawer-opne' is unknown; did you mean drawer-open"),
        ("dataset.tasks=[door-open]", "'door-open' has no twin"),
        ("dataset.tasks=[drawer-open,drawer-open]", "name drawer-open once"),
        ("dataset=metaworld dataset.tasks=eazy", "unknown Meta-World task 'eazy'; did you mean easy"),
        ("dataset=metaworld dataset.tasks=[easy,reach]", "name reach once"),
    ],
)
def test_unknown_tasks_are_named(override: str, message: str, command: Command) -> None:
    code, _, err = command("train", *override.split(), "trainer=smoke", "logger=none")
    assert code == 2
    assert message in err
    assert "tasks=" in err
