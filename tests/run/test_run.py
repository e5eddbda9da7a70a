"""Commands and runs as a user meets them: what a folder holds, what is written, what is said when something is
wrong.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, LIGHT, ROOT, compose, unsaid

from provla.core.awake import turns
from provla.core.identity import identity
from provla.core.manifest import write_manifest
from provla.core.result import read_result
from provla.dataset import kept

Command = Callable[..., tuple[int, str, str]]


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture
def metaworld(recording: Path, tmp_path: Path) -> list[str]:
    """The overrides of a tiny Meta-World run on the session's recording."""
    datasets = tmp_path / "data" / "datasets"
    datasets.mkdir(parents=True)
    (datasets / recording.name).symlink_to(recording)
    tiny = [o for o in FAKE if not o.startswith(("dataset", "logger", "horizon", "n_action"))]
    recorded = json.loads((recording / "recording.json").read_text())
    dataset = [
        f"dataset.{key}={json.dumps(value)}" for key, value in recorded.items() if key not in ("version", "sha256")
    ]
    return [
        *tiny,
        "dataset=metaworld",
        *dataset,
        "eval_episodes=2",
        "env.num_envs=4",
        "env.max_episode_steps=24",
        "env.videos_per_task=1",
        "dataset.val_fraction=0.5",
        "logger=csv",
    ]


def test_a_whole_run_leaves_what_the_design_lists(command: Command, metaworld: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = command("train", *metaworld, f"hydra.run.dir={run}")
    assert code == 0, err
    assert "95 % Wilson interval" in out
    assert "all tasks" in out
    assert str(run) in out.replace("\n", "")
    result = read(run)
    assert result["status"] == "completed"
    assert result["objective"]["name"] == "success_rate"
    assert result["objective"]["value"] == result["metrics"]["success_rate"]
    assert set(result["success"]) == {"drawer-close", "window-open", "success_rate"}
    assert result["choices"]["fusion"] == "concat_mlp"
    for key in (
        "config_hash",
        "seed",
        "parameters",
        "wall_seconds",
        "ms_per_chunk",
        "peak_memory_mb",
        "versions",
        "commit",
        "train_seconds",
    ):
        assert key in result
    with (run / "episodes.csv").open() as file:
        episodes = list(csv.DictReader(file))
    assert [(e["task"], int(e["episode_seed"])) for e in episodes] == [
        (t, 100000 + i) for t in ("drawer-close", "window-open") for i in range(2)
    ]
    assert sum(int(e["success"]) for e in episodes) / 4 == result["metrics"]["success_rate"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["train/loss"]) > 0 for r in rows if r["train/loss"]] == [True] * 4
    assert {p.name for p in (run / "plots").iterdir()} == {"loss.png", "chunks.png"}
    assert {p.name for p in (run / "videos").iterdir()} == {"drawer-close.mp4", "window-open.mp4"}
    # text: its tokenizer.
    assert {p.name for p in (run / "policy").iterdir()} == {
        "config.json",
        "manifest.json",
        "weights.safetensors",
        "text",
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} >= {"latest", "best", "step_0000004"}

    # Again: the folder already holds the answer.
    before = (run / "result.json").read_bytes()
    code, out, _ = command("train", *metaworld, f"hydra.run.dir={run}")
    assert (code, "completed already, at step " in out) == (0, True)
    assert (run / "result.json").read_bytes() == before

    # Another configuration is refused and changes nothing.
    code, _, err = command("train", *metaworld, "seed=1", f"hydra.run.dir={run}")
    assert code == 2
    assert "holds a run of another configuration" in err
    assert (run / "result.json").read_bytes() == before

    # Judged again from the folder alone: the same episodes, the same outcomes.
    code, _, err = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert code == 0, err
    assert (tmp_path / "again" / "episodes.csv").read_text() == (run / "episodes.csv").read_text()
    changes = ["eval_episodes=1", "env.first_seed=7", "n_action_steps=2", "scheduler.num_inference_steps=2"]
    code, _, err = command("evaluate", f"checkpoint={run}", *changes, f"hydra.run.dir={tmp_path / 'few'}")
    assert code == 0, err
    assert [line.split(",")[2] for line in (tmp_path / "few" / "episodes.csv").read_text().splitlines()[1:]] == [
        "7",
        "7",
    ]
    # As if it had been trained so: of one identity.
    asked = json.loads((run / "config.json").read_text())
    asked |= {"eval_episodes": 1, "n_action_steps": 2, "env": {**asked["env"], "episodes_per_task": 1, "first_seed": 7}}
    for node in (asked, asked["policy"]):
        node["scheduler"] = {**node["scheduler"], "num_inference_steps": 2}
    assert read(tmp_path / "few")["config_hash"] == identity(asked)
    for wrong, said in (
        (["+foo=1"], "nothing reads foo=1; valid: checkpoint, study, n_action_steps, eval_episodes, "),
        (["n_action_steps=4", "+foo=1"], "nothing reads foo=1"),
        (["+n_action_steps=4", "+foo=1"], "nothing reads foo=1"),
        (["env.foo=1"], "nothing reads env.foo=1"),
        (["scheduler.foo=1"], "the stored policy has no scheduler.foo"),
        (["n_action_steps=99"], "n_action_steps=99 exceeds horizon="),
        (["eval_episodes=many"], "eval_episodes='many': expected a whole number from 1 to"),
    ):
        code, _, err = command("evaluate", f"checkpoint={run}", *wrong, f"hydra.run.dir={tmp_path / 'wrong'}")
        assert (code, said in err) == (2, True), err
    assert not (tmp_path / "wrong" / "result.json").exists()
    code, _, err = command("evaluate", f"checkpoint={run}", "+env.episodes=1", f"hydra.run.dir={tmp_path / 'wrong'}")
    assert code == 2
    assert "nothing reads env.episodes=1" in err
    assert (run / "result.json").read_bytes() == before


def test_the_policy_folder_reproduces_the_runs_actions(command: Command, tmp_path: Path) -> None:
    from provla.core.types import fake_observation
    from provla.policy.folder import load_policy

    assert command("train", *FAKE, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0
    policy, spec = load_policy(tmp_path / "run" / "policy", torch.device("cpu"))
    again, _ = load_policy(tmp_path / "run" / "policy", torch.device("cpu"))
    observation = fake_observation(spec, 2)
    assert torch.equal(
        policy.act(observation, torch.Generator().manual_seed(0)),
        again.act(observation, torch.Generator().manual_seed(0)),
    )
    assert "hydra" not in (tmp_path / "run" / "policy" / "config.json").read_text()
    code, out, err = command("evaluate", f"checkpoint={tmp_path / 'run'}")
    assert code == 0, err
    assert "trajectory_mse" in out
    for key in ("n_action_steps", "eval_episodes"):  # without simulation, nothing reads them
        code, _, err = command("evaluate", f"checkpoint={tmp_path / 'run'}", f"{key}=2")
        assert code == 2
        assert f"{key}=2: only closed-loop episodes read it, and this run has no simulation" in err


def test_multirun_has_a_folder_per_job_and_a_failing_job_takes_none_down(command: Command, tmp_path: Path) -> None:
    code, _, err = command(
        "train", *FAKE, "fusion=concat_mlp,film", "n_action_steps=4,9", f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"
    )
    assert code == 1
    results = {f.parent.name: json.loads(f.read_text()) for f in (tmp_path / "sweep").glob("*/result.json")}
    assert len(results) == 4
    assert sorted(r["status"] for r in results.values()) == ["completed", "completed", "failed", "failed"]
    assert all("n_action_steps=9 exceeds horizon=8" in r["error"] for r in results.values() if r["status"] == "failed")
    assert sorted(r["choices"]["fusion"] for r in results.values()) == ["concat_mlp", "concat_mlp", "film", "film"]
    assert err.count("failed: n_action_steps=9") == 4  # each is tried twice


def test_the_last_run_of_a_sweep_is_what_it_is_alone(command: Command, metaworld: list[str], tmp_path: Path) -> None:
    """What jobs of a process share leaves nothing from one to the next."""
    asked = [*(o for o in metaworld if not o.startswith(("env.", "eval_episodes"))), "env=none"]
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    code, _, err = command("train", "-m", *asked, "seed=range(3)", f"hydra.sweep.dir={sweep}")
    assert code == 0, err
    assert len(kept._last) == 1
    kept._last.clear()
    code, _, err = command("train", *asked, "seed=2", f"hydra.run.dir={alone}")
    assert code == 0, err
    last = next(file.parent for file in sweep.glob("*/result.json") if read(file.parent)["seed"] == 2)
    for name in ("policy/weights.safetensors", "plots/chunks.png", "episodes.csv"):
        assert (last / name).read_bytes() == (alone / name).read_bytes()
    assert read(last)["metrics"] == read(alone)["metrics"]


def test_wandb_offline_run_per_job_in_the_runs_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    jobs = [o for o in FAKE if not o.startswith("logger")]
    code, out, err = command("train", "-m", *jobs, "seed=0,1", "study=probe", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert code == 0, err
    assert out.count("W&B: offline, because WANDB_API_KEY is not set") >= 1
    folders = sorted(file.parent for file in (tmp_path / "sweep").glob("*/result.json"))
    assert len(folders) == 2
    for folder in folders:
        assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == 1
        stored = next(iter((folder / "wandb").glob("offline-run-*/*.wandb"))).read_bytes()
        assert b"train/loss" in stored
        assert b"probe" in stored
    assert not (tmp_path / "wandb").exists()


def test_wandb_unreachable_is_no_crash(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / ".env").write_text("WANDB_API_KEY=0123456789012345678901234567890123456789\n")  # read from here
    try:
        code, out, err = command(
            "train", *[o for o in FAKE if not o.startswith("logger")], f"hydra.run.dir={tmp_path / 'run'}"
        )
    finally:
        os.environ.pop("WANDB_API_KEY", None)
    assert code == 0, err
    assert "the service does not answer" in out
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"0123456789012345678901234567890123456789" not in file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fusion=magic"],
            r"unknown option fusion=magic; valid: add, bilinear, bottleneck, concat_mlp, cross_attention, film",
        ),
        (["trainer.batchsize=3"], r"unknown key 'trainer.batchsize'; did you mean trainer.batch_size?"),
        (["fusoin=film"], "unknown"),
        (["+trainer.speed=3"], "nothing reads trainer.speed=3"),
        (["+speed=3"], "nothing reads the key 'speed'; did you mean seed?; valid: resume, rerun, "),
        (["trainer.batch_size=0"], "trainer.batch_size=0: expected a whole number from 1 to"),
        (["dataset=lerobot"], "the data set has no source: give dataset.root=<folder>"),
        (["dataset=lerobot", "dataset.root=/nowhere"], "dataset.root='/nowhere': no such folder"),
        (["dataset=fake", "env=metaworld", "dataset.cameras=[front]"], "env"),
        (["device=cuda:7"], "device='cuda:7' is not available"),
        (["quant=4bit", "adapter=full"], "use adapter=lora"),
        (["objective=score"], "objective='score' is not measured"),
        (["seed=-1"], "seed=-1: expected a whole number from 0 to"),
        (["n_action_steps=0"], "n_action_steps=0: expected a whole number from 1 to"),
        (["vision=siglip_base"], "could not be fetched from the Hugging Face Hub"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_a_non_zero_exit(
    command: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    base = [
        o
        for o in FAKE
        if not (arguments[0].startswith("dataset=lerobot") and o.startswith("dataset"))
        and not (arguments[0].startswith("vision=") and o.startswith("vision"))
    ]
    code, _, err = command("train", *base, *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert code != 0
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "policy").exists()


def test_a_refused_run_gives_its_folder_to_the_corrected_command(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fake = [*FAKE, *LIGHT, "logger=csv", f"hydra.run.dir={run}"]
    for wrong in ("trainer.lr=abc", "objective=val/los"):  # before and after the data are loaded
        code, _, err = command("train", *fake, wrong)
        assert code == 2, err
        assert "holds a run" not in err
        assert read_result(run).attempts == 1
    code, out, err = command("train", *fake, "seed=3")
    assert code == 0, err
    assert "was refused before its training; this one takes its place" in " ".join(out.split())
    found = read_result(run)
    assert (found.status, found.seed, found.attempts) == ("completed", 3, None)
    assert "seed=3" in (run / ".hydra" / "overrides.yaml").read_text()
    code, _, err = command("train", *fake, "seed=4")
    assert code == 2
    assert "holds a run of another configuration (seed: 3 → 4)" in err


def test_action_size_that_differs_from_the_checkpoints(command: Command, tmp_path: Path, metaworld: list[str]) -> None:
    """A policy of three joints cannot drive Meta-World's four."""
    run = tmp_path / "run"
    assert command("train", *FAKE, f"hydra.run.dir={run}")[0] == 0
    config = json.loads((run / "config.json").read_text())
    config["env"] = compose("dataset=metaworld_five", "dataset.image_size=32")["env"]
    (run / "config.json").write_text(json.dumps(config))
    code, _, err = command("evaluate", f"checkpoint={run}")
    assert code == 2
    assert "the policy's action size is 3, that of the worlds of MetaworldSuite 4" in err
    # Nor can its checkpoint go on with data of another action size.
    policy = json.loads((run / "policy" / "config.json").read_text())
    policy["spec"]["action_size"] = 5
    (run / "policy" / "config.json").write_text(json.dumps(policy))
    code, _, err = command("evaluate", f"checkpoint={run}")
    assert code == 2
    assert "policy is damaged: config.json has" in err
    write_manifest(run / "policy")
    code, _, err = command("evaluate", f"checkpoint={run}")
    assert code == 2
    assert "does not fit this policy" in err


def test_evaluate_names_a_folder_that_is_no_run(command: Command, tmp_path: Path) -> None:
    code, _, err = command("evaluate", f"checkpoint={tmp_path}")
    assert code == 2
    assert "is not the folder of a run" in err
    code, _, err = command("evaluate")
    assert code == 2
    assert "checkpoint has no value; give checkpoint=…" in err


def test_analyze_and_record(command: Command, metaworld: list[str], tmp_path: Path, two_cameras: Path) -> None:
    dataset = [o for o in metaworld if o.startswith("dataset")]
    code, out, err = command("record", *[o for o in dataset if "val_fraction" not in o])
    assert code == 0, err
    assert "recorded in" in out
    code, out, err = command("analyze", *dataset, f"hydra.run.dir={tmp_path / 'analysis'}")
    assert code == 0, err
    assert "Push and close a drawer" in out
    assert (tmp_path / "analysis" / "dataset.png").stat().st_size > 10_000
    code, out, err = command("analyze", "dataset=lerobot", f"dataset.root={two_cameras}")
    assert code == 0, err
    assert "5 episodes, 60 steps at 10 Hz, cameras front, wrist" in out
    code, _, err = command("record", "dataset=fake")
    assert code == 2
    assert "dataset=fake is not recorded here; valid: metaworld" in err


def test_job_folders_are_named_by_their_overrides() -> None:
    from provla.command.compose import job_folder

    assert job_folder("fusion=film,seed=0") == "fusion=film,seed=0"
    assert job_folder("dataset.root=/a b/c") == "dataset.root=_a_b_c"
    # A pruner changes no result.
    assert job_folder("fusion=film,pruner.n_startup_jobs=2,seed=0") == "fusion=film,seed=0"
    long = [job_folder(",".join(f"key{i}=value" for i in range(40)) + f",seed={seed}") for seed in (0, 1)]
    assert long[0] != long[1]
    assert len(long[0]) < 130


def test_identity_ignores_what_cannot_change_a_result() -> None:
    base = compose()
    same = ["logger=none", "device=cpu", "data_dir=/x", "study=a", "dataset.workers=7", "env.num_envs=5"]
    assert identity(compose(*same)) == identity(base)
    for override in ("seed=1", "fusion=perceiver", "trainer.lr=3e-3", "dataset.noise=0.5", "n_action_steps=4"):
        assert identity(compose(override)) != identity(base)


def test_interrupted_run_resumes_in_its_folder(command: Command, tmp_path: Path) -> None:
    """kill -9 in the middle of a real process; the same command, in another one, ends with the weights of an
    uninterrupted run.
    """
    from safetensors.torch import load_file

    parts = ["text=task_embedding", "scheduler=flow"]  # quick to import
    arguments = [*FAKE, *parts, "logger=csv", "trainer.max_steps=60", "trainer.val_every=10"]
    asked = [sys.executable, "-m", "provla.train", *arguments, f"hydra.run.dir={tmp_path / 'killed'}"]
    process = subprocess.Popen(asked, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "checkpoints" / "latest").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "policy").exists()
    for folder in ("killed", "whole"):
        code, _, err = command("train", *arguments, f"hydra.run.dir={tmp_path / folder}")
        assert code == 0, err
    killed, whole = (load_file(tmp_path / folder / "policy" / "weights.safetensors") for folder in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    rows = [list(csv.DictReader((tmp_path / folder / "metrics.csv").open())) for folder in ("killed", "whole")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for column in ("train/loss", "train/lr"):
        assert np.allclose(*([float(r[column]) for r in part if r[column]] for part in rows), rtol=0, atol=0)


def test_a_resumed_run_goes_on_in_its_wandb_run(command: Command, tmp_path: Path) -> None:
    fake = [o for o in FAKE if not o.startswith("logger")]
    run = tmp_path / "run"
    for steps in (4, 4):
        code, _, err = command(
            "train", *fake, "logger=wandb", "logger.mode=offline", f"trainer.max_steps={steps}", f"hydra.run.dir={run}"
        )
        assert code == 0, err
        (run / "result.json").unlink()  # as if it had been killed before it wrote its result
    ids = {file.stem for file in (run / "wandb").glob("offline-run-*/*.wandb")}
    assert ids == {f"run-{json.loads((run / 'wandb_run.json').read_text())['id']}"}


def test_a_run_resumes_from_the_checkpoint_an_artifact_holds(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B offline records the artifacts with their aliases; its files bring the run back where the folder is gone."""
    from safetensors.torch import load_file

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    fake = [o for o in FAKE if not o.startswith("logger")]
    first, again = tmp_path / "first", tmp_path / "again"
    code, _, err = command(
        "train", *fake, "logger=wandb", "logger.mode=offline", "logger.artifacts=true", f"hydra.run.dir={first}"
    )
    assert code == 0, err
    (transactions,) = (first / "wandb").glob("offline-run-*/*.wandb")
    records = list(_records(transactions))
    run_id = json.loads((first / "wandb_run.json").read_text())["id"]
    models = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "model"]
    assert sorted(models[0].aliases) == ["best", "latest"]  # the first is the best so far
    assert {a.name for a in models} == {f"checkpoint-{run_id}"}
    tables = list((first / "wandb").rglob("chunks*.table.json"))
    assert json.loads(tables[0].read_text())["columns"] == ["instruction", "step", "joint", "predicted", "demonstrated"]

    middle = tmp_path / "downloaded"
    middle.mkdir()
    for entry in models[0].manifest.contents:
        shutil.copy(entry.local_path, middle / entry.path)
    code, out, err = command("train", *fake, "logger=none", f"resume={middle}", f"hydra.run.dir={again}")
    assert code == 0, err
    assert "resuming from step 2" in out
    expected, found = (load_file(folder / "policy" / "weights.safetensors") for folder in (first, again))
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    other = ["train", *fake, "logger=none", "trainer.lr=0.5", f"resume={middle}"]
    code, _, err = command(*other, f"hydra.run.dir={tmp_path / 'other'}")
    assert code == 2
    assert "is of another configuration" in err
    for resume, message in (
        ("/nowhere", "no such folder"),
        ("wandb://x", "expected wandb://<entity>/<project>/<name>:<alias>"),
    ):
        code, _, err = command("train", *fake, "logger=none", f"resume={resume}", f"hydra.run.dir={tmp_path / 'bad'}")
        assert code == 2
        assert message in err


def _records(path: Path) -> Iterator[Any]:
    """What W&B wrote into a transaction log."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "true"}, f"{turns()} None false"),
        ({"OMP_WAIT_POLICY": "active"}, "None None false"),
    ],
)
def test_the_configuration_is_shown_without_importing_anything_heavy(
    said: dict[str, str], told: str, tmp_path: Path
) -> None:
    """And how torch's threads wait, and that there are as many as were asked for, is said before it could be
    imported.
    """
    code = (
        "import os, sys, runpy; sys.argv = ['provla.train', '--cfg', 'job']\ntry: runpy.run_module('provla.train', "
        "run_name='__main__')\nexcept SystemExit: pass\nheavy = [m for m in ('torch', 'transformers', 'lerobot', "
        "'numpy') if m in sys.modules]\nassert not heavy, heavy\nprint('told', *map(os.environ.get, "
        "('GOMP_SPINCOUNT', 'OMP_THREAD_LIMIT', 'OMP_DYNAMIC')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=unsaid() | said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"told {told}" in done.stdout
    assert "_target_: provla.fusion.ConcatMLP" in done.stdout


def test_readme_and_makefile_name_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    for line in (
        "make train",
        "make test",
        "python -m provla.train fusion=perceiver quant=4bit",
        "pip install -e '.[dev]' -c constraints.txt",
    ):
        assert line in readme


def test_paths_with_overrides_in_their_names_need_no_quotes() -> None:
    from provla.command.compose import plain

    assert (
        plain("checkpoint=outputs/fusion/fusion=film,seed=0", (), ("checkpoint",))
        == "checkpoint='outputs/fusion/fusion=film,seed=0'"
    )
    assert plain("checkpoint='a=1'", (), ("checkpoint",)) == "checkpoint='a=1'"
    assert plain("seed=0,1", (), ("checkpoint",)) == "seed=0,1"
    assert plain("steps=1,2", ("steps",), ()) == "steps=[1,2]"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["dataset.val_fraction=0"], "dataset.val_fraction=0"),
        (["dataset.episodes=1"], "dataset.val_fraction=0.34, and no instruction has two episodes"),
        (["dataset.episodes=2"], "dataset.val_fraction=0.34, and no instruction has two episodes"),
    ],
)
def test_training_goes_without_validation_and_says_so(
    changes: list[str], why: str, command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = command(
        "train", *[o for o in FAKE if not o.startswith("logger")], "logger=csv", *changes, f"hydra.run.dir={run}"
    )
    assert code == 0, err
    assert f"no validation: no episode is held out ({why}); the objective is the training loss" in " ".join(out.split())
    result = read(run)
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert result["objective"] == {"name": "train/loss", "value": float(last["train/loss"])}
    assert result["skipped_episodes"] == []
    code, _, err = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert (code, "has nothing to be judged by" in err) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "objective=trajectory_mse",
            (
                "objective='trajectory_mse' is not measured by this run (no episode is held out for validation); "
                "valid: auto, train/loss"
            ),
        ),
        (
            "trainer.keep=best",
            "trainer.keep=best goes by validation, and no episode is held out (dataset.val_fraction=0)",
        ),
        ("trainer.patience=2", "trainer.patience=2 goes by validation"),
        ("pruner=median", "goes by validation"),
        ("sampler_steps=[1,2]", "sampler_steps=[1, 2] goes by validation"),
    ],
)
def test_what_needs_validation_is_refused_where_there_is_none(
    change: str, message: str, command: Command, tmp_path: Path
) -> None:
    code, _, err = command("train", *FAKE, "dataset.val_fraction=0", change, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run" / "checkpoints").exists()
