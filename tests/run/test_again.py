"""A study that is started again: its jobs are found by their configuration, and nothing that was done is done again or
forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conftest import FAKE, LIGHT, compose

from provla.core.files import write_json
from provla.core.identity import identity
from provla.jobs.sweep import Job, find_runs, join_jobs, load_sweep
from provla.study.study import load_study

Command = Callable[..., tuple[int, str, str]]
QUICK = [o for o in FAKE if not o.startswith("trainer.max_steps")] + LIGHT


def stamps(folder: Path) -> dict[int, str]:
    return {file.stat().st_mtime_ns: file.parent.name for file in folder.glob("*/result.json")}


def test_a_study_is_one_whatever_it_is_asked_in(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "s"

    def start(*asked: str) -> None:
        code, _, err = command("train", "-m", f"hydra.sweep.dir={folder}", "trainer.val_every=2", *QUICK, *asked)
        assert code == 0, err

    start("trainer.max_steps=2", "fusion=add,film", "seed=0")
    before = stamps(folder)
    # Redundant, in another order, written another way, and with a folder renamed: nothing is trained again.
    moved = next(file.parent for file in folder.glob("*film*/result.json"))
    moved.rename(folder / "mine")
    assert {run.status for run in load_study(folder).runs} == {"completed"}  # the report finds it too
    start("seed=0", "trainer.max_steps=2", "trainer.lr=0.001", "horizon=8", "fusion=film,add")
    assert stamps(folder).keys() == before.keys()
    assert {job.folder for job in load_sweep(folder).jobs} == {"mine", *before.values()} - {moved.name}
    # One more seed of one arm, without naming the others: arms and baseline are those of all starts.
    start("trainer.max_steps=2", "fusion=film", "seed=1", "baseline=add")
    sweep = load_sweep(folder)
    assert ([job.arm for job in sweep.jobs], sweep.baseline) == (["add", "film", "film"], "add")
    assert [job.seed for job in sweep.jobs] == [0, 0, 1]
    assert {run.status for run in load_study(folder).runs} == {"completed"}
    # Another budget is another configuration: beside it, counted nowhere; and not lost for the first one.
    start("trainer.max_steps=1", "fusion=film", "seed=0")
    assert [len(load_sweep(folder).jobs), len(load_sweep(folder).others)] == [1, 3]
    assert len(load_study(folder).others) == 3
    after = stamps(folder)
    assert len(after) == 4
    start("trainer.max_steps=2", "fusion=film", "seed=1", "baseline=add")
    sweep = load_sweep(folder)
    assert (sorted(job.arm for job in sweep.jobs), len(sweep.others)) == (["add", "film", "film"], 1)
    assert stamps(folder).keys() == after.keys()


def test_a_sweep_of_an_older_kind_loads_and_goes_on(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    asked = ["-m", f"hydra.sweep.dir={folder}", *QUICK, "trainer.max_steps=1", "fusion=add"]
    assert command("train", *asked, "seed=0,1")[0] == 0
    text = json.loads((folder / "sweep.json").read_text())
    text.pop("others")
    for job in text["jobs"]:
        for key in ("trial", "name", "cell", "training"):
            job.pop(key)
    write_json(folder / "sweep.json", text)
    before = stamps(folder)
    assert command("train", *asked, "seed=1")[0] == 0
    assert [job.seed for job in load_sweep(folder).jobs] == [0, 1]
    assert stamps(folder) == before


def test_a_search_is_found_again_and_another_budget_refused(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    asked = [
        "-m",
        "hydra/sweeper=optuna",
        "fusion=choice(film,add)",
        *QUICK,
        f"hydra.sweep.dir={folder}",
        "hydra.sweeper.n_trials=2",
    ]
    assert command("train", *asked, "trainer.max_steps=1")[0] == 0
    before = stamps(folder)
    next(folder.glob("*film*")).rename(folder / "mine")
    code, out, err = command("train", *asked, "trainer.max_steps=1", "trainer.lr=0.001")
    assert code == 0, err
    assert "2 completed" in out
    assert stamps(folder).keys() == before.keys()
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    assert "Trials: 2 completed" in out
    code, _, err = command("train", *asked, "trainer.max_steps=2")
    assert code == 2
    assert (
        "was begun with another configuration (trainer.max_steps: 1 → 2); give this one a folder of its own"
        in " ".join(err.split())
    )
    assert stamps(folder).keys() == before.keys()


def test_of_several_folders_the_furthest_counts(tmp_path: Path) -> None:
    config = compose(*FAKE)
    for name, status in (("a", "failed"), ("b", "completed"), ("c", "interrupted")):
        write_json(tmp_path / name / "config.json", config)
        write_json(tmp_path / name / "result.json", {"status": status})
    write_json(tmp_path / "d" / "config.json", [1])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text("{")
    assert find_runs(tmp_path) == {identity(config): "b"}


def test_arms_of_all_starts_are_named_together() -> None:
    def job(number: int, seed: int, **axes: str) -> Job:
        return Job(f"{number}", axes, axes, seed, f"{number}", "", cell=f"{number - seed}")

    first = [job(0, 0, fusion="film"), job(10, 0, fusion="add")]
    again = [job(1, 1, fusion="film", lr="1"), job(20, 0, fusion="film", lr="2")]
    assert [one.arm for one in join_jobs(first, [])] == ["film", "add"]
    joined = join_jobs(again, join_jobs(first, []))
    assert [(one.folder, one.arm) for one in joined] == [
        ("0", "fusion=film, lr=1"),  # the same configuration as job 1, but for the seed
        ("10", "fusion=add"),
        ("1", "fusion=film, lr=1"),
        ("20", "fusion=film, lr=2"),
    ]
    assert join_jobs([replace(first[0], folder="moved")], first)[0].folder == "moved"
