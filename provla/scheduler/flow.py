"""Flow matching."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from provla.core.checks import Steps
from provla.core.interfaces import Generators, Head
from provla.core.types import Anchor, Tokens
from provla.scheduler.parts import draw, first_noise, in_float32, squared


class Flow(nn.Module):
    """Flow matching along straight lines from noise (t = 0) to action (t = 1) (Lipman et al. 2022, arXiv:2210.02747).

    The head predicts the velocity a − ε. solver: euler or midpoint; num_inference_steps counts solver steps, of which
    midpoint's take two evaluations each. time_sampling: uniform, or beta, which trains more near the noise (π0, Black
    et al. 2024, arXiv:2410.24164: t = 0.999 · (1 − x), x ~ Beta(1.5, 1)).
    """

    SCALE = 100  # the head's clock runs from 0 to 100, as in diffusion

    def __init__(
        self,
        num_inference_steps: Steps,
        solver: Literal["euler", "midpoint"],
        time_sampling: Literal["uniform", "beta"],
    ) -> None:
        super().__init__()
        self.num_inference_steps, self._solver, self._time_sampling = num_inference_steps, solver, time_sampling

    def loss(
        self,
        head: Head,
        actions: Tensor,
        context: Tokens,
        is_pad: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity over unpadded steps."""
        noise, time = draw(actions, noise, time)
        t = time if self._time_sampling == "uniform" else 0.999 * (1 - time ** (1 / 1.5))
        share = t.view(-1, 1, 1)
        prediction = head((1 - share) * noise + share * actions, self.SCALE * t, context)
        return squared(prediction, actions - noise, is_pad)

    def sample(
        self,
        head: Head,
        context: Tokens,
        shape: tuple[int, int, int],
        generator: Generators = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """(B,H,A) of the given shape; the noise comes from the generator, or row by row from a list of B generators."""
        head, x, step = in_float32(head), first_noise(context, shape, generator), 1 / self.num_inference_steps

        def velocity(x: Tensor, t: float) -> Tensor:
            found = head(x, torch.full((len(x),), self.SCALE * t, device=x.device), context)
            return found if anchor is None else (anchor.pull(x + (1 - t) * found) - x) / (1 - t)

        for i in range(self.num_inference_steps):
            t = i * step
            x = (
                x + step * velocity(x, t)
                if self._solver == "euler"
                else x + step * velocity(x + step / 2 * velocity(x, t), t + step / 2)
            )
        return x
