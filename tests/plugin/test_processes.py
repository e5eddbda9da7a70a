"""LeRobot's own commands, as the processes that people start, with provla's policies, worlds and recordings."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, ROOT
from test_export import BODY, POLICIES, load, make

from provla.core.types import Spec
from provla.env.worlds import end_idle

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow  # each starts a process that imports all of LeRobot: ten seconds

WORLD = '''
"""A point that is pushed around, and writes down how."""
import os
import numpy as np
from provla.env import Embodiment, Vector


class Pushed:
    embodiment = Embodiment({"front": (32, 32)}, Vector(["x", "y", "z"]), Vector(["a", "b", "c"], -1, 1), fps=10)

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        self.at = np.random.default_rng(seed).uniform(-0.5, 0.5, 3)
        self.file = f"{os.environ['TRACE']}/{self.task}_{seed}"
        open(self.file, "w").close()

    def step(self, action):
        self.at = self.at + 0.1 * action
        with open(self.file, "a") as file:
            print(*action.tolist(), file=file)

    def success(self):
        return bool(self.at[0] * (1 if self.task == "right" else -1) > 0.6)

    def state(self):
        return self.at.astype(np.float32)

    def images(self):
        rng = np.random.default_rng(int(1000 * np.abs(self.at).sum()))
        return {"front": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)}
'''

ROBOT = '''
"""Four joints that go where they are sent, and two cameras; it writes down what it sees and is sent."""
import json
import os
from dataclasses import dataclass
from functools import cached_property
import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("simulated")
@dataclass
class SimulatedConfig(RobotConfig):
    joints: str = "shoulder,elbow,wrist,gripper"
    seen: str = "front,wrist"
    log: str = ""


class Simulated(Robot):
    config_class, name = SimulatedConfig, "simulated"

    def __init__(self, config):
        super().__init__(config)
        self.config, self.on, self.looks = config, False, 0
        self.at = {f"{joint}.pos": 0.0 for joint in config.joints.split(",")}

    @cached_property
    def observation_features(self):
        joints = {key: float for key in self.at if key != "wrist.pos"}
        return joints | {camera: (480, 640, 3) for camera in self.config.seen.split(",")}

    @property
    def action_features(self):
        return {key: float for key in self.at}

    is_connected = property(lambda self: self.on)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True):
        self.on = True

    def disconnect(self):
        self.on = False

    def calibrate(self): ...
    def configure(self): ...

    def get_observation(self):
        rng = np.random.default_rng(self.looks)
        self.looks += 1
        found = {key: self.at[key] for key, kind in self.observation_features.items() if kind is float}
        return found | {
            camera: rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for camera in self.config.seen.split(",")
        }

    def send_action(self, action):
        with open(self.config.log, "a") as file:
            print(json.dumps({"look": self.looks - 1, "state": self.at, "action": action}), file=file)
        self.at.update(action)
        return action
'''


def call(place: Path, program: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """LeRobot's command, or a file of `place`, in a process of its own that downloads nothing."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "HF_LEROBOT_HOME": str(place / "lerobot_home"),
        "HF_HUB_OFFLINE": "1",
        **more,
    }
    done = subprocess.run(
        [sys.executable, *([program] if program.endswith(".py") else ["-m", f"lerobot.scripts.{program}"]), *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_lerobot_eval_plays_the_episodes_of_evaluate(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pushed.py").write_text(WORLD)
    (tmp_path / "conf" / "env").mkdir(parents=True)
    (tmp_path / "conf" / "env" / "pushed.yaml").write_text(
        textwrap.dedent("""
        defaults: [world]
        world: {_target_: pushed.Pushed}
        tasks: {left: Reach left, right: Reach right}
        episodes_per_task: 6
        first_seed: 40
        num_envs: 4
        max_episode_steps: 14
        videos_per_task: 0
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    end_idle()  # worlds' processes of other tests, which know nothing of what is set here
    monkeypatch.setenv("TRACE", str(tmp_path / "ours"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = [o for o in FAKE if not o.startswith("env=")]
    code, _, err = command(
        "train", *options, "env=pushed", "n_obs_steps=2", "scheduler.num_inference_steps=2", f"hydra.run.dir={run}"
    )
    assert code == 0, err
    code, out, err = command("export", f"checkpoint={run}", "lerobot=true", "device=cpu")
    assert code == 0, err
    assert "lerobot-eval" in " ".join(out.split())
    call(
        tmp_path,
        "lerobot_eval",
        f"--policy.path={run / 'lerobot'}",
        "--env.type=provla",
        f"--env.run={run}",
        '--env.trust=["pushed"]',
        "--seed=40",
        "--eval.n_episodes=6",
        "--eval.batch_size=3",
        "--eval.use_async_envs=false",
        "--policy.device=cpu",
        f"--output_dir={tmp_path / 'judged'}",
        TRACE=str(tmp_path / "theirs"),
    )
    with (run / "episodes.csv").open() as file:
        ours = [row["success"] in ("True", "1", "true") for row in csv.DictReader(file)]
    found = json.loads((tmp_path / "judged" / "eval_info.json").read_text())["per_task"]
    theirs = [won for task in found for won in task["metrics"]["successes"]]
    assert theirs == ours
    assert set(ours) == {True, False}
    for trace in sorted((tmp_path / "ours").iterdir()):
        mine, other = (np.loadtxt(tmp_path / name / trace.name, ndmin=2) for name in ("ours", "theirs"))
        assert mine.shape == other.shape, trace.name
        assert np.abs(mine - other).max() < 1e-4
    assert len(list((tmp_path / "theirs").iterdir())) == 12


def test_lerobot_rollout_drives_a_robot(spec: Spec, tmp_path: Path) -> None:
    """One process, four rollouts: that of LeRobot's engine, with real-time chunking, and two robots that do not fit."""
    export = make(tmp_path, spec, POLICIES["default"], n_obs_steps=1)
    (tmp_path / "simulated_robot").mkdir()
    (tmp_path / "simulated_robot" / "__init__.py").write_text(ROBOT)
    (tmp_path / "drive.py").write_text(
        textwrap.dedent(f"""
        import sys
        from lerobot.scripts import lerobot_rollout

        def drive(log, *more):
            sys.argv = ["lerobot-rollout", "--policy.path={export}", "--robot.type=simulated", "--fps=10",
                        "--robot.discover_packages_path=simulated_robot", "--task=Open the drawer", "--duration=1",
                        "--return_to_initial_position=false", "--device=cpu", f"--robot.log={{log}}", *more]
            try:
                lerobot_rollout.main()
                print(f"DONE {{log}}")
            except Exception as error:
                print(f"REFUSED {{log}}: {{error}}")

        drive("sync")
        drive("rtc", "--inference.type=rtc", "--inference.rtc.execution_horizon=4")
        drive("order", "--robot.joints=elbow,shoulder,wrist,gripper")
        drive("cameras", "--robot.seen=front")
        """)
    )
    done = call(tmp_path, "drive.py")
    said = done.stdout
    assert re.search("DONE sync.*DONE rtc", said, re.DOTALL), said + done.stderr
    assert "in another order, which LeRobot would mix up" in said
    assert "REFUSED cameras: the policy looks through the camera 'wrist'" in said
    assert not {"order", "cameras"} & {file.name for file in tmp_path.iterdir()}  # nothing moved
    sent = [json.loads(line) for line in (tmp_path / "sync").read_text().splitlines()]
    assert len(sent) >= 6
    policy = load(export)
    policy.reset()  # as the rollout's second
    for step in sent:
        rng, state = np.random.default_rng(step["look"]), step["state"]
        batch: dict[str, Any] = {"task": ["Open the drawer"]}
        for camera in BODY["cameras"]:
            picture = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            batch[f"observation.images.{camera}"] = torch.from_numpy(picture).permute(2, 0, 1)[None]
        batch["observation.state"] = torch.tensor([[state[name] for name in BODY["state_names"]]], dtype=torch.float32)
        expected = policy.select_action(batch)[0]
        found = torch.tensor([step["action"][name] for name in BODY["action_names"]])
        assert torch.allclose(found, expected, rtol=0, atol=1e-3)
    assert len((tmp_path / "rtc").read_text().splitlines()) >= 3


def test_lerobot_train_learns_from_a_recording(recording: Path, tmp_path: Path) -> None:
    call(
        tmp_path,
        "lerobot_train",
        "--policy.type=act",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--policy.pretrained_backbone_weights=null",
        "--policy.dim_model=32",
        "--policy.n_heads=2",
        "--policy.dim_feedforward=64",
        "--policy.n_encoder_layers=1",
        "--policy.use_vae=false",
        "--policy.chunk_size=8",
        "--policy.n_action_steps=8",
        "--dataset.repo_id=local/recording",
        f"--dataset.root={recording}",
        "--dataset.video_backend=pyav",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--wandb.enable=false",
        f"--output_dir={tmp_path / 'trained'}",
    )
    assert list((tmp_path / "trained" / "checkpoints").glob("*/pretrained_model/model.safetensors"))
