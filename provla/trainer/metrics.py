"""Offline metrics of predicted action chunks, in the robot's units, over all joints and per named joint group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def chunk_metrics(
    predicted: Tensor, actions: Tensor, is_pad: Tensor, groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """predicted and actions (N,H,A), is_pad (N,H). Padded steps count nowhere.

    first_step_error: L2 norm of the error of the first action, meaned over samples. endpoint_error: of the last
    unpadded one. trajectory_mse: mean squared error over the chunk's steps and joints. smoothness: L2 norm of the
    prediction's second difference, meaned over steps and samples (lower is smoother); nan where no chunk has three
    steps. first_step_mae,
    endpoint_mae, smoothness_mae: the means of the absolute values over joints instead of norms.
    `<metric>/<group>` for each group; one of all joints would repeat the columns and is left out.
    """
    found = _metrics(predicted, actions, is_pad)
    for group, joints in groups.items():
        if len(joints) < actions.shape[-1]:
            part = _metrics(predicted[..., joints], actions[..., joints], is_pad)
            found |= {f"{name}/{group}": value for name, value in part.items()}
    return found


def measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without a smoothness that chunks of fewer than three steps do not have. Any other nan stays, for it
    says that the policy is broken.
    """
    missing = math.isnan(metrics["smoothness"]) and not math.isnan(metrics["trajectory_mse"])
    return {name: value for name, value in metrics.items() if not (missing and name.startswith("smoothness"))}


def _metrics(predicted: Tensor, actions: Tensor, is_pad: Tensor) -> dict[str, float]:
    error = predicted.double() - actions.double()  # (N, H, A)
    last = (~is_pad).sum(1).clamp(min=1) - 1  # (N,)
    first, endpoint = error[:, 0], error[torch.arange(len(error)), last]
    # (M, A): a second difference counts where its last step does.
    bend = predicted.double().diff(dim=1, n=2)[~is_pad[:, 2:]]
    return {
        "first_step_error": first.norm(dim=-1).mean().item(),
        "first_step_mae": first.abs().mean().item(),
        "endpoint_error": endpoint.norm(dim=-1).mean().item(),
        "endpoint_mae": endpoint.abs().mean().item(),
        "trajectory_mse": error[~is_pad].square().mean().item(),
        "smoothness": bend.norm(dim=-1).mean().item(),
        "smoothness_mae": bend.abs().mean().item(),
    }
