"""Closed-loop evaluation: a policy drives simulated episodes, many at once; the simulator says what succeeded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from provla.env import ChunkEnv, Episode, MetaworldSuite
from provla.files import write_bytes
from provla.progress import progress_bars
from provla.types import Observation, Spec

Frame = NDArray[np.uint8]


@dataclass
class Outcome:
    """One finished episode. steps: control steps until success or the limit. frames: of a filmed episode."""

    episode: Episode
    success: bool
    steps: int
    frames: list[Frame] = field(default_factory=list)


def check_fit(suite: MetaworldSuite, spec: Spec) -> None:
    """`ValueError` where a policy's sizes or cameras are not those of the simulation."""
    for what, has, needs in (
        ("action size", spec.action_size, suite.action_size),
        ("state size", spec.state_size, suite.state_size),
        ("image size", tuple(spec.image_size), (suite.image_size, suite.image_size)),
        ("cameras", list(spec.cameras), suite.cameras),
    ):
        if has != needs:
            raise ValueError(
                f"the policy's {what} is {has}, that of env=metaworld is {needs}; choose the env that the policy's data set came from, or env=none"
            )


def rollout(policy: Any, suite: MetaworldSuite, spec: Spec, seed: int, device: torch.device) -> list[Outcome]:
    """Outcomes in the suite's order: every episode, in batches over the suite's environments.

    The sampler's noise comes from a generator per episode, seeded by (seed, episode), so an outcome depends neither on
    the number of environments nor on which episodes ran beside it.
    """
    check_fit(suite, spec)
    policy.eval()
    waiting = {task: deque(e for e in suite.episodes if e.task == task) for task in suite.tasks}
    finished: dict[Episode, Outcome] = {}
    envs = suite.make(spec.n_obs_steps, spec.n_action_steps)
    try:
        with progress_bars() as bars:
            bar = bars.add_task("closed loop", total=len(suite.episodes), note="")
            playing = [play for env in envs if (play := _next(env, waiting, seed))]
            while playing:
                chunks = policy.act(_observe(playing, device), [play.generator for play in playing]).cpu().numpy()
                going = []
                for play, chunk in zip(playing, chunks, strict=True):
                    play.step(chunk[: spec.n_action_steps])
                    if play.over:
                        finished[play.outcome.episode] = play.outcome
                        bars.update(bar, advance=1, note=f"{sum(o.success for o in finished.values())} succeeded")
                    again = _next(play.env, waiting, seed) if play.over else play
                    going += [again] if again else []
                playing = going
    finally:
        for env in envs:
            env.close()
    return [finished[episode] for episode in suite.episodes]


class _Play:
    """An episode being played in an environment."""

    def __init__(self, env: ChunkEnv, episode: Episode, seed: int) -> None:
        self.env, self.outcome, self.over = env, Outcome(episode, False, 0), False
        state = np.random.SeedSequence([seed, episode.seed, *episode.task.encode()]).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(state[0]))
        env.film = episode.film
        self.observation, info = env.reset(seed=episode.seed)
        self.outcome.frames.extend(info["frames"])

    def step(self, chunk: NDArray[np.float32]) -> None:
        self.observation, _, success, truncated, info = self.env.step(chunk)
        self.outcome.success, self.outcome.steps = success, info["steps"]
        self.outcome.frames.extend(info["frames"])
        self.over = success or truncated


def _next(env: ChunkEnv, waiting: dict[str, deque[Episode]], seed: int) -> _Play | None:
    queue = waiting[env.sim.task]
    return _Play(env, queue.popleft(), seed) if queue else None


def _observe(playing: list[_Play], device: torch.device) -> Observation:
    images = torch.from_numpy(np.stack([play.observation["images"] for play in playing]))  # (B, T, C, h, w, 3)
    state = torch.from_numpy(np.stack([play.observation["state"] for play in playing]))
    return Observation(images.permute(0, 1, 2, 5, 3, 4).contiguous(), state, [play.outcome.episode.instruction for play in playing]).to(device)


def write_videos(outcomes: list[Outcome], folder: Path, fps: float) -> list[Path]:
    """One mp4 per task with its filmed episodes side by side, framed green where they succeeded and red where not."""
    import imageio.v3 as iio

    written = []
    for task in dict.fromkeys(o.episode.task for o in outcomes):
        filmed = [o for o in outcomes if o.episode.task == task and o.frames]
        if not filmed:
            continue
        length = max(len(o.frames) for o in filmed)
        rows = [np.concatenate([_framed(o, t, length) for o in filmed], 1) for t in range(length + round(fps))]
        path = folder / f"{task}.mp4"
        write_bytes(path, iio.imwrite("<bytes>", np.stack(rows), plugin="pyav", extension=".mp4", codec="h264", fps=round(fps)))
        written.append(path)
    return written


def _framed(outcome: Outcome, time: int, length: int) -> Frame:
    """The frame at `time` (the last one is held); the border takes its colour once the episode is over."""
    frame = outcome.frames[min(time, len(outcome.frames) - 1)].copy()
    if time >= len(outcome.frames) - 1:
        colour = (40, 160, 70) if outcome.success else (200, 50, 50)
        for edge in (frame[:4], frame[-4:], frame[:, :4], frame[:, -4:]):
            edge[...] = colour
    return frame
