"""provla's worlds as LeRobot environments: the episodes, scenes and sentences that `provla.evaluate` plays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end
from numpy.typing import NDArray

from provla.core.build import build
from provla.core.cameras import apart
from provla.core.world import Episode
from provla.env.chunk import Chunked, Seen, Sizes
from provla.env.rollout import noise_seed
from provla.env.suite import check_suite, plays, tasks_of
from provla.env.worker import open_world

Array = NDArray[Any]


@EnvConfig.register_subclass("provla")
@dataclass
class ProvlaEnv(EnvConfig):
    """`--env.type=provla`: run, the folder of a run, for the worlds that it is judged in; or world, an option of
    provla's `env`, with overrides, as provla's command line has them. task: names of tasks with commas between; null:
    all. trust: as of `provla.evaluate`.

    Episode i of each task has the seed `--seed` + i, which alone says how it begins: with `--seed` the run's
    env.first_seed and `--eval.n_episodes` its eval_episodes they are the episodes of `provla.evaluate`.
    """

    run: str | None = None
    world: str | None = None
    overrides: list[str] = field(default_factory=list)
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        body = self.suite.embodiment
        self.fps = round(body.fps)
        self.features = {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(len(body.action),)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(len(body.state),)),
        }
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        for camera, size in body.cameras.items():
            self.features[f"pixels/{camera}"] = PolicyFeature(type=FeatureType.VISUAL, shape=(*size, 3))
            self.features_map[f"pixels/{camera}"] = f"observation.images.{camera}"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """Of a run: its own, or that of its world alone. `ValueError` where neither, or both, are named."""
        if (self.run is None) == (self.world is None):
            raise ValueError(
                "--env.type=provla: say which worlds, by --env.run=<folder of a run> or --env.world=<an option of "
                "provla's env, such as metaworld_twins>"
            )
        if self.run is not None:
            from provla.run.evaluate import read_config

            if self.overrides:
                raise ValueError("--env.overrides: only --env.world reads them; a run's worlds are as it has them")
            return read_config(Path(self.run).expanduser(), {"env": {}, "scheduler": {}}, self.trust)
        return _composed([f"env={self.world}", *self.overrides])

    @cached_property
    def suite(self) -> Any:
        suite = build(self.configuration["env"], "env")
        if not plays(suite):
            raise ValueError(f"--env: {self.run or self.world} has no simulation (env=none), so there is no world")
        check_suite(suite)
        return suite

    def tasks(self) -> list[str]:
        """The chosen ones. `ValueError` for one that there is not."""
        there = tasks_of(self.suite)
        chosen = there if self.task is None else [task.strip() for task in self.task.split(",")]
        if unknown := [task for task in chosen if task not in there]:
            raise ValueError(f"--env.task: no task {unknown[0]!r}; valid: {', '.join(there)}")
        return chosen

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """{`provla`: {position of the task: vector environment}}; worlds are made when they are first reset."""
        found = {}
        for number, task in enumerate(self.tasks()):
            make = partial(ProvlaWorld, self.suite, task, self.configuration["seed"])
            if use_async_envs and n_envs > 1:
                found[number] = _LazyAsyncVectorEnv([make] * n_envs)
            else:
                found[number] = gym.vector.SyncVectorEnv(
                    [freeze_after_episode_end(make)] * n_envs, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP
                )
        return {self.type: found}


def _composed(overrides: list[str]) -> dict[str, Any]:
    """A run's configuration, as provla's command line composes it."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from provla.core.files import ROOT

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = OmegaConf.to_container(hydra.compose("train", overrides=overrides), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


class ProvlaWorld(gym.Env[dict[str, Any], Array]):
    """One task of a suite, a control step at a time. Beside pictures and state it says the seed of the episode's noise,
    which policies of provla's read, so that they act as in `provla.evaluate`. seed: the run's.
    """

    def __init__(self, suite: Any, task: str, seed: int) -> None:
        body = suite.embodiment
        self.suite, self.task, self._seed = suite, task, seed
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(body.fps)}
        self.render_mode = "rgb_array"
        self._max_episode_steps = suite.max_episode_steps
        self._said = {episode.seed: episode for episode in suite.episodes if episode.task == task}
        self._world: Chunked | None = None
        self._episode: Episode = next(iter(self._said.values()))
        self._next = self._episode.seed
        box, names = gym.spaces.Box, tuple(body.cameras)
        self._sizes = Sizes(names, 1)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({name: box(0, 255, (*body.cameras[name], 3), np.uint8) for name in names}),
                "agent_pos": box(-np.inf, np.inf, (len(body.state),), np.float32),
                "noise_seed": box(0, 2**16 - 1, (2,), np.float32),
            }
        )
        self.action_space = box(-np.inf, np.inf, (len(body.action),), np.float32)  # a world clips to its own bounds

    @property
    def task_description(self) -> str:
        return self._episode.instruction

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """seed: of the episode, which is the suite's, or one more of the same kind; None: the next."""
        self._next = (self._next if seed is None else seed) + 1
        self._episode = self._find(self._next - 1)
        if self._world is None:
            self._world = open_world(self.suite, self.task, self._sizes)
        self._seen = self._world.begin(self._episode.seed)
        return self._observation(self._seen), {"is_success": False}

    def _find(self, seed: int) -> Episode:
        """Beyond the suite's episodes sentences go on in turn."""
        first, known = min(self._said), list(self._said.values())
        found: Episode = self._said.get(seed) or replace(known[(seed - first) % len(known)], seed=seed)
        return found

    def step(self, action: Array) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """The reward is 1 for success, or what the world scores."""
        assert self._world is not None
        seen = self._seen = self._world.execute(np.asarray(action)[None])
        success = seen.ending == "success"
        reward = float(success) if seen.score is None else seen.score
        over = seen.ending is not None and seen.ending != "timeout"
        return self._observation(seen), reward, over, seen.ending == "timeout", {"is_success": success}

    def render(self) -> Array:
        """What the first camera saw last: nothing is drawn for it."""
        picture: Array = apart(self._seen.images, 1)[0][-1]
        return picture

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None

    def _observation(self, seen: Seen) -> dict[str, Any]:
        noise = noise_seed(self._seed, self._episode)
        return {
            "pixels": {camera: one[-1] for camera, one in zip(self._sizes.cameras, apart(seen.images, 1), strict=True)},
            "agent_pos": seen.state[-1],
            "noise_seed": np.array(divmod(noise, 2**16), np.float32),
        }
