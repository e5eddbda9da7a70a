"""What the tests share: composed configurations, small real data sets, commands run in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
os.environ.setdefault("PROVLA_ROOT", str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

from provla.demonstrations import MetaworldRecording, record_metaworld  # noqa: E402
from provla.types import Spec  # noqa: E402

# The fake data set and a policy that trains in a second; the parts under test are named after these.
FAKE = [
    "dataset=fake",
    "logger=none",
    "vision.channels=[8,16]",
    "vision.width=16",
    "vision.num_keypoints=8",
    "fusion.width=16",
    "head.channels=[16,32]",
    "head.time_width=16",
    "horizon=8",
    "n_action_steps=4",
    "trainer.batch_size=8",
    "trainer.max_steps=4",
    "trainer.val_every=2",
    "trainer.val_samples=8",
    "trainer.log_every=1",
    "device=cpu",
]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def compose(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The resolved configuration of a command line."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = OmegaConf.to_container(hydra.compose(name, overrides=list(overrides)), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.fixture
def spec() -> Spec:
    return Spec(
        cameras=("left", "right"),
        image_size=(32, 32),
        state_size=3,
        action_size=4,
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
        instructions=("Open the drawer", "Close the window gently"),
        joint_groups={"arm": [0, 1, 2], "gripper": [3]},
        fps=10.0,
    )


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes outside its own folder or leaves torch in another state."""
    monkeypatch.setenv("PROVLA_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`command("train", "seed=1", …)` → exit code, stdout, stderr; the command runs in this process."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        from importlib import import_module

        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"provla.{name}", *arguments])
        capfd.readouterr()
        code = 0
        try:
            import_module(f"provla.{name}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real recording: two tasks, two demonstrations each, by two processes."""
    asked = MetaworldRecording(("drawer-close", "window-open"), 2, ("corner2",), 32, 0, 0.05, 0.0, 3)
    return record_metaworld(asked, tmp_path_factory.mktemp("recordings"), workers=2)


@pytest.fixture(scope="session")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot v3 data set by LeRobot's own writer: two cameras, named joints, two tasks, five episodes of 12 steps."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("lerobot") / "two_cameras"
    joints = ["shoulder", "elbow", "gripper"]
    features: dict[str, Any] = {
        f"observation.images.{camera}": {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]} for camera in ("front", "wrist")
    }
    for key in ("observation.state", "observation.effort", "action"):
        features[key] = {"dtype": "float32", "shape": (3,), "names": joints}
    dataset = LeRobotDataset.create(
        "test/two_cameras", fps=10, features=features, root=root, rgb_encoder=RGBEncoderConfig(vcodec="h264", g=2, crf=8, preset="ultrafast")
    )
    rng = np.random.default_rng(0)
    for episode in range(5):
        for step in range(12):
            frame: dict[str, Any] = {key: rng.standard_normal(3).astype(np.float32) for key in ("observation.state", "observation.effort", "action")}
            for k, camera in enumerate(("front", "wrist")):
                # A grey level that names camera, episode and step, so that a mixed-up frame shows.
                frame[f"observation.images.{camera}"] = np.full((48, 64, 3), 20 + 100 * k + 12 * episode + 4 * (step % 3), dtype=np.uint8)
            dataset.add_frame(frame | {"task": "Wave" if episode % 2 else "Point"})
        dataset.save_episode()
    dataset.finalize()
    return root
