"""The reference experiment: its preset, its data set's schema, and a run of it on small local models."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, compose, local, made_once

import provla
from provla.core.build import build
from provla.trainer.options import Trainer

sys.path.insert(0, str(ROOT / "benchmarks"))
from aloha import JOINTS, write

Command = Callable[..., tuple[int, str, str]]
GROUPS = {"left_arm": range(6), "left_gripper": [6], "right_arm": range(7, 13), "right_gripper": [13]}


@pytest.fixture(scope="session")
def aloha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 20 steps in the schema and resolution of lerobot/aloha_mobile_cabinet."""
    return made_once(tmp_path_factory, "cabinet", lambda folder: write(folder, episodes=3, steps=20))


def load(root: Path, *overrides: str) -> Any:
    return build(compose("experiments=reference", f"dataset.root={root}", *overrides)["dataset"], "dataset").load()


def test_the_preset_is_the_experiment_as_described() -> None:
    config = compose("experiments=reference")
    assert (config["vision"]["name"], config["text"]["name"]) == ("google/siglip-base-patch16-224", "Qwen/Qwen2.5-0.5B")
    assert all(len(config[part]["revision"]) == 40 for part in ("vision", "text"))  # pinned
    lora = config["adapter"]
    assert (lora["mode"], lora["r"], lora["alpha"], lora["dropout"], lora["target_modules"]) == (
        "lora",
        16,
        32,
        0.05,
        ["q_proj", "v_proj"],
    )
    fusion = config["fusion"]
    assert (fusion["num_latents"], fusion["depth"], fusion["num_heads"], fusion["width"]) == (32, 4, 8, 256)
    assert config["head"]["_target_"] == "provla.head.UNet1dConcat"
    noise = config["scheduler"]
    assert (noise["num_train_timesteps"], noise["num_inference_steps"], noise["beta_schedule"]) == (
        100,
        50,
        "squaredcos_cap_v2",
    )
    assert (noise["sampler"], noise["prediction_type"], config["horizon"]) == ("DDIMScheduler", "epsilon", 16)
    trainer: Trainer = build(config["trainer"], "trainer")
    assert (trainer.lr, trainer.warmup_steps, trainer.grad_clip, trainer.lr_schedule) == (2e-4, 100, 1.0, "cosine")
    assert trainer.weight_decay > 0
    assert (
        trainer.batch_size,
        trainer.grad_accumulation,
        trainer.max_epochs,
        trainer.val_every_epochs,
        trainer.patience,
    ) == (1, 10, 10, 3, 5)
    assert trainer.total_steps(127_500) == 10 * 12_750
    data = config["dataset"]
    assert (data["repo_id"], data["cameras"], data["val_fraction"], data["split_seed"]) == (
        "lerobot/aloha_mobile_cabinet",
        ["cam_high"],
        0.1,
        42,
    )
    assert compose("experiments=reference", "quant=4bit")["adapter"] == lora
    from provla.dataset.demonstrations import Demonstrations

    blank = Demonstrations(
        {}, np.zeros(0), np.zeros(0), np.arange(86), np.zeros(85, dtype=int), ["Open"], [], {}, 50.0, ""
    )
    train, val = blank.split(data["val_fraction"], data["split_seed"])
    assert (len(train), len(val)) == (77, 8)


def test_the_reference_data(aloha: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = load(aloha, "dataset.image_size=[480,640]")
    theirs = LeRobotDataset("local/aloha_mobile_cabinet", root=aloha, video_backend="pyav")
    assert data.fps == 50
    assert data.joint_names == JOINTS
    assert data.joint_groups == {group: list(joints) for group, joints in GROUPS.items()}
    assert data.frames["cam_high"].shape == (60, 3, 480, 640)
    for row in (0, 33, 59):
        sample = theirs[row]
        np.testing.assert_allclose(data.actions[row], sample["action"].numpy())
        np.testing.assert_allclose(data.state[row], sample["observation.state"].numpy())
        difference = data.frames["cam_high"][row].astype(float) / 255 - sample["observation.images.cam_high"].numpy()
        assert np.abs(difference).max() < 1.5 / 255
    assert list(load(aloha).frames) == ["cam_high"]
    some = load(aloha, "dataset.cameras=[cam_right_wrist,cam_high]", "dataset.num_episodes=2")
    assert list(some.frames) == ["cam_right_wrist", "cam_high"]
    assert len(some.actions) == 40
    assert some.image_size == (224, 224)


@pytest.mark.parametrize("quant", ["none", "8bit", "4bit"])
def test_a_reference_run_trains_saves_evaluates_and_loads(
    quant: str, command: Command, aloha: Path, backbones: Path, tmp_path: Path
) -> None:
    bases = [*local("siglip_base", backbones), *local("qwen2_5_0_5b", backbones)]
    run = tmp_path / "run"
    small = [
        "dataset.image_size=[32,32]",
        "dataset.val_fraction=0.4",
        "trainer.max_steps=2",
        "trainer.warmup_steps=1",
        "trainer.val_samples=4",
        "scheduler.num_inference_steps=2",
    ]
    cameras = ["dataset.cameras=[cam_high,cam_left_wrist]"] if quant == "none" else []
    code, out, err = command(
        "train",
        "experiments=reference",
        f"dataset.root={aloha}",
        f"quant={quant}",
        *bases,
        *small,
        *cameras,
        "logger=csv",
        f"hydra.run.dir={run}",
    )
    assert code == 0, err
    result = json.loads((run / "result.json").read_text())
    assert {f"trajectory_mse/{group}" for group in GROUPS} <= set(result["metrics"])
    parts = result["parameters"]["parts"]
    per_layer = 2 * 16 * 32  # rank times what goes in and what comes out of SigLIP's 32 wide layers
    # LoRA, and which camera it is.
    assert parts["vision"]["trainable"] == 3 * 2 * per_layer + (2 if cameras else 1) * 32
    assert all(parts[name]["bytes"] > 0 for name in ("vision", "text", "fusion", "head"))
    if quant != "none":
        assert all(0 < result["quantization"][part]["error"] < 0.25 for part in ("vision", "text"))
        assert " layers, " in out
    weights = (run / "policy" / "weights.safetensors").stat().st_size
    assert weights < 4 * (result["parameters"]["trainable"] + 1000) + 100_000  # no frozen weight in it
    code, _, err = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert code == 0, err
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["metrics"]["trajectory_mse"] == pytest.approx(result["metrics"]["trajectory_mse"], rel=1e-4)
    if quant == "none":
        config = json.loads((run / "config.json").read_text())
        config["dataset"]["cameras"] = ["cam_high"]
        other = shutil.copytree(run, tmp_path / "other")
        (other / "config.json").write_text(json.dumps(config))
        code, _, err = command("evaluate", f"checkpoint={other}")
        assert code == 2
        assert "the policy looks through the camera 'cam_left_wrist', which the data set" in err
    policy = provla.load(run)
    n = len(policy.spec.cameras)
    chunk = policy.act(
        provla.Observation(
            torch.zeros(1, 1, n, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 14), ["Open the cabinet"]
        )
    )
    assert chunk.shape == (1, 16, 14)
    code, out, err = command("export", f"checkpoint={run}")
    assert code == 0, err
    assert "merged 6 layers of vision" in out if quant == "none" else "merged 18 layers of vision" in out
    assert provla.load(run / "policy-full").act(
        provla.Observation(
            torch.zeros(1, 1, n, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 14), ["Open the cabinet"]
        )
    ).shape == (1, 16, 14)
    code, _, err = command("export", f"checkpoint={run}")
    assert code == 2
    assert "exists already; nothing was changed" in err


def test_the_reference_experiment_drives_two_arms(command: Command, backbones: Path, tmp_path: Path) -> None:
    """Recorded, trained and judged in closed loop in `aloha_sim`, with backbones of its kinds that are small."""
    run = tmp_path / "run"
    small = ["dataset.episodes_per_task=1", "dataset.val_fraction=0", "trainer.warmup_steps=1"]
    small += ["trainer.max_steps=2", "trainer.patience=null", "scheduler.num_inference_steps=2", "eval_episodes=1"]
    bases = [*local("siglip_base", backbones), *local("qwen2_5_0_5b", backbones)]
    limits = ["env.max_episode_steps=24", "env.video_size=32", f"hydra.run.dir={run}"]
    code, _, err = command("train", "experiments=reference", "dataset=aloha_sim", *bases, *small, *limits, "logger=csv")
    assert code == 0, err
    result = json.loads((run / "result.json").read_text())
    assert result["success"]["success_rate"]["episodes"] == 1
    (episode,) = (run / "episodes.csv").read_text().splitlines()[1:]
    assert "timeout" in episode
    spec = provla.load(run).spec
    assert (spec.cameras, spec.action_size) == (("top", "left_wrist", "right_wrist"), 14)
