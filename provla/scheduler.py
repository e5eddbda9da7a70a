"""Objectives and samplers: diffusion, flow matching, and the regressions they have to beat. All on normalised actions."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from provla.checks import Inside, Steps
from provla.interfaces import Generators, Head
from provla.types import Tokens


def masked_mean(error: Tensor, is_pad: Tensor) -> Tensor:
    """Mean of error (B,H,A) over the steps that are not padding; a scalar."""
    valid = (~is_pad).unsqueeze(-1).to(error.dtype)
    return (error * valid).sum() / (valid.sum() * error.shape[-1]).clamp(min=1)


def squared(prediction: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
    """Mean squared error over the unpadded steps, in float32."""
    return masked_mean((prediction.float() - target.float()).square(), is_pad)


def _draw(actions: Tensor, noise: Tensor | None, time: Tensor | None) -> tuple[Tensor, Tensor]:
    """The noise (B,H,A) and time (B,) of a training step: those given, or new ones."""
    noise = torch.randn_like(actions) if noise is None else noise
    return noise, torch.rand(len(actions), device=actions.device) if time is None else time


def _noise(context: Tokens, shape: tuple[int, int, int], generator: Generators) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    drawn: Tensor = randn_tensor(shape, generator, context.features.device, torch.float32)
    return drawn


def _in_float32(head: Head) -> Head:
    """The head with its answers in float32: samplers draw and step in float32, whatever a head computes in."""
    return lambda actions, time, context: head(actions, time, context).float()


class Diffusion(nn.Module):
    """DDPM training (Ho et al. 2020, arXiv:2006.11239) with any of diffusers' samplers.

    sampler: name of the diffusers class that samples: `DDIMScheduler` (Song et al. 2020, arXiv:2010.02502),
    `DDPMScheduler`, or `DPMSolverMultistepScheduler` (DPM-Solver++ of second order, Lu et al. 2022, arXiv:2211.01095).
    prediction_type: epsilon, sample or v_prediction (Salimans & Ho 2022, arXiv:2202.00512). clip_sample cuts the
    predicted clean action to ±1, so it needs actions normalised to that range; DPM-Solver++ has no such cut.
    timestep_spacing: where the sampler's steps lie among those of training: leading (as in Diffusion Policy), linspace, or
    trailing, which starts at pure noise and is the better choice for few steps (Lin et al. 2023, arXiv:2305.08891);
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
            raise ValueError(f"scheduler.num_inference_steps={num_inference_steps}: must lie between 1 and scheduler.num_train_timesteps={num_train_timesteps}")
        import diffusers

        # The paper's steps, even in log signal-to-noise: those of timestep_spacing leave half of its advantage.
        options = {"use_lu_lambdas": True} if sampler == "DPMSolverMultistepScheduler" else {"clip_sample": clip_sample}
        if clip_sample and "clip_sample" not in options:
            raise ValueError("scheduler.clip_sample=true: DPM-Solver++ has no such cut; set it to false")
        self._scheduler: Any = getattr(diffusers, sampler)(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            timestep_spacing=timestep_spacing,
            **options,
        )
        self.num_inference_steps = num_inference_steps

    @property
    def limit(self) -> float:
        """Where the sampler cuts predicted clean actions, in normalised units; inf where it does not."""
        given = self._scheduler.config
        return float(given.clip_sample_range) if given.get("clip_sample") else math.inf

    @classmethod
    def ddim(cls, scheduler: Any, num_inference_steps: int) -> Self:
        """DDIM for a network that trains with the schedule of another scheduler of diffusers."""
        given = scheduler.config
        found = cls("DDIMScheduler", given.num_train_timesteps, num_inference_steps, given.beta_schedule, given.prediction_type, given.clip_sample)
        found._scheduler = type(found._scheduler).from_config(given)  # its betas and range too
        return found

    def loss(self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction over unpadded steps. time is uniform in [0, 1) and becomes a diffusion step."""
        steps = self._scheduler.config.num_train_timesteps
        noise, time = _draw(actions, noise, time)
        t = (time * steps).long().clamp(max=steps - 1)
        alpha = self._scheduler.alphas_cumprod.to(actions.device)[t].view(-1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        prediction = head(signal * actions + spread * noise, t, context)
        targets = {"epsilon": noise, "sample": actions, "v_prediction": signal * noise - spread * actions}
        return squared(prediction, targets[self._scheduler.config.prediction_type], is_pad)

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) float32 of the given shape; all noise comes from the generator, or row by row from a list of B generators."""
        self._scheduler.set_timesteps(self.num_inference_steps)
        head, x = _in_float32(head), _noise(context, shape, generator)
        for t in self._scheduler.timesteps:
            prediction = head(x, t.to(x.device).expand(len(x)), context)
            x = self._scheduler.step(prediction, t, x, generator=generator).prev_sample
        return x


class Flow(nn.Module):
    """Flow matching along straight lines from noise (t = 0) to action (t = 1) (Lipman et al. 2022, arXiv:2210.02747).

    The head predicts the velocity a − ε. solver: euler or midpoint; num_inference_steps counts solver steps, of which
    midpoint's take two evaluations each. time_sampling: uniform, or beta, which trains more near the noise (π0, Black et
    al. 2024, arXiv:2410.24164: t = 0.999 · (1 − x), x ~ Beta(1.5, 1)).
    """

    SCALE = 100  # the head's clock runs from 0 to 100, as in diffusion

    def __init__(self, num_inference_steps: Steps, solver: Literal["euler", "midpoint"], time_sampling: Literal["uniform", "beta"]) -> None:
        super().__init__()
        self.num_inference_steps, self._solver, self._time_sampling = num_inference_steps, solver, time_sampling

    def loss(self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """Mean squared error of the velocity over unpadded steps."""
        noise, time = _draw(actions, noise, time)
        t = time if self._time_sampling == "uniform" else 0.999 * (1 - time ** (1 / 1.5))
        share = t.view(-1, 1, 1)
        prediction = head((1 - share) * noise + share * actions, self.SCALE * t, context)
        return squared(prediction, actions - noise, is_pad)

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) of the given shape; the noise comes from the generator, or row by row from a list of B generators."""
        head, x, step = _in_float32(head), _noise(context, shape, generator), 1 / self.num_inference_steps

        def velocity(x: Tensor, t: float) -> Tensor:
            return head(x, torch.full((len(x),), self.SCALE * t, device=x.device), context)

        for i in range(self.num_inference_steps):
            t = i * step
            x = x + step * velocity(x, t) if self._solver == "euler" else x + step * velocity(x + step / 2 * velocity(x, t), t + step / 2)
        return x


class L1(nn.Module):
    """One-step regression with the absolute error (OpenVLA-OFT, Kim et al. 2025, arXiv:2502.19645): the baseline of every generative claim."""

    num_inference_steps = 1

    def loss(self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """Mean absolute error over unpadded steps; draws nothing."""
        prediction = head(torch.zeros_like(actions), actions.new_zeros(len(actions)), context)
        return masked_mean((prediction.float() - actions.float()).abs(), is_pad)

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) of the given shape."""
        start = torch.zeros(shape, device=context.features.device)
        return head(start, start.new_zeros(shape[0]), context).float()


class MIP(nn.Module):
    """Two-step regression: the minimal iterative policy of "Much Ado About Noising" (arXiv:2512.01809).

    The head predicts the action twice: from nothing at time 0, and from a noisy action, t* a + (1 − t*) ε, at time t*.
    To act, the first answer, scaled by t*, is what the second step starts from; nothing is drawn. weighted: the steps'
    errors count 1 / t*² and 1 / (1 − t*)², as in the authors' code; else equally.
    """

    SCALE = 100
    num_inference_steps = 2

    def __init__(self, t_star: Inside, weighted: bool) -> None:
        super().__init__()
        self._t = t_star
        self._weights = (1 / t_star**2, 1 / (1 - t_star) ** 2) if weighted else (1.0, 1.0)

    def loss(self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """The weighted mean of both steps' squared errors over unpadded steps."""
        noise, _ = _draw(actions, noise, time)
        zero = actions.new_zeros(len(actions))
        first = head(torch.zeros_like(actions), zero, context)
        second = head(self._t * actions + (1 - self._t) * noise, zero + self.SCALE * self._t, context)
        early, late = self._weights
        return (early * squared(first, actions, is_pad) + late * squared(second, actions, is_pad)) / (early + late)

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) of the given shape."""
        head, start = _in_float32(head), torch.zeros(shape, device=context.features.device)
        zero = start.new_zeros(shape[0])
        return head(self._t * head(start, zero, context), zero + self.SCALE * self._t, context)
