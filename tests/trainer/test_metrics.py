"""Metrics against a hand computation; the Wilson interval against published numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from provla.core.types import joint_groups_of
from provla.statistics.checks import wilson
from provla.trainer.metrics import chunk_metrics, measured


def test_chunk_metrics_by_hand() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [9.0, 9.0]]])
    actions = torch.zeros(2, 3, 2)
    is_pad = torch.tensor([[False, False, False], [False, False, True]])
    found = chunk_metrics(predicted, actions, is_pad, {"arm": [0], "gripper": [1]})
    assert found["first_step_mae"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["endpoint_mae"] == pytest.approx((4 + 0 + 0 + 1) / 4)  # the second chunk ends at its second step
    assert found["trajectory_mse"] == pytest.approx((1 + 4 + 16 + 1 + 1) / 10)
    assert found["smoothness_mae"] == pytest.approx(1 / 2)  # 4 - 2·2 + 1 = 1, and 0
    assert found["trajectory_mse/arm"] == pytest.approx(21 / 5)
    assert found["trajectory_mse/gripper"] == pytest.approx(2 / 5)
    assert found["endpoint_error/gripper"] == pytest.approx((0 + 1) / 2)
    assert not any("/" in name for name in chunk_metrics(predicted, actions, is_pad, {"all": [0, 1]}))
    assert not any("/" in name for name in chunk_metrics(predicted, actions, is_pad, {}))


def test_errors_are_norms_over_joints_meaned_over_samples() -> None:
    """The reference design's three metrics, by numpy, sample by sample."""
    g = torch.Generator().manual_seed(0)
    predicted, actions = torch.randn(5, 9, 7, generator=g), torch.randn(5, 9, 7, generator=g)
    lengths = [9, 9, 4, 3, 2]
    is_pad = torch.arange(9) >= torch.tensor(lengths)[:, None]
    found = chunk_metrics(predicted, actions, is_pad, {"arm": [1, 4, 6]})
    p, error = predicted.double().numpy(), (predicted.double() - actions.double()).numpy()
    for suffix, joints in (("", list(range(7))), ("/arm", [1, 4, 6])):
        part = error[..., joints]
        assert found[f"first_step_error{suffix}"] == pytest.approx(
            np.mean([np.linalg.norm(part[i, 0]) for i in range(5)])
        )
        assert found[f"endpoint_error{suffix}"] == pytest.approx(
            np.mean([np.linalg.norm(part[i, n - 1]) for i, n in enumerate(lengths)])
        )
        bends = [
            np.linalg.norm((p[i, t] - 2 * p[i, t - 1] + p[i, t - 2])[joints])
            for i, n in enumerate(lengths)
            for t in range(2, n)
        ]
        assert found[f"smoothness{suffix}"] == pytest.approx(np.mean(bends))


@pytest.mark.parametrize(("horizon", "length"), [(1, 1), (2, 2), (8, 2)])
def test_fewer_than_three_steps_have_no_smoothness(horizon: int, length: int) -> None:
    is_pad = torch.arange(horizon).expand(2, -1) >= length
    found = chunk_metrics(torch.ones(2, horizon, 2), torch.zeros(2, horizon, 2), is_pad, {"a": [0]})
    assert all(math.isnan(value) == name.startswith("smoothness") for name, value in found.items())
    assert list(measured(found)) == [name for name in found if not name.startswith("smoothness")]
    broken = chunk_metrics(
        torch.full((2, 8, 2), torch.nan), torch.zeros(2, 8, 2), torch.zeros(2, 8, dtype=torch.bool), {}
    )
    assert measured(broken).keys() == broken.keys()  # a policy that answers nan is not taken for one without smoothness


def test_groups_of_joints_on_request() -> None:
    names = ["shoulder", "elbow", "gripper"]
    assert joint_groups_of(names, None) == {}
    assert joint_groups_of(names, "each") == {"shoulder": [0], "elbow": [1], "gripper": [2]}
    assert joint_groups_of(names, {"arm": ["elbow", "shoulder"]}) == {"arm": [1, 0]}
    wrong: list[tuple[Any, str]] = [
        ("all", "valid: null, each, or names of groups"),
        ({"arm": ["knee"]}, "names 'knee'"),
        ({"arm": []}, "arm has no joints"),
    ]
    for groups, message in wrong:
        with pytest.raises(ValueError, match=message):
            joint_groups_of(names, groups)


def test_wilson_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-4)
    assert wilson(0, 20)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(0, 0) == (0, 1)
