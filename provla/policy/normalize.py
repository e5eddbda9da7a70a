"""Normalisation of states and actions, fitted on training episodes, undone exactly, stored with the weights."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

Mode = Literal["min_max", "mean_std", "quantiles"]


class Normalization(TypedDict):
    """How states and actions are normalised; see `Normalizer`."""

    state: Mode
    action: Mode


class Normalizer(nn.Module):
    """y = (x - centre) / scale, per dimension of the last axis.

    min_max maps the training range to [-1, 1]; quantiles the 1st to the 99th percentile (outliers go beyond ±1);
    mean_std gives zero mean and unit variance. A constant dimension keeps its unit and maps to 0.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def fit(self, values: Tensor, mode: Mode) -> None:
        """values (N,D), in the robot's units."""
        values = values.double()
        if mode == "mean_std":
            centre, scale = values.mean(0), values.std(0, correction=0)
        else:
            # torch.quantile refuses more than 16 million numbers; sorting does not.
            ordered = values.sort(0).values
            cut = round(0.01 * (len(values) - 1)) if mode == "quantiles" else 0
            low, high = ordered[cut], ordered[len(values) - 1 - cut]
            centre, scale = (low + high) / 2, (high - low) / 2
        self.centre.copy_(centre)
        self.scale.copy_(torch.where(scale < 1e-6, 1.0, scale))

    def check_reach(self, actions: Tensor, mode: str, limit: float, key: str) -> None:
        """`ValueError` where a sampler that cuts at ±limit (normalised) can never reach some of the training actions
        (N,A).

        key: of the configuration, what makes it cut.
        """
        beyond = (self(actions).abs() > limit).double().mean().item()
        if mode != "min_max" and beyond:  # min_max ends at ±1 but for rounding
            raise ValueError(
                f"policy.normalization.action={mode} leaves {max(beyond, 1e-3):.1%} of the training actions beyond "
                f"±{limit:g}, where the sampler cuts ({key}=true), so that no sample can reach them; set "
                f"policy.normalization.action=min_max, or {key}=false"
            )

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.scale

    def undo(self, values: Tensor) -> Tensor:
        """Back to the robot's units."""
        return values * self.scale + self.centre
