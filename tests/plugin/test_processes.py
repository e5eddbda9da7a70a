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
from test_export import BODY, POLICIES, make

import provla
from provla.core.types import Observation, Spec, past_of
from provla.dataset.cache import small
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

REACH = 5.0  # of the simulated robot's joints
ROBOT = '''
"""Four joints that go where they are sent, within their reach, and two cameras; it writes down what it sees and is
sent."""
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
    reach: float = 1000.0


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
        reach = self.config.reach
        self.at.update({key: min(max(value, -reach), reach) for key, value in action.items()})
        return dict(self.at)
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
    """One process, five rollouts: LeRobot's engine with a policy of one look, with one that reads what was executed,
    with real-time chunking, and with two robots that do not fit.
    """
    plain = make(tmp_path / "plain", spec, POLICIES["default"], n_obs_steps=1)
    reads = {"n_obs_steps": 1, "n_past_actions": 3, "action_bounds": ((-REACH, REACH),) * 4}
    past = make(tmp_path / "reader", spec, POLICIES["default"], **reads)
    # A distribution, whose name is how LeRobot finds robots of other people's.
    for folder, file, text in (
        ("lerobot_robot_simulated", "__init__.py", ROBOT),
        ("lerobot_robot_simulated-0.1.dist-info", "METADATA", "Name: lerobot_robot_simulated\nVersion: 0.1\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    (tmp_path / "drive.py").write_text(
        textwrap.dedent(f"""
        import sys
        from lerobot.scripts import lerobot_rollout

        def drive(log, export, *more):
            sys.argv = ["lerobot-rollout", f"--policy.path={{export}}", "--robot.type=simulated", "--fps=10",
                        "--task=Open the drawer", "--duration=1", "--return_to_initial_position=false",
                        "--device=cpu", f"--robot.log={{log}}", *more]
            try:
                lerobot_rollout.main()
                print(f"DONE {{log}}")
            except Exception as error:
                print(f"REFUSED {{log}}: {{error}}")

        drive("sync", "{plain}")
        drive("past", "{past}", "--robot.reach={REACH}")
        drive("rtc", "{plain}", "--inference.type=rtc", "--inference.rtc.execution_horizon=4")
        drive("order", "{plain}", "--robot.joints=elbow,shoulder,wrist,gripper")
        drive("cameras", "{plain}", "--robot.seen=front")
        """)
    )
    done = call(tmp_path, "drive.py")
    said = done.stdout
    assert re.search("DONE sync.*DONE past.*DONE rtc", said, re.DOTALL), said + done.stderr
    assert "in another order, which LeRobot would mix up" in said
    assert "REFUSED cameras: the policy looks through the camera 'wrist'" in said
    assert not {"order", "cameras"} & {file.name for file in tmp_path.iterdir()}  # nothing moved
    for log, export in ("sync", plain), ("past", past):
        check_rollout(export, [json.loads(line) for line in (tmp_path / log).read_text().splitlines()])
    assert len((tmp_path / "rtc").read_text().splitlines()) >= 3


def check_rollout(export: Path, sent: list[dict[str, Any]]) -> None:
    """What the robot was sent is what `policy.act` answers to what it showed, and to what it did before: it went where
    it was sent, as far as it reaches.
    """
    assert len(sent) >= 6
    policy = provla.load(export, device="cpu")
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([0, 1, 0]).generate_state(1)[0]))
    for number, step in enumerate(sent):
        if number % policy.spec.n_action_steps == 0:
            rng = np.random.default_rng(step["look"])
            pictures = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in BODY["cameras"]]
            seen = torch.from_numpy(np.stack([small(picture, BODY["image_size"]) for picture in pictures]))
            state = torch.tensor([[[step["state"][name] for name in BODY["state_names"]]]])
            went = [[one["state"][name] for name in BODY["action_names"]] for one in sent[1 : number + 1]]
            executed = past_of([np.array(went, np.float32)], policy.spec)
            chunk = policy.act(Observation(seen[None, None], state, ["Open the drawer"], *executed), [generator])[0]
        found = torch.tensor([step["action"][name] for name in BODY["action_names"]])
        assert torch.allclose(found, chunk[number % policy.spec.n_action_steps], rtol=0, atol=1e-3)
    if policy.spec.n_past_actions:
        assert max(abs(value) for step in sent for value in step["action"].values()) > REACH


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
