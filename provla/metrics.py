"""Offline metrics of predicted action chunks, in the robot's units, over all joints and per named joint group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def chunk_metrics(predicted: Tensor, actions: Tensor, is_pad: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """predicted and actions (N,H,A), is_pad (N,H). Padded steps count nowhere.

    first_step_error: mean absolute error of the first action. endpoint_error: of the last unpadded one.
    trajectory_mse: mean squared error over the chunk. smoothness: mean absolute second difference of the prediction
    (lower is smoother). With more than one group, `<metric>/<group>` for each.
    """
    found = _metrics(predicted, actions, is_pad)
    if len(groups) > 1:
        for group, joints in groups.items():
            part = _metrics(predicted[..., joints], actions[..., joints], is_pad)
            found |= {f"{name}/{group}": value for name, value in part.items()}
    return found


def _metrics(predicted: Tensor, actions: Tensor, is_pad: Tensor) -> dict[str, float]:
    error = predicted.double() - actions.double()  # (N, H, A)
    valid = (~is_pad).double().unsqueeze(-1)
    last = (~is_pad).sum(1).clamp(min=1) - 1  # (N,)
    bend = predicted.double().diff(dim=1, n=2).abs()  # (N, H-2, A)
    bend_valid = valid[:, 2:]  # a second difference counts where its last step does
    return {
        "first_step_error": error[:, 0].abs().mean().item(),
        "endpoint_error": error[torch.arange(len(error)), last].abs().mean().item(),
        "trajectory_mse": _weighted(error.square(), valid),
        "smoothness": _weighted(bend, bend_valid),
    }


def _weighted(values: Tensor, weight: Tensor) -> float:
    return ((values * weight).sum() / (weight.sum() * values.shape[-1]).clamp(min=1)).item()
