"""A whole chunk of actions as one step of a world."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]


class ChunkEnv(gym.Wrapper[dict[str, Array], Array, Array, Array]):
    """Executes a whole action chunk per step and renders only what the policy will look at next.

    Action (n_action_steps, A); observation `images` (T, C, h, w, 3) uint8 and `state` (T, S) float32, the last
    `n_obs_steps` control steps (the first is repeated at the start). `max_episode_steps` counts control steps.
    `info["frames"]` carries what was filmed since the last call.
    """

    def __init__(self, env: Any, n_obs_steps: int, n_action_steps: int, max_episode_steps: int) -> None:
        super().__init__(env)
        self.sim = env
        self._n_obs_steps, self._limit = n_obs_steps, max_episode_steps
        size, cameras = env._image_size, len(env.cameras)
        self.observation_space = spaces.Dict(
            images=spaces.Box(0, 255, (n_obs_steps, cameras, size, size, 3), np.uint8),
            state=spaces.Box(-np.inf, np.inf, (n_obs_steps, 4), np.float32),
        )
        self.action_space = spaces.Box(-np.inf, np.inf, (n_action_steps, 4), np.float32)
        self.film = self._steps = 0  # film: keep a video frame every so many control steps, 0 for none
        self._success = self._done = False
        self._images: list[Array] = []
        self._states: list[Array] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        state, _ = self.sim.reset(seed=seed)
        self._steps = 0
        self._success = self._done = False
        self._images, self._states = [self.sim.images()], [state]
        return self._observation(), self._info([self.sim.video_frame()] if self.film else [])

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        frames: list[Array] = []
        total = 0.0
        for position, one in enumerate(action):
            if self._done:
                break
            state, reward, self._success, _, _ = self.sim.step(one)
            total += reward
            self._steps += 1
            self._done = self._success or self._steps >= self._limit
            if self.film and (self._steps % self.film == 0 or self._done):
                frames.append(self.sim.video_frame())
            if position >= len(action) - self._n_obs_steps and not self._done:
                self._images.append(self.sim.images())
                self._states.append(state)
        return self._observation(), total, self._success, self._done and not self._success, self._info(frames)

    def _observation(self) -> dict[str, Array]:
        first = self._n_obs_steps - len(self._images)
        self._images = ([self._images[0]] * first + self._images)[-self._n_obs_steps :]
        self._states = ([self._states[0]] * first + self._states)[-self._n_obs_steps :]
        return {"images": np.stack(self._images), "state": np.stack(self._states)}

    def _info(self, frames: list[Array]) -> dict[str, Any]:
        return {"success": self._success, "steps": self._steps, "frames": frames}
