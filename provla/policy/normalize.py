"""Normalisation of states and actions, fitted on training episodes, undone exactly, stored with the weights."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from provla.core.types import Spec

Mode = Literal["min_max", "mean_std", "quantiles"]


class Normalization(TypedDict):
    """How states and actions are normalised; see `Normalizer`."""

    state: Mode
    action: Mode


class Normalizer(nn.Module):
    """y = (x - centre) / scale, per dimension of the last axis.

    min_max maps the training range to [-1, 1]; quantiles the 1st to the 99th percentile (outliers go beyond ±1);
    mean_std gives zero mean and unit variance. A constant dimension keeps its unit and maps to 0. sources: that have
    statistics of their own, a row of centre and scale (S,D) each; 0: one for all, (D,).
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, size: int, sources: int = 0) -> None:
        super().__init__()
        shape = (sources, size) if sources else (size,)
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit(self, values: Tensor, mode: Mode, source: int | None = None) -> None:
        """values (N,D), in the robot's units, of all data, or of this source's."""
        values = values.double()
        if mode == "mean_std":
            centre, scale = values.mean(0), values.std(0, correction=0)
        else:
            # torch.quantile refuses more than 16 million numbers; sorting does not.
            ordered = values.sort(0).values
            cut = round(0.01 * (len(values) - 1)) if mode == "quantiles" else 0
            low, high = ordered[cut], ordered[len(values) - 1 - cut]
            centre, scale = (low + high) / 2, (high - low) / 2
        for place, found in ((self.centre, centre), (self.scale, torch.where(scale < 1e-6, 1.0, scale))):
            (place if source is None else place[source]).copy_(found)

    def check_reach(self, actions: Tensor, mode: str, limit: float, key: str, source: int | None = None) -> None:
        """`ValueError` where a sampler that cuts at ±limit (normalised) can never reach some of the training actions
        (N,A).

        key: of the configuration, what makes it cut.
        """
        beyond = (self(actions, source).abs() > limit).double().mean().item()
        if mode != "min_max" and beyond:  # min_max ends at ±1 but for rounding
            raise ValueError(
                f"policy.normalization.action={mode} leaves {max(beyond, 1e-3):.1%} of the training actions beyond "
                f"±{limit:g}, where the sampler cuts ({key}=true), so that no sample can reach them; set "
                f"policy.normalization.action=min_max, or {key}=false"
            )

    def forward(self, values: Tensor, source: Tensor | int | None = None) -> Tensor:
        """values (B,…,D). source: of each (B,), or of all; None where one normalisation holds for all."""
        return (values - self._of(self.centre, values, source)) / self._of(self.scale, values, source)

    def undo(self, values: Tensor, source: Tensor | int | None = None) -> Tensor:
        """Back to the robot's units."""
        return values * self._of(self.scale, values, source) + self._of(self.centre, values, source)

    def _of(self, rows: Tensor, values: Tensor, source: Tensor | int | None) -> Tensor:
        if (source is None) != (rows.dim() == 1):
            raise ValueError(f"the statistics are {tuple(rows.shape)}, and the source asked for is {source}")
        if isinstance(source, Tensor):  # (B,D) beside (B,…,D)
            found = rows.index_select(0, source)
            return found.view(len(found), *[1] * (values.dim() - 2), -1)
        return rows if source is None else rows[source]


def normalizers(spec: Spec) -> tuple[Normalizer, Normalizer]:
    """Of a policy's states and actions, not fitted."""
    own = len(spec.sources)
    return Normalizer(spec.state_size, own), Normalizer(spec.action_size, own)
