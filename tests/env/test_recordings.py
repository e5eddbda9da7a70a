"""What LeRobot reads in the recordings of each suite."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provla.dataset.aloha import AlohaRecording
from provla.dataset.metaworld import TwinsRecording
from provla.dataset.ogbench import OgbenchRecording
from provla.dataset.recording import record

THREE = ("top", "left_wrist", "right_wrist")


@pytest.mark.parametrize(
    ("asked", "fps"),
    [
        (TwinsRecording(("drawer-open", "drawer-close"), 1, ("corner2",), 32, 0, 0.05, 0.8, 3), 80),
        (OgbenchRecording(("button-left", "button-right"), 1, ("front",), 32, 0, 0.1, 0.8, 3), 20),
        (AlohaRecording(("transfer_cube",), 1, THREE, 32, 0, 0.0, 0.8, 3), 50),
    ],
    ids=["metaworld_twins", "ogbench_scene", "aloha_sim"],
)
def test_lerobot_reads_tasks_names_fps_and_statistics(
    asked: Any, fps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stopped: list[int | None] = []  # what processes were told to end that had ended, or None
    monkeypatch.setattr(BaseProcess, "terminate", lambda process: stopped.append(process.exitcode))
    root = record(asked, tmp_path, 1)
    assert stopped == [0, 0]  # cut short, they would have left semaphores behind, and a warning at the run's end
    found = LeRobotDataset("provla/recorded", root=root, video_backend="pyav")
    body, items = asked.embodiment, [found[i] for i in range(found.num_frames)]
    assert (found.fps, body.fps, found.num_episodes) == (fps, fps, len(asked.tasks))
    assert {item["task"] for item in items} == set(asked.sentences.values())
    for key, names in (("observation.state", body.state.names), ("action", body.action.names)):
        assert list(found.features[key]["names"]) == list(names)
        rows = np.stack(found.hf_dataset.with_format("numpy")[key])
        assert rows.shape == (found.num_frames, len(names))
        said = found.meta.stats[key]
        for what in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(said[what], getattr(rows, what)(0), rtol=1e-4, atol=1e-4)
    for camera in asked.cameras:
        key = f"observation.images.{camera}"
        pixels = np.stack([item[key] for item in items])
        assert pixels.shape[1:] == (3, 32, 32)
        said = found.meta.stats[key]
        np.testing.assert_allclose(said["mean"][:, 0, 0], pixels.mean((0, 2, 3)), atol=0.03)
        np.testing.assert_allclose(said["std"][:, 0, 0], pixels.std((0, 2, 3)), atol=0.03)
