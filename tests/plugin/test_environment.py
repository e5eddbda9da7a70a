"""provla's worlds, an episode after the other, as LeRobot asks for them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from worlds import ToySuite

from provla.core.world import Episode
from provla.env.rollout import noise_seed


def test_episodes_are_the_suites_and_what_has_ended_stands_still() -> None:
    import gymnasium as gym
    from lerobot.envs.utils import NEW_ROLLOUT_OPTION, freeze_after_episode_end

    from provla.plugin.environment import ProvlaWorld

    make = freeze_after_episode_end(partial(ProvlaWorld, ToySuite({}), "right", 5))
    env = gym.vector.SyncVectorEnv([make] * 2, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)
    seen, _ = env.reset(seed=[101, 102], options={NEW_ROLLOUT_OPTION: True})
    assert env.call("task_description") == ("go right", "go right")
    assert [int(state[1]) for state in seen["agent_pos"]] == [101, 102]
    for row, seed in enumerate((101, 102)):
        high, low = seen["noise_seed"][row]
        assert int(high) * 2**16 + int(low) == noise_seed(5, Episode("right", "go right", seed))
    ends = {}
    for step in range(1, 26):
        fast = np.array([[2, 2], [0, 0]], np.float32)  # the second never gets there
        seen, reward, terminated, truncated, info = env.step(fast)
        for row in range(2):
            if (terminated | truncated)[row] and row not in ends:
                ends[row] = step, bool(terminated[row]), float(reward[row]), bool(info["is_success"][row])
        assert int(seen["agent_pos"][0][2]) <= 10
    assert ends[0][1:] == (True, 1.0, True)
    assert ends[0][0] < 10
    assert ends[1] == (24, False, 0.0, False)  # the limit
    assert env.call("render")[0].shape == (16, 16, 3)
    env.reset(options={NEW_ROLLOUT_OPTION: True})  # no seed: the next
    assert env.envs[0].unwrapped._episode.seed == 102
    env.close()


def test_a_seed_beyond_the_suites_begins_one_more_episode() -> None:
    from provla.plugin.environment import ProvlaWorld

    world = ProvlaWorld(ToySuite({}), "left", 0)
    assert world._find(2).seed == 2
    assert world._find(1000) == Episode("left", "go left", 1000, 1)


def test_which_worlds_is_asked_and_checked() -> None:
    from provla.plugin.environment import ProvlaEnv

    with pytest.raises(ValueError, match=r"say which worlds, by --env.run=<folder of a run> or --env.world="):
        ProvlaEnv()
    with pytest.raises(ValueError, match=r"--env: none has no simulation \(env=none\)"):
        ProvlaEnv(world="none")
    found = ProvlaEnv(world="metaworld_twins", task="drawer-open, lift-moon")
    assert found.features_map["pixels/corner2"] == "observation.images.corner2"
    assert found.features["action"].shape == (4,)
    with pytest.raises(ValueError, match=r"--env.task: no task 'lift-moon'; valid: drawer-open, drawer-close"):
        found.tasks()
