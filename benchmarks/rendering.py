"""How fast worlds are, against their own rendering: python benchmarks/rendering.py [recording] [rollout] [processes]

recording: frames per second that the same expert records, in provla's pictures and in those that the world's own
library draws (reduced to the same size; shadows, reflections and multisampling as it has them), in turns.
rollout: control steps per second with the default policy, not trained, in provla's worlds and in LeRobot's environment
of the same world, which draws at every step; theirs in one process and, but for ALOHA's, in two: the faster
counts.
processes: the same episodes over 1 and 2 processes; their outcomes must be equal. Writes benchmarks/rendering.csv and
prints the README's table. Recordings and untrained policies are kept under outputs/worlds.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")  # as in provla's own worker processes; both sides alike

import cv2
import numpy as np
import torch

import provla
from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.files import csv_text, write_text
from provla.dataset.recording import _create, _demonstrate, _hush
from provla.env.rollout import Outcome, rollout
from provla.env.suite import TaskSuite
from provla.run.evaluate import read_config

OUT, CSV = ROOT / "outputs" / "worlds", ROOT / "benchmarks" / "rendering.csv"
TASKS = {"metaworld_twins": "drawer-open", "ogbench_scene": "drawer-open", "aloha_sim": "transfer_cube"}
ROUNDS, STEPS = 3, 100
Array = np.ndarray[Any, Any]


def config_of(world: str) -> dict[str, Any]:
    """Of a run of no steps on two demonstrations, whose untrained policy plays."""
    folder = OUT / world
    if not (folder / "result.json").is_file():
        few = ["dataset.episodes_per_task=2", "dataset.val_fraction=0", "env=none", "trainer.max_steps=0"]
        command = [sys.executable, "-m", "provla.train", f"dataset={world}", *few, "logger=csv"]
        subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, cwd=ROOT)
    none: dict[str, dict[str, Any]] = {"env": {}, "execution": {}, "scheduler": {}, "root": {}}
    return read_config(folder, none, ())


def own_pictures(world: str, made: Any) -> Callable[[], dict[str, Array]]:
    """What the world's own library draws of a world of provla's, at the size that it draws at."""
    if world == "metaworld_twins":
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        sim = made._sim
        drawing = MujocoRenderer(sim.model, sim.data, width=480, height=480, camera_name="corner2")
        return lambda: {"corner2": drawing.render("rgb_array")[::-1, ::-1]}
    if world == "ogbench_scene":
        return lambda: {"front": made._sim.render(camera="front_pixels")}
    from dm_control import mujoco

    from provla.env.aloha import SCENES, aloha_assets

    physics = mujoco.Physics.from_xml_path(str(aloha_assets() / SCENES[made.task].file))

    def three() -> dict[str, Array]:
        with physics.reset_context():
            physics.data.qpos[:] = made._data.qpos
        return {camera: physics.render(480, 640, camera_id=camera) for camera in made.cameras}

    return three


class Own:
    """A world that looks through its own library's renderer."""

    def __init__(self, world: str, made: Any) -> None:
        self._made, self._see = made, own_pictures(world, made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def images(self) -> dict[str, Array]:
        sizes = self._made.embodiment.cameras
        return {
            camera: cv2.resize(picture, sizes[camera][::-1], interpolation=cv2.INTER_AREA)
            for camera, picture in self._see().items()
        }


def recording(world: str) -> dict[str, Any]:
    """The same demonstrations, in turns, each side in a process of its own: libraries that draw take it for granted
    that nobody else does.
    """
    config_of(world)
    spawn, rates = multiprocessing.get_context("spawn"), ([], [])
    with ProcessPoolExecutor(1, spawn) as ours, ProcessPoolExecutor(1, spawn) as theirs:
        for number in range(ROUNDS + 1):  # the first warms up
            for side, own, found in ((ours, False, rates[0]), (theirs, True, rates[1])):
                found.append(side.submit(demonstrated, world, own, number).result())
    return row("recording", world, "frames/s", "its own rendering", rates[0][1:], rates[1][1:])


@cache
def recorded_world(world: str, own: bool) -> tuple[Any, Any]:
    """A recording's recipe and a world of it."""
    _hush()
    recipe = build(config_of(world)["dataset"] | {"data_dir": str(OUT / "data")}, "dataset").recording
    made = recipe.make(TASKS[world])
    return recipe, Own(world, made) if own else made


def demonstrated(world: str, own: bool, number: int) -> float:
    """Frames per second of one demonstration."""
    recipe, made = recorded_world(world, own)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _create(recipe, Path(folder) / "one")
        begun = time.perf_counter()
        _demonstrate(recipe, made, TASKS[world], number, dataset)
        rate = dataset.meta.total_frames / (time.perf_counter() - begun)
        dataset.finalize()
    return float(rate)


def suite_of(world: str, **changes: Any) -> TaskSuite:
    """Episodes of STEPS control steps in one task."""
    few = {"tasks": [TASKS[world]], "videos_per_task": 0, "max_episode_steps": STEPS, "first_seed": 10**6}
    suite = build(config_of_env(world) | few | changes, "env")
    assert isinstance(suite, TaskSuite)
    return suite


def config_of_env(world: str) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", [f"dataset={world}", "env.num_envs=2"]), resolve=True)
    return node["env"]  # type: ignore[index, no-any-return, call-overload]


def play(policy: Any, suite: TaskSuite) -> tuple[list[Outcome], float]:
    """Outcomes, and control steps per second."""
    begun = time.perf_counter()
    outcomes = rollout(policy, suite, policy.spec, 0, torch.device("cpu"))
    return outcomes, sum(one.steps for one in outcomes) / (time.perf_counter() - begun)


def theirs(world: str, policy: Any, envs: int) -> Callable[[], float]:
    """Control steps per second in LeRobot's environment; the policy looks as often, at pictures of the same size."""
    from lerobot.envs.configs import AlohaEnv, MetaworldEnv
    from lerobot.envs.factory import make_env

    if world == "aloha_sim":
        config: Any = AlohaEnv(task="AlohaTransferCube-v0")
    else:
        config = MetaworldEnv(task=f"{TASKS[world]}-v3")
    made = next(iter(next(iter(make_env(config, n_envs=envs, use_async_envs=envs > 1).values())).values()))
    made = getattr(made, "env", made)
    sentence, size = policy.spec.instructions[0], policy.spec.image_size

    def once() -> float:
        seen, _ = made.reset(seed=0)
        begun = time.perf_counter()
        for step in range(STEPS):
            if step % policy.spec.n_action_steps == 0:
                pictures = seen["pixels"]
                pictures = pictures["top"] if isinstance(pictures, dict) else pictures
                small = np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_AREA) for one in pictures])
                images = torch.from_numpy(small).permute(0, 3, 1, 2)[:, None, None]
                images = images.expand(-1, 1, len(policy.spec.cameras), -1, -1, -1)
                state = torch.from_numpy(np.asarray(seen["agent_pos"], np.float32))[:, None]
                given = provla.Observation(images.contiguous(), state, [sentence] * envs)
                chunk = policy.act(given).numpy()
            seen, *_ = made.step(chunk[:, step % policy.spec.n_action_steps])
        return STEPS * envs / (time.perf_counter() - begun)

    return once


def rolling(world: str) -> dict[str, Any]:
    config_of(world)
    policy = provla.load(OUT / world, "cpu")
    # In processes LeRobot's ALOHA does not start: they do not import gym_aloha, which registers it.
    counts = (1,) if world == "aloha_sim" else (1, 2)
    mine, others = suite_of(world, episodes_per_task=4), [theirs(world, policy, envs) for envs in counts]
    ours: list[float] = []
    found: list[list[float]] = [[] for _ in others]
    for _ in range(ROUNDS + 1):
        ours.append(play(policy, mine)[1])
        for rates, other in zip(found, others, strict=True):
            rates.append(other())
    best = max(found, key=lambda rates: median(rates[1:]))
    return row("rollout", world, "control steps/s", "LeRobot's environment", ours[1:], best[1:])


def processes(world: str) -> dict[str, Any]:
    """The same episodes, over one process and two."""
    config_of(world)
    policy, rates = provla.load(OUT / world, "cpu"), [[], []]
    for _ in range(ROUNDS + 1):
        seen = []
        for found, workers in zip(rates, (2, 1), strict=True):
            outcomes, rate = play(policy, suite_of(world, episodes_per_task=10, num_envs=10, workers=workers))
            found.append(rate)
            seen.append([replace(one, frames=[]) for one in outcomes])
        assert seen[0] == seen[1], f"{world}: outcomes differ between 2 processes and 1"
    return row("rollout, two processes", world, "control steps/s", "one process", rates[0][1:], rates[1][1:])


def row(what: str, world: str, unit: str, than: str, ours: list[float], other: list[float]) -> dict[str, Any]:
    ratio = median(a / b for a, b in zip(ours, other, strict=True))
    found = {"what": what, "world": world, "unit": unit, "ours": round(median(ours), 1), "against": than}
    return found | {"theirs": round(median(other), 1), "ratio": round(ratio, 2), "n": len(ours)}


def main() -> None:
    asked = sys.argv[1:] or ["recording", "rollout", "processes"]
    makers: dict[str, tuple[Callable[[str], dict[str, Any]], list[str]]] = {
        "recording": (recording, list(TASKS)),
        "rollout": (rolling, ["metaworld_twins", "aloha_sim"]),  # LeRobot has no environment of OGBench's scene
        "processes": (processes, list(TASKS)),
    }
    if unknown := [what for what in asked if what not in makers]:
        sys.exit(f"nothing is called {unknown[0]!r} here; valid: {', '.join(makers)}")
    rows = list(csv.DictReader(CSV.open())) if CSV.exists() else []
    for what in asked:
        maker, worlds = makers[what]
        made = [maker(world) for world in worlds]
        new = {(one["what"], one["world"]) for one in made}
        rows = [one for one in rows if (one["what"], one["world"]) not in new] + made
        write_text(CSV, csv_text(rows))
    print("| what | world | provla | against | | ratio |\n|---|---|---|---|---|---|")
    for one in rows:
        print(
            f"| {one['what']} | `{one['world']}` | {one['ours']} {one['unit']} | {one['against']} | {one['theirs']} | "
            f"{one['ratio']}× |"
        )


if __name__ == "__main__":
    main()
