"""A policy of provla's as LeRobot asks for one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from provla.core.cameras import Images, stacked, together
from provla.core.machine import reproducible
from provla.core.types import Anchor, Observation, Spec, anchor_of, check_steps, past_of
from provla.dataset.cache import small
from provla.execution import continued
from provla.plugin.configuration_provla import NOT_HERE, ProvlaConfig
from provla.plugin.folder import check_version, check_word
from provla.plugin.robot import check_cameras, check_robot, feature
from provla.policy.folder import load_policy
from provla.policy.parts import takes_anchors
from provla.scheduler import L1, MIP

NOISE = "observation.noise_seed"  # (B,2), which provla's worlds say: upper and lower 16 bits


class ProvlaPolicy(PreTrainedPolicy):
    """`select_action` is `policy.act` executed as `execution=chunk` does, to the last bit.

    It keeps the last `n_obs_steps` observations, makes bytes of LeRobot's pixels, which are those that the camera gave,
    and reduces pictures as the frame cache does. What it remembers of its own actions is what was executed, as far as
    the policy knows the bounds (`past_of`). Each row's noise has a generator of its own, which an episode begins
    (`reset`) by the episode's seed: provla's worlds say it, elsewhere it is (seed, episode, row).
    """

    config_class = ProvlaConfig
    name = "provla"

    def __init__(self, config: ProvlaConfig, folder: Path | None = None, **given: Any) -> None:
        """folder: of the export; without, `ValueError`. given: what LeRobot passes to every policy; nothing is read."""
        super().__init__(config)
        if folder is None:
            raise ValueError(f"{NOT_HERE}; give its folder as --policy.path")
        check_version(config.provla_version, folder)
        check_word(folder)
        self.policy, self.spec = load_policy(
            folder / "policy",
            torch.device(config.device or "cpu"),
            bases=config.bases,
            trust=config.trust,
            driving=config.source,
        )
        self.spec.check_driving()
        check_steps(self.spec.horizon, config.n_action_steps)
        _check_outputs(config, self.spec)
        self._episode = -1
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: ProvlaConfig | None = None,
        revision: str | None = None,
        **given: Any,
    ) -> Self:
        """pretrained_name_or_path: an export's folder, or its id on the Hub. Errors: `ValueError`."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(pretrained_name_or_path), revision=revision))
        config = config or ProvlaConfig.from_pretrained(folder)
        policy = cls(config, folder, **given)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: Any = None) -> None:
        raise ValueError("an export is a folder of files: copy it, or `hf upload` it, as it is")

    def reset(self) -> None:
        """An episode begins. `ValueError` where a robot is about to be driven that is not the policy's."""
        self._episode += 1
        self._queue: deque[Tensor] = deque()
        self._seen: deque[tuple[Images, Tensor]] = deque(maxlen=self.spec.n_obs_steps)
        self._past: deque[Tensor] = deque(maxlen=self.spec.n_past_actions)
        self._generators: list[torch.Generator] = []
        check_robot(self.spec)

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """(B,A) in the robot's units: the next of the chunk, or the first of a new one. To be called at every control
        step. batch: a picture (B,3,h,w) of each camera, in 0…1 or bytes, the state (B,S), and the task.
        """
        _check_noise(noise)
        if len(self._queue) < self.spec.n_obs_steps:  # what the next chunk is to see
            self._seen.append(self._look(batch))
        if not self._queue:
            past = [self._seen[0]] * (self.spec.n_obs_steps - len(self._seen)) + list(self._seen)
            chunk = self._act(batch, *_side_by_side(past))
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        action = self._queue.popleft()
        self._past.append(action.cpu())
        return action

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """(B,H,A) in the robot's units. batch: as of `select_action`; where the policy looks at several steps, with
        these: pictures (B,T,3,h,w), state (B,T,S).

        Real-time chunking: the chunk continues what is still being executed (see `execution.RealTime`).
        prev_chunk_left_over: (n,A) or (B,n,A) of the chunk before, from now on, in the robot's units; rows of nothing
        but zeros at its end are LeRobot's padding. inference_delay: control steps until the chunk arrives.
        execution_horizon: of the rows, so many count. `ValueError` for a policy that cannot.
        """
        _check_noise(noise)
        if (inference_delay is not None or prev_chunk_left_over is not None) and (why := self.no_rtc()):
            raise ValueError(f"real-time chunking: {why}; use --inference.type=sync")
        if self.spec.n_past_actions:
            raise ValueError(
                f"the policy reads the last {self.spec.n_past_actions} executed actions, which this call does not "
                "know; call select_action, which keeps them"
            )
        images, state = self._history(batch)
        anchor = None
        if prev_chunk_left_over is not None:
            rest = prev_chunk_left_over[..., : min(execution_horizon or self.spec.horizon, self.spec.horizon), :]
            anchor = self._anchor(rest.expand(len(state), *rest.shape[-2:]), inference_delay or 0)
        return self._act(batch, images, state, anchor)

    def no_rtc(self) -> str:
        """Why the policy cannot continue a chunk; empty where it can."""
        sampler = getattr(self.policy, "scheduler", getattr(self.policy, "sampler", None))
        if self.spec.n_obs_steps > 1:
            return (
                f"the policy looks at n_obs_steps={self.spec.n_obs_steps} control steps on end, and LeRobot's engine "
                "hands over none but the last"
            )
        if self.spec.n_past_actions:
            return (
                f"the policy reads the last {self.spec.n_past_actions} executed actions, which LeRobot's engine keeps"
            )
        if sampler is None or isinstance(sampler, L1 | MIP):
            return (
                f"{type(sampler or self.policy).__name__} regresses the chunk and samples nothing, so that what is "
                "being executed could be written over its beginning but not be continued"
            )
        if not takes_anchors(self.policy):
            return f"{type(sampler).__name__}.sample has no anchor to be pulled to"
        return ""

    def supports_rtc(self) -> bool:
        """Whether `predict_action_chunk` continues a chunk; where not, the reason is logged."""
        why = self.no_rtc()
        if why:
            logging.error("real-time chunking is refused: %s", why)
        return not why

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any] | None]:
        raise ValueError(NOT_HERE)

    def get_optim_params(self) -> Any:
        raise ValueError(NOT_HERE)

    def _act(self, batch: Mapping[str, Any], images: Images, state: Tensor, anchor: Anchor | None = None) -> Tensor:
        """images (B,T,C,3,h,w) uint8, or of each camera (B,T,3,h,w), state (B,T,S) → (B,H,A)."""
        if not self._generators:
            seeds = self._seeds(batch, len(state))
            self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if len(self._generators) != len(state):
            raise ValueError(
                f"{len(state)} observations come where the episode began with {len(self._generators)}; call reset() "
                "between episodes"
            )
        executed = [[action[row].numpy() for action in self._past] for row in range(len(state))]
        seen = Observation(images, state, self._tasks(batch, len(state)), *past_of(executed, self.spec)).to(
            state.device
        )
        threads = self.config.threads
        with reproducible(threads, state.device, deterministic=False) if threads else nullcontext():
            chunk: Tensor = self.policy.act(seen, self._generators, **({} if anchor is None else {"anchor": anchor}))
        if not torch.isfinite(chunk).all():
            raise ValueError("the policy's actions are not finite; nothing was sent to the robot")
        return chunk

    def _history(self, batch: Mapping[str, Any]) -> tuple[Images, Tensor]:
        steps = self.spec.n_obs_steps
        state = batch["observation.state"]
        if steps == 1 and state.ndim == 2:
            return _side_by_side([self._look(batch)])
        if state.ndim != 3 or state.shape[1] != steps:
            raise ValueError(
                f"observation.state is {tuple(state.shape)}; the policy looks at n_obs_steps={steps} control steps on "
                f"end: give (B,{steps},{self.spec.state_size}), and pictures likewise, or call select_action, which "
                "keeps them"
            )
        keys = ["observation.state", *map(feature, self.spec.cameras)]
        return _side_by_side(
            [self._look({key: batch[key][:, t] for key in keys if key in batch}) for t in range(steps)]
        )

    def _look(self, batch: Mapping[str, Any]) -> tuple[Images, Tensor]:
        """The pictures (B,C,3,h,w) uint8, or of each camera (B,3,h,w), and the state (B,S) of one control step."""
        spec, state = self.spec, batch.get("observation.state")
        if state is None or state.ndim != 2 or state.shape[1] != spec.state_size:
            found = "missing" if state is None else tuple(state.shape)
            raise ValueError(f"observation.state is {found}; the policy's is (B,{spec.state_size})")
        check_cameras(spec, {key: (*value.shape[-2:], 3) for key, value in batch.items() if torch.is_tensor(value)})
        images = [_reduced(_bytes(batch[feature(camera)], camera), size) for camera, size in spec.sizes.items()]
        return together(images, lambda alike: torch.stack(alike, 1)), state.float().clone()

    def _tasks(self, batch: Mapping[str, Any], rows: int) -> list[str]:
        said = batch.get("task") or ""
        tasks = [said] * rows if isinstance(said, str) else list(said)
        if len(tasks) != rows or (not all(tasks) and NOISE not in batch):
            raise ValueError(
                f"task={said!r}: the policy is to be told what to do, as --task=… does; it was trained on: "
                f"{'; '.join(self.spec.instructions[:10])}"
            )
        return tasks

    def _seeds(self, batch: Mapping[str, Any], rows: int) -> list[int]:
        if NOISE in batch:
            return [int(high) * 2**16 + int(low) for high, low in batch[NOISE].tolist()]
        said = [[self.config.seed, self._episode, row] for row in range(rows)]
        return [int(np.random.SeedSequence(entropy).generate_state(1)[0]) for entropy in said]

    def _anchor(self, left: Tensor, delay: int) -> Anchor:
        """left (B,n,A)."""
        if left.shape[-1] != self.spec.action_size or not torch.isfinite(left).all():
            raise ValueError(
                f"prev_chunk_left_over is {tuple(left.shape)}, or not finite; expected (n,{self.spec.action_size})"
            )
        told = []
        for rest in left.cpu().numpy():
            kept = int(np.flatnonzero(rest.any(-1))[-1]) + 1 if rest.any() else 0
            told.append(continued(rest[:kept], min(delay, kept), self.spec.horizon) if kept else None)
        return anchor_of(told, self.spec, left.device)


def _side_by_side(looks: Sequence[tuple[Images, Tensor]]) -> tuple[Images, Tensor]:
    """Control steps on end, as a policy sees them: with an axis T behind B."""
    images = stacked([image for image, _ in looks], lambda steps: torch.stack(steps, 1))
    return images, torch.stack([state for _, state in looks], 1)


def _check_noise(noise: Tensor | None) -> None:
    if noise is not None:
        raise ValueError("noise: the sampler draws its own, by the episode's seed (--policy.seed)")


def _check_outputs(config: ProvlaConfig, spec: Spec) -> None:
    """LeRobot has filled in what the environment, or the data set, says of actions."""
    action = (config.output_features or {}).get("action")
    if action is not None and tuple(action.shape) != (spec.action_size,):
        raise ValueError(
            f"the policy's actions have {spec.action_size} numbers, those of the environment {tuple(action.shape)}; "
            "choose the one that its demonstrations came from"
        )


def _bytes(pixels: Tensor, camera: str) -> Tensor:
    """(B,3,h,w) as the camera gave them: LeRobot hands over bytes divided by 255, which rounding undoes exactly."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pictures of {camera!r} are {tuple(pixels.shape)}; expected (B,3,h,w)")
    if pixels.dtype == torch.uint8:
        return pixels.clone()
    pixels = pixels.float()
    if not bool(((pixels >= -1e-3) & (pixels <= 1.001)).all()):
        raise ValueError(
            f"pictures of {camera!r} lie in {float(pixels.min()):g} … {float(pixels.max()):g}; expected 0 … 1, or bytes"
        )
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _reduced(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,3,h,w) uint8, as the frame cache reduces recorded pictures."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    rows = [small(np.ascontiguousarray(image), size) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    return torch.from_numpy(np.stack(rows)).to(images.device)
