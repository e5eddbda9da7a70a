"""Noise schedulers: the training objective and the sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from provla.interfaces import Generators, Head
from provla.types import Tokens


def masked_mean(error: Tensor, is_pad: Tensor) -> Tensor:
    """Mean of error (B,H,A) over the steps that are not padding; a scalar."""
    valid = (~is_pad).unsqueeze(-1).to(error.dtype)
    return (error * valid).sum() / (valid.sum() * error.shape[-1]).clamp(min=1)


class Diffusion(nn.Module):
    """DDPM training (Ho et al. 2020, arXiv:2006.11239) with any of diffusers' samplers.

    sampler: name of the diffusers class that samples, `DDIMScheduler` (Song et al. 2020, arXiv:2010.02502) or
    `DDPMScheduler`. prediction_type: epsilon, sample or v_prediction. clip_sample cuts the predicted clean action to
    ±1, so it needs actions normalised to that range.
    """

    def __init__(
        self,
        sampler: str,
        num_train_timesteps: int,
        num_inference_steps: int,
        beta_schedule: str,
        prediction_type: str,
        clip_sample: bool,
    ) -> None:
        super().__init__()
        if not 1 <= num_inference_steps <= num_train_timesteps:
            raise ValueError(f"scheduler.num_inference_steps={num_inference_steps}: must lie between 1 and scheduler.num_train_timesteps={num_train_timesteps}")
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"scheduler.prediction_type={prediction_type!r}; valid: epsilon, sample, v_prediction")
        import diffusers

        if sampler not in ("DDIMScheduler", "DDPMScheduler"):
            raise ValueError(f"scheduler.sampler={sampler!r}; valid: DDIMScheduler, DDPMScheduler")
        self._scheduler: Any = getattr(diffusers, sampler)(
            num_train_timesteps=num_train_timesteps,
            beta_schedule=beta_schedule,
            prediction_type=prediction_type,
            clip_sample=clip_sample,
        )
        self.num_inference_steps = num_inference_steps

    def loss(self, head: Head, actions: Tensor, context: Tokens, is_pad: Tensor, noise: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """Mean squared error of the prediction over unpadded steps. time is uniform in [0, 1) and becomes a diffusion step."""
        steps = self._scheduler.config.num_train_timesteps
        noise = torch.randn_like(actions) if noise is None else noise
        time = torch.rand(len(actions), device=actions.device) if time is None else time
        t = (time * steps).long().clamp(max=steps - 1)
        prediction = head(self._scheduler.add_noise(actions, noise, t), t, context)
        kind = self._scheduler.config.prediction_type
        target = noise if kind == "epsilon" else actions if kind == "sample" else self._scheduler.get_velocity(actions, noise, t)
        return masked_mean(F.mse_loss(prediction.float(), target.float(), reduction="none"), is_pad)

    def sample(self, head: Head, context: Tokens, shape: tuple[int, int, int], generator: Generators = None) -> Tensor:
        """(B,H,A) of the given shape; all noise comes from the generator, or row by row from a list of B generators."""
        from diffusers.utils.torch_utils import randn_tensor

        self._scheduler.set_timesteps(self.num_inference_steps)
        x: Tensor = randn_tensor(shape, generator, context.features.device, context.features.dtype)
        for t in self._scheduler.timesteps:
            prediction = head(x, t.to(x.device).expand(len(x)), context)
            x = self._scheduler.step(prediction, t, x, generator=generator).prev_sample
        return x
