"""kill -9 at random moments: the same command ends with the weights and metrics of a run that nobody killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
from processes import SMALL, outcome, run, start, wait, wait_for

STEPS = ["trainer.max_steps=24", "trainer.val_every=8", "trainer.save_every=2", "trainer.log_every=3"]
FROM_SCRATCH = ["vision=siglip_tiny", "adapter=lora"]
CASES: dict[str, list[str]] = {
    "accumulation": [*SMALL, *STEPS, "trainer.batch_size=4", "trainer.grad_accumulation=2", "trainer.ema_decay=0"],
    "moving average": [*SMALL, *STEPS, "trainer.ema_decay=0.99", "trainer.keep=best"],
    "LoRA": [*(o for o in SMALL if not o.startswith("vision.")), *STEPS, *FROM_SCRATCH],
    "augmentation": [*SMALL, *STEPS, "augmentation=crop_color"],
}
KILLS, SAVES, DECODINGS = 5, 8, 6  # per case; in all


def fault_kill_at_random(place: Path) -> tuple[int, int, str]:
    """SIGKILL at random moments of a training, twice each, over accumulation, moving average, LoRA and augmentation"""
    rng, survived, hits = random.Random(0), 0, []
    for name, options in CASES.items():
        begun = time.monotonic()
        run([*options, "hydra.run.dir=run"], place / name / "whole")
        seconds, expected = time.monotonic() - begun, outcome(place / name / "whole" / "run")
        for number in range(KILLS):
            folder = place / name / f"{number}"
            for _ in range(2):
                child = start([*options, "hydra.run.dir=run"], folder)
                time.sleep(rng.uniform(0.05, 0.9) * seconds)
                os.killpg(child, signal.SIGKILL)
                wait(child)
                hits.append(_step(folder / "run"))
            run([*options, "hydra.run.dir=run"], folder)
            survived += outcome(folder / "run") == expected
    return KILLS * len(CASES), survived, f"last checkpoint at the kills: step {', '.join(map(str, hits))}"


def fault_kill_in_a_save(place: Path) -> tuple[int, int, str]:
    """SIGKILL while a checkpoint is written, renamed, or an older one deleted"""
    options = [
        *SMALL,
        "trainer.max_steps=12",
        "trainer.val_every=6",
        "trainer.save_every=1",
        "trainer.log_every=2",
        "hydra.run.dir=run",
    ]
    run(options, place / "whole")
    expected, rng, survived, hits = outcome(place / "whole" / "run"), random.Random(1), 0, 0
    for number in range(SAVES):
        folder = place / f"{number}"
        saves = folder / "run" / "checkpoints"
        child = start(options, folder)
        wait_for(child, lambda saves=saves: len(list(saves.glob("step_*"))) >= 2)
        wait_for(child, lambda saves=saves: list(saves.glob(".*")))
        time.sleep(rng.uniform(0, 0.02))
        os.killpg(child, signal.SIGKILL)
        wait(child)
        hits += bool(list(saves.glob(".*")))
        run(options, folder)
        survived += outcome(folder / "run") == expected and not list(saves.glob(".*"))
    return SAVES, survived, f"{hits} left a half-written folder behind, which the next start cleared away"


def fault_kill_while_frames_are_decoded(place: Path) -> tuple[int, int, str]:
    """SIGKILL while the frame cache of a LeRobot data set is decoded"""
    root = write_dataset(place / "dataset")
    options = [
        *SMALL[1:],
        "dataset=lerobot",
        f"dataset.root={root}",
        "trainer.max_steps=4",
        "trainer.val_every=4",
        "hydra.run.dir=run",
    ]
    run(options, place / "whole")
    expected, rng, survived, hits = outcome(place / "whole" / "run"), random.Random(2), 0, 0
    for number in range(DECODINGS):
        folder = place / f"{number}"
        for _ in range(2):
            child = start(options, folder)
            wait_for(child, lambda folder=folder: _unfinished(folder))
            time.sleep(rng.uniform(0, 0.1))
            os.killpg(child, signal.SIGKILL)
            wait(child)
            hits += bool(_unfinished(folder))
        run(options, folder)
        survived += outcome(folder / "run") == expected and not _unfinished(folder)
    return (
        DECODINGS,
        survived,
        f"two kills each; {hits} of {2 * DECODINGS} left half a cache behind, which the next start cleared away",
    )


def _unfinished(folder: Path) -> list[Path]:
    """Half-written frame caches."""
    return [*(folder / "data").rglob(".*.partial")]


def _step(run: Path) -> int:
    return max(
        (int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdecimal()), default=0
    )


def write_dataset(root: Path, episodes: int = 6, length: int = 60) -> Path:
    """A LeRobot v3 data set with one camera, by LeRobot's own writer."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    joints = ["shoulder", "elbow", "gripper"]
    features = {
        "observation.images.front": {"dtype": "video", "shape": (128, 160, 3), "names": ["height", "width", "channels"]}
    }
    features |= {key: {"dtype": "float32", "shape": (3,), "names": joints} for key in ("observation.state", "action")}
    encoder = RGBEncoderConfig(vcodec="h264", g=2, crf=18, preset="ultrafast")
    dataset = LeRobotDataset.create("test/front", fps=10, features=features, root=root, rgb_encoder=encoder)
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for step in range(length):
            numbers = {
                key: np.sin(step / 9 + np.arange(3) + episode).astype(np.float32)
                for key in ("observation.state", "action")
            }
            frame = {
                "observation.images.front": rng.integers(0, 256, (128, 160, 3), dtype=np.uint8),
                "task": "Wave" if episode % 2 else "Point",
            }
            dataset.add_frame(numbers | frame)
        dataset.save_episode()
    dataset.finalize()
    return root
