"""Regression in one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from provla.core.interfaces import Generators, Head
from provla.core.types import Anchor, Tokens
from provla.scheduler.parts import in_float32, masked_mean, pulled


class L1(nn.Module):
    """One-step regression with the absolute error (OpenVLA-OFT, Kim et al. 2025, arXiv:2502.19645): the baseline of
    every generative claim.
    """

    num_inference_steps = 1

    def loss(
        self,
        head: Head,
        actions: Tensor,
        context: Tokens,
        is_pad: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Mean absolute error over unpadded steps; draws nothing."""
        prediction = head(torch.zeros_like(actions), actions.new_zeros(len(actions)), context)
        return masked_mean((prediction.float() - actions.float()).abs(), is_pad)

    def sample(
        self,
        head: Head,
        context: Tokens,
        shape: tuple[int, int, int],
        generator: Generators = None,
        anchor: Anchor | None = None,
    ) -> Tensor:
        """(B,H,A) of the given shape."""
        start = torch.zeros(shape, device=context.features.device)
        return pulled(in_float32(head)(start, start.new_zeros(shape[0]), context), anchor)
