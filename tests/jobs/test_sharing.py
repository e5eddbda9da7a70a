"""Jobs that train the same weights train once, and every one of them is as if it had trained alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE, compose

from provla.core.files import write_json
from provla.core.identity import training_identity
from provla.core.result import read_result
from provla.jobs.sharing import MARK, Training, one_training
from provla.policy.weights import load_tensors
from provla.run.train import train
from provla.study.study import load_study
from provla.study.verdict import judge

Command = Callable[..., tuple[int, str, str]]
TIMES = {
    "train_seconds",
    "wall_seconds",
    "ms_per_chunk",
    "ms_per_chunk_p99",
    "peak_memory_mb",
    "trained_by",
    "attempts",
}


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if "seconds" not in key and "per_second" not in key}
            for row in csv.DictReader(file)
        ]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_tensors(folder / "policy" / "weights.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)


def test_arms_that_training_does_not_tell_apart_train_once(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    plain = [o for o in FAKE if not o.startswith("n_action")] + ["logger=csv"]
    asked = [
        "train",
        "-m",
        *plain,
        "n_action_steps=4,8",
        "scheduler.num_inference_steps=2,5",
        f"hydra.sweep.dir={sweep}",
    ]
    code, out, err = command(*asked)
    assert code == 0, err
    assert "has trained these weights already" in " ".join(out.split())
    runs = {(r.result.config_hash, r.job.folder): r for r in load_study(sweep).runs}
    first, *others = sorted(runs.values(), key=lambda run: run.result.trained_by is not None)
    others.sort(key=lambda run: run.job.axes["n_action_steps"] != "8")  # both kinds: with its sampler and with another
    assert first.result.trained_by is None
    assert {run.result.trained_by for run in others} == {run.weights for run in runs.values()} == {first.job.folder}
    assert all(same_weights(first.folder, run.folder) for run in others)
    said = " ".join(judge(load_study(sweep), 0.1).notes)
    assert "3 of 4 runs took their weights from another run's training" in said
    assert "trainings behind these runs: 1." in said
    # Each is as if it had trained alone: to the last bit where its own sampler validated it, at its end where another
    # did.
    for run in others[:2]:
        steps, sampler = json.loads((run.folder / "config.json").read_text()), first.folder / "config.json"
        alone = tmp_path / "alone" / run.job.folder
        train(steps, alone, run.result.choices or {})
        apart = read_result(alone).as_json()
        assert same_weights(alone, run.folder)
        mine = {key: value for key, value in run.result.as_json().items() if key not in TIMES}
        if steps["scheduler"] == json.loads(sampler.read_text())["scheduler"]:
            assert curves(alone) == curves(run.folder)
        else:
            assert mine.pop("best_step") is None
            own, its = curves(alone), curves(run.folder)
            assert [(row["step"], row["val/loss"]) for row in own] == [(row["step"], row["val/loss"]) for row in its]
            assert own[-1] == its[-1]
            assert {row["val/trajectory_mse"] for row in its[:-1]} == {""}
        assert mine.items() <= apart.items()
    before = {file: file.stat().st_mtime_ns for file in sweep.glob("*/result.json")}
    assert command(*asked)[0] == 0
    assert before == {file: file.stat().st_mtime_ns for file in sweep.glob("*/result.json")}


def test_a_job_that_was_killed_after_its_training_shares_it_and_goes_on(command: Command, tmp_path: Path) -> None:
    """Over a restart: the first one's training is done, its result lost; the second one has begun a training of its
    own.
    """
    sweep = tmp_path / "s"
    asked = [
        "train",
        "-m",
        *[o for o in FAKE if not o.startswith("n_action")],
        "n_action_steps=4,8",
        f"hydra.sweep.dir={sweep}",
    ]
    assert command(*asked)[0] == 0
    first, second = (
        sweep / f"n_action_steps={n}"
        if (sweep / f"n_action_steps={n}").exists()
        else next(sweep.glob(f"*n_action_steps={n}*"))
        for n in (4, 8)
    )
    results = {folder: read_result(folder).as_json() for folder in (first, second)}
    (first / "result.json").unlink()
    (second / "result.json").unlink()
    (second / MARK).unlink()
    (last := max((second / "checkpoints").glob("step_*"))).rename(last.with_name("step_0000099.gone"))
    code, _, err = command(*asked)
    assert code == 0, err
    for folder, before in results.items():
        after = read_result(folder).as_json()
        assert {k: v for k, v in after.items() if k not in TIMES} == {k: v for k, v in before.items() if k not in TIMES}
    assert read_result(second).trained_by == first.name


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (["n_action_steps=8"], True),
        (["eval_episodes=3"], True),
        (["sampler_steps=[1,2]", "objective=loss"], True),
        (["scheduler.num_inference_steps=3"], True),
        (["scheduler.num_inference_steps=3", "trainer.monitor=loss", "trainer.keep=best"], False),  # another trainer
        (["seed=1"], False),
        (["scheduler.prediction_type=epsilon"], False),
        (["trainer.lr=1e-4"], False),
        (["n_action_steps=8", "policy._target_=mine.Policy"], False),
    ],
)
def test_what_training_reads(changes: list[str], same: bool) -> None:
    assert (training_identity(compose(*FAKE)) == training_identity(compose(*FAKE, *changes))) is same


@pytest.mark.parametrize(
    ("decides", "same"),
    [
        (["trainer.keep=best"], False),
        (["trainer.patience=3"], False),
        (["pruner=median"], False),
        (["trainer.patience=3", "trainer.monitor=loss"], True),
        (["scheduler._target_=mine.Scheduler"], False),
        (["trainer._target_=mine.Trainer"], False),
        (["policy=act"], True),
    ],
)
def test_where_a_validation_decides_training_reads_the_samplers_steps(decides: list[str], same: bool) -> None:
    few, many = (compose(*FAKE, *decides, f"scheduler.num_inference_steps={n}") for n in (2, 5))
    assert (training_identity(few) == training_identity(many)) is same
    few, many = (compose(*FAKE, *decides, f"n_action_steps={n}") for n in (2, 5))
    assert training_identity(few) == training_identity(many)


def fake_run(folder: Path, config: dict[str, Any], **mark: Any) -> None:
    (folder / "checkpoints" / "step_0000004").mkdir(parents=True)
    (folder / "checkpoints" / "step_0000004" / "weights").write_text("these")
    (folder / "checkpoints" / "step_0000002.damaged").mkdir()
    (folder / "checkpoints" / "latest").symlink_to("step_0000004")
    training = Training(folder, config)
    write_json(
        folder / MARK, {"training": training.identity, "step": 4, "sampler": training._sampler, "by": None, **mark}
    )


def test_a_training_is_taken_over_from_whoever_finished_it(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    config = compose(*FAKE)
    fake_run(tmp_path / "a", config, training="another")
    fake_run(tmp_path / "b", config, by="gone")
    fake_run(tmp_path / "c", config, step=6)  # its checkpoint is not there
    fake_run(tmp_path / "d", config)
    with one_training(tmp_path / "mine", compose(*FAKE, "scheduler.num_inference_steps=3")) as training:
        assert (training.by, training.anew, training.foreign) == ("d", True, True)
    taken = tmp_path / "mine" / "checkpoints"
    assert sorted(path.name for path in taken.iterdir()) == ["latest", "step_0000004"]
    assert (taken / "latest" / "weights").read_text() == "these"
    history = [
        {"step": 2, "val/loss": 1.0, "val/trajectory_mse": 2.0},
        {"step": 4, "train/loss": 3.0},
        {"step": 4, "val/loss": 1.0, "val/x": 2.0},
    ]
    assert training.own(history, 4) == [{"step": 2, "val/loss": 1.0}, {"step": 4, "train/loss": 3.0}]
    # Started again, it knows; and what it took stays whole where the other is deleted.
    with one_training(tmp_path / "mine", config) as again:
        assert (again.by, again.anew, again.foreign) == ("d", False, False)
    (tmp_path / "d" / "checkpoints" / "step_0000004" / "weights").unlink()
    assert (taken / "latest" / "weights").read_text() == "these"
    # Outside of a sweep nobody looks around.
    (tmp_path / "sweep.json").unlink()
    with one_training(tmp_path / "other", config) as training:
        assert training.by is None
