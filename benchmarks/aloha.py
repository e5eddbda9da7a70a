"""A data set of exactly the schema of lerobot/aloha_mobile_cabinet, as small as one likes, by LeRobot's own writer.

python benchmarks/aloha.py <folder> [episodes] [steps]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
JOINTS = [
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
]
TASK = "Open the top cabinet, store the pot inside it then close the cabinet."


def write(root: Path, episodes: int = 3, steps: int = 40, seed: int = 0) -> Path:
    """Two arms that swing in front of three cameras of 480×640 at 50 fps."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": (480, 640, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in CAMERAS
    }
    for key in ("observation.state", "observation.effort", "action"):
        features[key] = {"dtype": "float32", "shape": (14,), "names": {"motors": JOINTS}}
    encoder = RGBEncoderConfig(vcodec="h264", g=2, crf=23, preset="ultrafast")
    dataset = LeRobotDataset.create(
        "local/aloha_mobile_cabinet", fps=50, features=features, root=root, robot_type="aloha", rgb_encoder=encoder
    )
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 200, (len(CAMERAS), 480, 640, 3), dtype=np.uint8) // 4 * 4
    # Large patches, which video compresses well.
    background = np.repeat(np.repeat(background[:, ::16, ::16], 16, 1), 16, 2)
    for _ in range(episodes):
        phase = rng.uniform(0, 2 * np.pi, 14)
        for step in range(steps):
            swing = [0.5 * np.sin(t / 12 + phase).astype(np.float32) for t in (step, step + 1)]
            frame: dict[str, Any] = {
                "observation.state": swing[0],
                "observation.effort": 0.1 * swing[0],
                "action": swing[1],
                "task": TASK,
            }
            for c, camera in enumerate(CAMERAS):
                image = background[c].copy()
                x, y = (int(320 + 250 * swing[0][7 * (c % 2)]), int(240 + 180 * swing[0][1]))
                image[max(0, y - 30) : y + 30, max(0, x - 30) : x + 30] = (220, 60, 40)
                frame[f"observation.images.{camera}"] = image
            dataset.add_frame(frame)
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return root


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if target.exists():
        shutil.rmtree(target)
    print(write(target, *(int(n) for n in sys.argv[2:4])))
