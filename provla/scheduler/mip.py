"""Regression in two steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.checks import Inside
from provla.core.interfaces import Generators, Head
from provla.core.types import Anchor, Tokens
from provla.scheduler.parts import draw, in_float32, pulled, squared


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

    def loss(
        self,
        head: Head,
        actions: Tensor,
        context: Tokens,
        is_pad: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """The weighted mean of both steps' squared errors over unpadded steps."""
        noise, _ = draw(actions, noise, time)
        zero = actions.new_zeros(len(actions))
        first = head(torch.zeros_like(actions), zero, context)
        second = head(self._t * actions + (1 - self._t) * noise, zero + self.SCALE * self._t, context)
        early, late = self._weights
        return (early * squared(first, actions, is_pad) + late * squared(second, actions, is_pad)) / (early + late)

    def sample(
        self,
        head: Head,
        context: Tokens,
        shape: tuple[int, int, int],
        generator: Generators = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """(B,H,A) of the given shape."""
        head, start = in_float32(head), torch.zeros(shape, device=context.features.device)
        zero = start.new_zeros(shape[0])
        first = pulled(head(start, zero, context), anchor)
        return pulled(head(self._t * first, zero + self.SCALE * self._t, context), anchor)
