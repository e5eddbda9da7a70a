"""Several policies judged together: what each comes to is what it comes to alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, compose
from torch import nn
from worlds import ToySuite

from provla.core.build import build
from provla.core.files import write_json
from provla.core.types import Spec
from provla.env import worlds
from provla.env.rollout import Player
from provla.env.worlds import Worlds
from provla.execution import Chunk
from provla.jobs.sweep import Job, Sweep, save_sweep
from provla.policy.folder import save_policy
from provla.run import several
from provla.run.several import evaluate_several, name_runs

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
WORLDS = {
    "_target_": "provla.env.WorldSuite",
    "world": {"_target_": "worlds.ToyWorld", "faults": {}},
    "tasks": {"left": "go left"},
    "episodes_per_task": 5,
    "num_envs": 3,
    "max_episode_steps": 24,
    "videos_per_task": 1,
}
PARTS = ["text=task_embedding", "scheduler=flow"]
CLOCK = ("ms_per_chunk", "ms_per_chunk_p99", "wall_seconds", "peak_memory_mb")


def make_run(folder: Path, seed: int, n_obs_steps: int = 1) -> Path:
    """A run's folder with an untrained policy that moves to the right, more or less."""
    config = compose(*FAKE, *PARTS, f"seed={seed}", f"n_obs_steps={n_obs_steps}")
    config["env"] = WORLDS
    spec = Spec(("eye",), (16, 16), 3, 2, 8, n_obs_steps, 4, ("go left",), {}, 10.0)
    torch.manual_seed(seed)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.fit_normalization(torch.randn(64, 3), torch.randn(64, 2) + 1)
    save_policy(folder / "policy", policy, config["policy"], spec)
    write_json(folder / "config.json", config)
    return folder


def told(folder: Path) -> dict[str, Any]:
    """What a folder holds, without what a clock says."""
    files = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    found: dict[str, Any] = {str(name): file.read_bytes() for name, file in files.items() if ".hydra" not in str(name)}
    for name in [name for name in found if name.endswith("result.json")]:
        found[name] = {key: value for key, value in json.loads(found[name]).items() if key not in CLOCK}
    return found


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "runs.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_each_comes_to_what_it_comes_to_alone(command: Command, tmp_path: Path) -> None:
    """Two that share worlds, in turns; one that looks at more, in worlds of its own; and those that fail, alone."""
    runs = [make_run(tmp_path / name, seed) for name, seed in (("x=1,seed=0", 0), ("b", 1), ("c", 2))]
    runs.append(make_run(tmp_path / "more", 3, n_obs_steps=2))
    weights = make_run(tmp_path / "bad", 4) / "policy" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    asked = ["trust=[worlds]", "n_action_steps=3", "execution.smoothing=0.2", "scheduler.num_inference_steps=2"]
    named = ",".join([f'"{runs[0]}"', *map(str, (runs[1], weights.parents[1], *runs[2:], "nowhere"))])
    code, out, err = command("evaluate", f"checkpoint=[{named}]", *asked, "hydra.run.dir=all")
    assert code == 1
    assert "2 of 6 runs have no result" in " ".join(err.split())
    assert "bad failed: " in out
    assert "checkpoint='nowhere' is not the folder of a run" in " ".join(out.split())
    found = rows(Path("all"))
    assert sorted(name for name, row in found.items() if row["error"]) == ["bad", "nowhere"]
    for run in (runs[0], *runs[2:]):
        code, _, err = command("evaluate", f"checkpoint={run}", *asked, f"hydra.run.dir=alone-{run.name[0]}")
        assert code == 0, err
        alone = told(Path(f"alone-{run.name[0]}"))
        assert told(Path("all") / run.name) == alone
        assert float(found[run.name]["value"]) == alone["result.json"]["objective"]["value"]
        assert {"episodes.csv", "videos/left.mp4"} < alone.keys()
    assert len({(Path("all") / run.name / "episodes.csv").read_text() for run in runs}) == len(runs)


def test_a_study_under_factors_and_with_several_steps(command: Command, tmp_path: Path) -> None:
    place = tmp_path / "outputs" / "s"
    jobs = []
    for seed in (0, 1, 2):
        folder = make_run(place / f"seed={seed}", seed) if seed < 2 else place / "seed=2"
        jobs.append(Job(folder.name, {"seed": str(seed)}, {}, seed, f"h{seed}", "a"))
        if seed < 2:
            objective = {"name": "trajectory_mse", "value": 0.1}
            write_json(
                folder / "result.json", {"status": "completed", "config_hash": f"h{seed}", "objective": objective}
            )
    save_sweep(place, Sweep("s", "", "grid", "a", "auto", "", jobs))
    asked = ["study=s", "trust=[worlds]"]
    code, out, err = command("evaluate", *asked, "perturb=[action_delay]", "hydra.run.dir=under")
    assert code == 0, err
    assert "left out of s: seed=2 (missing)" in out
    code, _, err = command("evaluate", *asked, "scheduler.num_inference_steps=1,2", "hydra.run.dir=steps")
    assert code == 0, err
    run = "checkpoint=outputs/s/seed=1"
    command("evaluate", run, "trust=[worlds]", "perturb=[action_delay]", "hydra.run.dir=alone")
    assert told(Path("under/seed=1")) == told(Path("alone"))
    assert {"perturb.csv", "perturb/action_delay_2/episodes.csv", "plots/perturb.png"} < told(Path("alone")).keys()
    assert len(Path("steps/seed=0/steps.csv").read_text().splitlines()) == 3
    assert len([*Path("steps").glob("*/steps_*/episodes.csv")]) == 4


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["study=none"], "no folder outputs/none: the study has not been started here"),
        (["study=a/b"], "study='a/b': expected one plain name"),
        (["study=s", "checkpoint=x"], "checkpoint='x' and study='s': give one of them"),
        (["checkpoint=[x,./x]"], "checkpoint names 'x' twice; give each run once"),
        (["checkpoint=[]"], "checkpoint has no value; give checkpoint=…, or several"),
        (["checkpoint=[1,x]"], "checkpoint=[1, 'x']: expected the folder of a run, or a list of such"),
    ],
)
def test_what_names_no_runs_is_refused(asked: list[str], message: str, command: Command) -> None:
    code, _, err = command("evaluate", *asked)
    assert code == 2
    assert message in err


def test_folders_are_named_by_what_tells_them_apart() -> None:
    assert list(name_runs([Path("o/a/x"), Path("o/b/x")])) == ["a/x", "b/x"]
    assert list(name_runs([Path("o/a"), Path("o/a/policy")])) == ["a", "a/policy"]
    assert list(name_runs([Path("o/a")])) == ["a"]


class Slow:
    """A policy that asks for one step to the right; what it saw is kept."""

    def __init__(self) -> None:
        self.seen: list[list[list[float]]] = []

    def eval(self) -> None: ...

    def act(self, observation: Any, generators: Any) -> torch.Tensor:
        self.seen.append(observation.state[:, -1].tolist())
        return torch.ones(len(generators), 8, 2)


@pytest.mark.parametrize("faults", [{}, {1: ("hang in C", 5)}])
def test_worlds_that_fail_cost_their_episodes_and_nobody_elses(
    faults: dict[int, tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two policies in the worlds of the same processes: the batches of each, and its outcomes, are those of one."""
    monkeypatch.setattr(worlds, "TICK", 0.1)
    suite = ToySuite(faults, timeout=0.6)
    spec = Spec(("eye",), (16, 16), 3, 2, 8, 1, 4, ("go left", "go right"), {}, 10.0)

    def together(count: int) -> list[Any]:
        with Worlds(suite, spec, seats=count) as shared:
            seats, policies = shared.seats, [Slow() for _ in range(count)]
            players = [
                Player(policy, suite, shared, seat, spec, 0, CPU, Chunk())
                for policy, seat in zip(policies, seats, strict=True)
            ]
            games = [player.play() for player in players]
            while games:
                games = [game for game in games if next(game, 0) is None]
            ends = [[(o.episode, o.ending, o.steps, o.reason) for o in player.outcomes()] for player in players]
        return [(policy.seen, end) for policy, end in zip(policies, ends, strict=True)]

    (alone,) = together(1)
    assert together(2) == [alone, alone]
    assert sum(ending == "fault" for _, ending, *_ in alone[1]) == len(faults)


def test_processes_that_cannot_be_started_again_cost_those_who_play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third policy has worlds of its own, started anew."""
    runs = [make_run(tmp_path / name, seed) for seed, name in enumerate("abc")]
    begun: list[Any] = []

    class Once(Worlds):
        def __init__(self, *asked: Any, **how: Any) -> None:
            super().__init__(*asked, **how)
            begun.append(self)

        def hear(self, slots: Any) -> Any:
            if len(begun) == 1:
                raise several.NoWorlds("env: a process for the worlds could not start: no")
            return super().hear(slots)

        def leave(self, seat: Any) -> None:
            if len(begun) > 1:
                super().leave(seat)

    monkeypatch.setattr(several, "Worlds", Once)
    changes: dict[str, Any] = {"env": {}, "scheduler": {}, "root": {}}
    with pytest.raises(ValueError, match="2 of 3 runs have no result: a, b"):
        evaluate_several(runs, "cpu", changes, tmp_path / "all", None, ["worlds"])
    assert [row["episodes"] for row in rows(tmp_path / "all").values()] == ["", "", "5"]
