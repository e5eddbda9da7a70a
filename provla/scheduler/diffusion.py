"""Diffusion, with diffusers' samplers."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from provla.core.checks import Steps
from provla.core.interfaces import Generators, Head
from provla.core.libraries import diffusers_library
from provla.core.types import Anchor, Tokens
from provla.scheduler.parts import draw, first_noise, in_float32, squared


class Diffusion(nn.Module):
    """DDPM training (Ho et al. 2020, arXiv:2006.11239) with any of diffusers' samplers.

    sampler: name of the diffusers class that samples: `DDIMScheduler` (Song et al. 2020, arXiv:2010.02502),
    `DDPMScheduler`, or `DPMSolverMultistepScheduler` (DPM-Solver++ of second order, Lu et al. 2022, arXiv:2211.01095).
    prediction_type: epsilon, sample or v_prediction (Salimans & Ho 2022, arXiv:2202.00512). clip_sample cuts the
    predicted clean action to ±1, so it needs actions normalised to that range; DPM-Solver++ has no such cut.
    timestep_spacing: where the sampler's steps lie among those of training: leading (as in Diffusion Policy), linspace,
    or trailing, which starts at pure noise and is the better choice for few steps (Lin et al. 2023, arXiv:2305.08891);
    DPM-Solver++ spaces its steps itself.
    """

    def __init__(
        self,
        sampler: Literal["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"],
        num_train_timesteps: Steps,
        num_inference_steps: Steps,
        beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"],
        prediction_type: Literal["epsilon", "sample", "v_prediction"],
        clip_sample: bool = False,
        timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading",
    ) -> None:
        super().__init__()
        if num_inference_steps > num_train_timesteps:
            raise ValueError(
                f"scheduler.num_inference_steps={num_inference_steps}: must lie between 1 and "
                f"scheduler.num_train_timesteps={num_train_timesteps}"
            )
        # The paper's steps, even in log signal-to-noise: those of timestep_spacing leave half of its advantage.
        options = {"use_lu_lambdas": True} if sampler == "DPMSolverMultistepScheduler" else {"clip_sample": clip_sample}
        if clip_sample and "clip_sample" not in options:
            raise ValueError("scheduler.clip_sample=true: DPM-Solver++ has no such cut; set it to false")
        self._scheduler: Any = getattr(diffusers_library(), sampler)(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
            **options,
        )
        self.num_inference_steps = num_inference_steps
        self._alphas: Tensor | None = None  # on the device of whoever asked last, like the sampler's steps
        self._steps: tuple[int, Tensor] | None = None

    @property
    def limit(self) -> float:
        """Where the sampler cuts predicted clean actions, in normalised units; inf where it does not."""
        given = self._scheduler.config
        return float(given.clip_sample_range) if given.get("clip_sample") else math.inf

    @classmethod
    def ddim(cls, scheduler: Any, num_inference_steps: int) -> Self:
        """DDIM for a network that trains with the schedule of another scheduler of diffusers."""
        given = scheduler.config
        found = cls(
            "DDIMScheduler",
            given.num_train_timesteps,
            num_inference_steps,
            given.beta_schedule,
            given.prediction_type,
            given.clip_sample,
        )
        found._scheduler = type(found._scheduler).from_config(given)  # its betas and range too
        return found

    def _signal(self, device: torch.device) -> Tensor:
        """(num_train_timesteps,) float32: how much of a clean action is left at each step."""
        if self._alphas is None or self._alphas.device != device:
            self._alphas = self._scheduler.alphas_cumprod.to(device)
        return self._alphas

    def _clock(self, device: torch.device) -> Tensor:
        """The sampler's steps, as the head is told them."""
        if self._steps is None or self._steps[0] != self.num_inference_steps or self._steps[1].device != device:
            self._steps = self.num_inference_steps, self._scheduler.timesteps.to(device)
        return self._steps[1]

    def loss(
        self,
        head: Head,
        actions: Tensor,
        context: Tokens,
        is_pad: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the prediction over unpadded steps. time is uniform in [0, 1) and becomes a diffusion
        step.
        """
        steps = self._scheduler.config.num_train_timesteps
        noise, time = draw(actions, noise, time)
        t = (time * steps).long().clamp(max=steps - 1)
        alpha = self._signal(actions.device)[t].view(-1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        prediction = head(signal * actions + spread * noise, t, context)
        targets = {"epsilon": noise, "sample": actions, "v_prediction": signal * noise - spread * actions}
        return squared(prediction, targets[self._scheduler.config.prediction_type], is_pad)

    def sample(
        self,
        head: Head,
        context: Tokens,
        shape: tuple[int, int, int],
        generator: Generators = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """(B,H,A) float32 of the given shape; all noise comes from the generator, or row by row from a list of B
        generators.
        """
        self._scheduler.set_timesteps(self.num_inference_steps)
        head, x = in_float32(head), first_noise(context, shape, generator)
        for t, told in zip(self._scheduler.timesteps, self._clock(x.device), strict=True):
            prediction = head(x, told.expand(len(x)), context)
            if anchor is not None:
                prediction = self._pulled(prediction, x, t, anchor)
            x = self._scheduler.step(prediction, t, x, generator=generator).prev_sample
        return x

    def _pulled(self, prediction: Tensor, x: Tensor, t: Tensor, anchor: Anchor) -> Tensor:
        """The prediction whose clean chunk is nearer to the anchor; x: the noisy one at step t."""
        kind, alpha = self._scheduler.config.prediction_type, float(self._scheduler.alphas_cumprod[int(t)])
        signal, spread = alpha**0.5, (1 - alpha) ** 0.5
        if kind == "sample":
            return anchor.pull(prediction)
        clean = (x - spread * prediction) / signal if kind == "epsilon" else signal * x - spread * prediction
        clean = anchor.pull(clean.clamp(-self.limit, self.limit))
        held: Tensor = (x - signal * clean) / spread if kind == "epsilon" else (signal * x - clean) / spread
        return held
