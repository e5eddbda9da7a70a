"""Metrics against a hand computation; the Wilson interval against published numbers."""

from __future__ import annotations

import pytest
import torch

from provla.metrics import chunk_metrics
from provla.statistics import wilson


def test_chunk_metrics_by_hand() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [9.0, 9.0]]])
    actions = torch.zeros(2, 3, 2)
    is_pad = torch.tensor([[False, False, False], [False, False, True]])
    found = chunk_metrics(predicted, actions, is_pad, {"arm": [0], "gripper": [1]})
    assert found["first_step_error"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["endpoint_error"] == pytest.approx((4 + 0 + 0 + 1) / 4)  # the second chunk ends at its second step
    assert found["trajectory_mse"] == pytest.approx((1 + 4 + 16 + 1 + 1) / 10)
    assert found["smoothness"] == pytest.approx(1 / 2)  # 4 - 2·2 + 1 = 1, and 0
    assert found["trajectory_mse/arm"] == pytest.approx(21 / 5)
    assert found["trajectory_mse/gripper"] == pytest.approx(2 / 5)
    assert "trajectory_mse/all" not in chunk_metrics(predicted, actions, is_pad, {"all": [0, 1]})


def test_short_chunks_have_no_bend() -> None:
    assert chunk_metrics(torch.ones(2, 1, 2), torch.zeros(2, 1, 2), torch.zeros(2, 1, dtype=torch.bool), {"a": [0]})["smoothness"] == 0


def test_wilson_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-4)
    assert wilson(0, 20)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(0, 0) == (0, 1)
