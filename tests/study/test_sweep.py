"""Sweeps as a user meets them: grids, searches, arms, launchers, pruners; killed, edited and broken on purpose."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE, LIGHT, ROOT

from provla.core.build import build
from provla.core.errors import NoSpace
from provla.jobs.sweep import find_baseline, load_sweep, name_arms, slot
from provla.pruner import Hyperband, Median, opened

Command = Callable[..., tuple[int, str, str]]
QUICK = [o for o in FAKE if not o.startswith("logger")] + [*LIGHT, "logger=csv"]
OPTUNA = "hydra/sweeper=optuna"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/result.json")}


def stamps(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.glob("*/result.json")}


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own, which can be killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "provla.train", *arguments],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
        )


def kill_when(process: subprocess.Popen[bytes], condition: Callable[[], bool], log: Path) -> None:
    """kill -9 of the process and its children as soon as the condition holds, or does not hold in time."""
    end = time.monotonic() + 240
    try:
        while not condition():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_names_of_arms() -> None:
    assert name_arms([{"fusion": "film"}, {"fusion": "add"}, {"fusion": "add"}], [None] * 3) == ["film", "add", "add"]
    two = [{"fusion": "film", "n": "1"}, {"fusion": "add", "n": "2"}]
    assert name_arms(two, [None, None]) == ["fusion=film, n=1", "fusion=add, n=2"]
    assert name_arms([{"policy": "act"}, {"policy": "provla", "lr": "1"}], ["a", "b"]) == ["a", "b"]
    assert name_arms([{"policy": "act", "n": "1"}, {"policy": "act", "n": "2"}], ["a", "a"]) == ["a, n=1", "a, n=2"]
    assert name_arms([{}], [None]) == ["all"]


def test_baselines() -> None:
    arms = {"fusion=film, n=1": {"fusion": "film", "n": "1"}, "fusion=add, n=1": {"fusion": "add", "n": "1"}}
    assert find_baseline(None, arms) == "fusion=film, n=1"
    assert find_baseline({"fusion": "add"}, arms) == "fusion=add, n=1"
    assert find_baseline("add", arms) == "fusion=add, n=1"
    with pytest.raises(
        ValueError, match=r"baseline='moe' is not among the arms; the arms are: fusion=film, n=1; fusion=add, n=1"
    ):
        find_baseline("moe", arms)
    with pytest.raises(ValueError, match="'n=1' fits 2 arms"):
        find_baseline({"n": 1}, arms)


def test_a_grid_is_done_once_and_grows(command: Command, tmp_path: Path) -> None:
    sweep = f"hydra.sweep.dir={tmp_path / 's'}"
    code, out, err = command("train", "-m", *QUICK, sweep, "fusion=glob(*film*)", "seed=range(2)")
    assert code == 0, err
    assert "job 1 of 2" in out
    assert {r["status"] for r in results(tmp_path / "s").values()} == {"completed"}
    assert sorted(r["seed"] for r in results(tmp_path / "s").values()) == [0, 1]
    before = stamps(tmp_path / "s")
    code, out, err = command("train", "-m", *QUICK, sweep, "fusion=film,add", "seed=range(2)", "baseline=film")
    assert code == 0, err
    assert "4 jobs (2 arms, 2 seeds)" in out
    assert "2 completed, 2 missing" in " ".join(out.split())
    after = stamps(tmp_path / "s")
    assert len(after) == 4
    assert {path: after[path] for path in before} == before  # finished jobs are not run again
    assert [job.arm for job in load_sweep(tmp_path / "s").jobs] == ["film", "film", "add", "add"]
    # The folder holds another configuration: refused before any job, nothing is changed.
    other = [o for o in QUICK if not o.startswith("trainer.max_steps")]
    names = {file.parent.name for file in (tmp_path / "s").glob("*/result.json")}
    one = next(name for name in names)
    config = json.loads((tmp_path / "s" / one / "config.json").read_text())
    config["trainer"]["max_steps"] = 5
    (tmp_path / "s" / one / "config.json").write_text(json.dumps(config))
    code, _, err = command("train", "-m", *other, "trainer.max_steps=4", sweep, "fusion=film,add", "seed=range(2)")
    assert code == 2
    assert "holds a run of another configuration (trainer.max_steps: 5 → 4)" in err
    assert stamps(tmp_path / "s") == after


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["fusion=film,flim"], "unknown option fusion=flim; valid: add, "),
        (["fusoin=film,add"], "unknown key 'fusoin'"),
        (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.jobs_per_gpu=0"], "jobs_per_gpu=0: expected a whole"),
        (["trainer.lrr=1,2"], "unknown key 'trainer.lrr'; did you mean trainer.lr?"),
        (["fusion=film,add", "baseline=moe"], "baseline='moe' is not among the arms; the arms are: film; add"),
        (["fusion=glob(nothing*)"], "has no values (a glob that fits nothing?)"),
        (
            ["trainer.lr=interval(1e-4,1e-3)"],
            "a grid has no continuous axes; list values, or search with hydra/sweeper=optuna",
        ),
        (["fusion=film,add", "+arms.one=film"], "arms.one='film': expected a list of overrides"),
        ([OPTUNA], "nothing to search: give at least one axis"),
        ([OPTUNA, "fusion=choice(film,flim)"], "unknown option fusion=flim"),
        ([OPTUNA, "fusion=choice(film,add)", "hydra.sweeper.n_trials=0"], "n_trials=0: must be at least 1"),
        ([OPTUNA, "fusion=choice(film,add)", "hydra.sweeper.storage=mysql://x"], "expected sqlite:///<file>"),
        (
            ["pruner=median", "pruner.n_startup_jobs=-1", "seed=0,1"],
            "pruner.n_startup_jobs=-1: expected a whole number",
        ),
        (["fusion.width=a,b"], "fusion.width='a': expected a whole number"),
        ([OPTUNA, "trainer.lr=choice(a,b)"], "trainer.lr='a': expected a number"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_before_any_job(
    asked: list[str], said: str, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("train", "-m", *QUICK, *asked, f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 2
    assert said in err.replace("\n", " ")
    assert "job 1" not in out
    assert not results(tmp_path / "s")
    assert "Traceback" not in err


def test_a_failed_job_is_tried_once_more_and_then_stays_as_a_row(command: Command, tmp_path: Path) -> None:
    asked = ["train", "-m", *QUICK, "n_action_steps=4,9", f"hydra.sweep.dir={tmp_path / 's'}"]
    code, out, _ = command(*asked)
    assert code == 1
    assert "once more" in out
    (failed,) = (r for r in results(tmp_path / "s").values() if r["status"] == "failed")
    assert failed["attempts"] == 2
    before = stamps(tmp_path / "s")
    code, _, err = command(*asked)  # a failed row is no reason to run anything again
    assert code == 1, err
    assert stamps(tmp_path / "s") == before


def test_named_arms_and_a_study_in_a_folder_of_ones_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiments").mkdir(parents=True)
    (tmp_path / "mine" / "experiments" / "own.yaml").write_text(
        """# @package _global_
defaults:
  - override /dataset: fake
  - override /logger: csv
  - _self_
study: own
question: Is it [better]?
arms:
  narrow: [fusion=film, fusion.width=16]
  wide: [fusion=film, fusion.width=24, head=mlp]
baseline: narrow
hydra:
  sweeper:
    params:
      seed: range(2)
"""
    )
    plain = [o for o in FAKE if not o.startswith(("dataset", "logger", "fusion", "head"))] + LIGHT
    code, out, err = command("train", "-m", "--config-dir", str(tmp_path / "mine"), "experiments=own", *plain)
    assert code == 0, err
    assert "Is it [better]?" in out
    sweep = load_sweep(Path("outputs/own"))
    assert (sweep.arms, sweep.baseline, len(sweep.jobs)) == (["narrow", "wide"], "narrow", 4)
    assert {r["choices"]["head"] for r in results(Path("outputs/own")).values()} == {"unet1d", "mlp"}
    code, out, err = command("report", "study=own")
    assert code == 0, err
    assert "| wide " in out
    # The command line wins over the study.
    code, out, err = command(
        "train", "-m", "--config-dir", str(tmp_path / "mine"), "experiments=own", *plain, "seed=5", "study=other"
    )
    assert code == 0, err
    assert [job.seed for job in load_sweep(Path("outputs/other")).jobs] == [5, 5]


def test_a_grid_killed_anywhere_goes_on_and_edits_change_nothing(tmp_path: Path, command: Command) -> None:
    mine = tmp_path / "mine" / "fusion"
    mine.mkdir(parents=True)
    option = (ROOT / "conf" / "fusion" / "film.yaml").read_text()
    (mine / "mine.yaml").write_text(option)
    long = [o for o in QUICK if not o.startswith(("trainer.max_steps", "trainer.val_every"))] + [
        "trainer.max_steps=60",
        "trainer.val_every=10",
    ]
    sweep = tmp_path / "s"
    asked = ["--config-dir", str(tmp_path / "mine"), "-m", *long, "fusion=mine", "seed=0,1", f"hydra.sweep.dir={sweep}"]
    log = tmp_path / "log.txt"
    # Killed when the second job has its first checkpoint; meanwhile the option was edited.
    process = start(asked, log)

    def halfway() -> bool:
        if len(results(sweep)) == 1:
            (mine / "mine.yaml").write_text(option + "\ncolour: red\n")
        return len(results(sweep)) == 1 and len(list(sweep.glob("*/checkpoints/latest"))) == 2

    kill_when(process, halfway, log)
    assert len(results(sweep)) == 1
    before = stamps(sweep)
    (second,) = (file.parent for file in sweep.glob("*/config.json") if not (file.parent / "result.json").is_file())
    assert "colour" not in json.loads((second / "config.json").read_text())["fusion"]
    (mine / "mine.yaml").write_text(option)
    code, out, err = command("train", *asked)
    assert code == 0, err
    assert "resuming from step" in out
    assert "job 2 of 2" in out
    assert "job 1 of 2" not in out
    assert stamps(sweep).items() >= before.items()
    assert {r["status"] for r in results(sweep).values()} == {"completed"}


def test_a_second_sweep_in_the_same_folder_is_refused(command: Command, tmp_path: Path) -> None:
    from provla.jobs.sweep import held

    with held(tmp_path / "s"):
        code, _, err = command("train", "-m", *QUICK, "seed=0,1", f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 2
    assert "another process is running the sweep in" in err


# Search.


def trials(folder: Path) -> list[Any]:
    import optuna

    with opened(folder / "optuna.db") as storage:
        return optuna.load_study(study_name="search", storage=storage).get_trials()


def test_a_search_killed_and_restarted_has_n_trials_in_all(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    long = [o for o in QUICK if not o.startswith(("trainer.max_steps", "trainer.val_every"))] + [
        "trainer.max_steps=60",
        "trainer.val_every=10",
    ]
    asked = [
        "-m",
        OPTUNA,
        "trainer.lr=tag(log, interval(1e-5, 1e-3))",
        "fusion=choice(film,add)",
        *long,
        f"hydra.sweep.dir={sweep}",
    ]
    log = tmp_path / "log.txt"
    kill_when(
        start([*asked, "hydra.sweeper.n_trials=3"], log),
        lambda: len(results(sweep)) == 1 and len(list(sweep.glob("*/checkpoints/latest"))) == 2,
        log,
    )
    before = stamps(sweep)
    (going,) = {file.parent.parent.name for file in sweep.glob("*/checkpoints/latest")} - set(results(sweep))
    code, out, err = command("train", *asked, "hydra.sweeper.n_trials=3")
    assert code == 0, err
    assert "2 of 3 trials are in" in out
    assert "resuming from step" in out
    assert results(sweep)[going]["status"] == "completed"
    assert stamps(sweep).items() >= before.items()
    assert len(results(sweep)) == len(trials(sweep)) == 3
    best = load_sweep(sweep).best
    assert best is not None
    assert best["value"] == min(r["objective"]["value"] for r in results(sweep).values())
    assert results(sweep)[best["folder"]]["objective"]["value"] == best["value"]
    assert best["folder"][:40] in out.replace("\n", "")
    # n_trials is a total: one more is one more, and a seeded or restarted sampler draws no point again.
    code, out, err = command("train", *asked, "hydra.sweeper.n_trials=4")
    assert code == 0, err
    assert len({json.dumps(t.params, sort_keys=True) for t in trials(sweep)}) == len(results(sweep)) == 4


def test_a_search_evaluates_no_point_twice_and_bears_failures(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    asked = [
        "train",
        "-m",
        OPTUNA,
        "n_action_steps=choice(4,8,9)",
        "hydra.sweeper.n_trials=12",
        *[o for o in QUICK if not o.startswith("n_action")],
    ]
    code, out, err = command(*asked, f"hydra.sweep.dir={sweep}")
    assert code == 0, err
    assert len(list(sweep.glob("*/config.json"))) == 3
    assert "the space holds no further points than these 3" in out.replace("\n", " ")
    real = [t for t in trials(sweep) if "void" not in t.user_attrs]
    assert sorted((t.params["n_action_steps"], t.state.name) for t in real) == [
        (4, "COMPLETE"),
        (8, "COMPLETE"),
        (9, "FAIL"),
    ]
    assert "2 completed, 1 failed" in out


def test_a_search_whose_space_changed(command: Command, tmp_path: Path) -> None:
    """A new axis joins, and the report bears trials without it; other options of an old axis or another direction are
    refused before any job.
    """
    sweep = tmp_path / "s"
    asked = ["train", "-m", OPTUNA, *QUICK, f"hydra.sweep.dir={sweep}"]
    assert command(*asked, "trainer.lr=choice(1e-3,1e-4)", "hydra.sweeper.n_trials=2")[0] == 0
    new = ["trainer.lr=choice(1e-3,1e-4)", "fusion=choice(film,add)", "hydra.sweeper.n_trials=4"]
    code, _, err = command(*asked, *new)
    assert code == 0, err
    code, out, err = command("report", f"folder={sweep}")
    assert code == 0, err
    assert "Trials: 4 completed, of 4" in out
    assert (sweep / "report" / "plots" / "pairs.png").is_file()
    before = stamps(sweep)
    code, _, err = command(*asked, *new[:1], "fusion=choice(film,add,bilinear)", "hydra.sweeper.n_trials=5")
    assert code == 2
    assert "fusion=choice(film,add,bilinear): the search in " in err
    assert "drew it from choice(film,add), and options cannot change midway; give this one a folder of its own" in err
    code, _, err = command(*asked, *new[:2], "hydra.sweeper.n_trials=5", "hydra.sweeper.direction=maximize")
    assert code == 2
    assert "hydra.sweeper.direction=maximize: the search in " in err
    assert "was begun with the other; give this one a folder of its own" in err
    assert stamps(sweep) == before


@pytest.mark.parametrize("planted", ["logger._target_=evil_idea.Thing", "hydra.job.env_set={EVIL: 1}"])
def test_a_trial_that_somebody_wrote_into_the_storage_runs_no_code(
    planted: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "s"
    asked = [
        "train",
        "-m",
        OPTUNA,
        *QUICK,
        "fusion=choice(film,add)",
        "hydra.sweeper.n_trials=1",
        f"hydra.sweep.dir={sweep}",
    ]
    assert command(*asked)[0] == 0
    (tmp_path / "evil_idea.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with sqlite3.connect(sweep / "optuna.db") as storage:
        row, stored = storage.execute(
            "SELECT rowid, value_json FROM trial_user_attributes WHERE key = 'overrides'"
        ).fetchone()
        own = [one for one in json.loads(stored) if not one.startswith("logger")]
        storage.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE rowid = ?", (json.dumps([*own, planted]), row)
        )
        storage.execute("UPDATE trials SET state = 'RUNNING'")
    storage.close()
    code, _, err = command(*asked)
    assert code == 2, err
    assert planted.partition("=")[0] in err
    assert not (tmp_path / "canary").exists()


def test_nan_is_a_failed_trial(command: Command, tmp_path: Path) -> None:
    # At an absurd rate, the loss is NaN after a step.
    sweep = tmp_path / "s"
    asked = [
        "train",
        "-m",
        OPTUNA,
        "trainer.lr=choice(1e-3,1e30)",
        "trainer.grad_clip=1e30",
        "hydra.sweeper.n_trials=2",
        *QUICK,
    ]
    code, _, err = command(*asked, f"hydra.sweep.dir={sweep}")
    assert code == 0, err
    assert sorted((t.params["trainer.lr"], t.state.name) for t in trials(sweep) if "void" not in t.user_attrs) == [
        (0.001, "COMPLETE"),
        (1e30, "FAIL"),
    ]


def fill(path: Path) -> None:
    with opened(path) as storage, storage.engine.begin() as sql:
        sql.exec_driver_sql("PRAGMA max_page_count = 1")
        sql.exec_driver_sql("CREATE TABLE more AS SELECT randomblob(1000000)")


def test_a_storage_on_a_full_disk_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match=r"full.db cannot be written: no space left on disk"):
        fill(tmp_path / "full.db")


def test_a_held_storage_is_named(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tmp_path / "s"
    asked = [
        "train",
        "-m",
        OPTUNA,
        "fusion=choice(film,add)",
        "hydra.sweeper.n_trials=1",
        *QUICK,
        f"hydra.sweep.dir={sweep}",
    ]
    assert command(*asked)[0] == 0
    monkeypatch.setattr("provla.pruner.PATIENCE", 0.5)
    holder = sqlite3.connect(sweep / "optuna.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    code, _, err = command(*asked)
    holder.close()
    assert code == 2
    assert "optuna.db cannot be used" in err
    assert "another process holds it; stop that one, or wait" in err
    (sweep / "optuna.db").write_text("nonsense")
    code, _, err = command(*asked)
    assert code == 2
    assert "it is damaged; delete it to start the study's bookkeeping anew" in err


# Pruning.


def test_median_ends_a_job_that_falls_behind_its_siblings(tmp_path: Path) -> None:
    def run(name: str, values: Sequence[float], pruner: Median | Hyperband) -> str:
        pruner.open(tmp_path / name, 300)
        for step, value in enumerate(values):
            if pruner.prune(100 * step, value):
                pruner.close("pruned")
                return f"pruned at {100 * step}"
        pruner.close("completed")
        return "completed"

    assert run("a", [1.0, 0.5, 0.2], Median(2, 100)) == "completed"
    assert run("b", [1.0, 0.6, 0.3], Median(2, 100)) == "completed"
    assert run("c", [9.0, 9.0, 9.0], Median(3, 0)) == "completed"  # too few have finished
    assert run("d", [9.0, 0.55, 0.2], Median(2, 50)) == "completed"  # behind during the warm-up alone
    assert run("e", [1.0, 0.9, 0.8], Median(2, 50)) == "pruned at 100"
    # A job that was killed and goes on is the same job.
    first = Median(2, 100)
    first.open(tmp_path / "f", 300)
    assert not first.prune(0, 1.0)
    again = Median(2, 100)
    again.open(tmp_path / "f", 300)
    assert again._number == first._number


def test_hyperband_keeps_the_best_of_each_rung(tmp_path: Path) -> None:
    ends = []
    for number in range(16):
        pruner = Hyperband(1, 3)
        pruner.open(tmp_path / f"{number}", 9)
        pruned = False
        for step in range(1, 10):
            if pruner.prune(step, float(number)):  # later jobs are worse
                pruned = True
                break
        pruner.close("pruned" if pruned else "completed")
        ends.append(pruned)
    assert not ends[0]
    assert sum(ends[6:]) > sum(ends[:6])
    with pytest.raises(ValueError, match="reduction_factor=1: expected a whole number from 2 to"):
        build({"_target_": "provla.pruner.Hyperband", "min_steps": None, "reduction_factor": 1}, "pruner")


def test_a_grid_prunes_says_so_and_counts_it(command: Command, tmp_path: Path) -> None:
    long = [o for o in QUICK if not o.startswith(("trainer.max_steps", "trainer.val_every"))] + [
        "trainer.max_steps=40",
        "trainer.val_every=10",
    ]
    asked = [
        "train",
        "-m",
        *long,
        "trainer.lr=3e-3,1e-3,1e-9",
        "pruner=median",
        "pruner.n_startup_jobs=2",
        "pruner.n_warmup_steps=0",
    ]
    code, out, err = command(*asked, f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 0, err
    assert "2 completed, 1 pruned" in out
    (pruned,) = (r for r in results(tmp_path / "s").values() if r["status"] == "pruned")
    assert pruned["train_steps"] < 40
    assert "pruned" in pruned["stopped"]
    assert pruned["objective"] is None
    code, out, err = command("report", f"folder={tmp_path / 's'}")
    assert code == 0, err
    assert "Every cell: 2 completed, 1 pruned" in out
    # Without a pruner, the pruned job goes on to its end.
    code, out, err = command(*asked, "pruner=none", f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 2, "pruner.n_startup_jobs is no key of pruner=none"
    code, out, err = command(*[a for a in asked if "pruner" not in a], f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 0, err
    assert {r["status"] for r in results(tmp_path / "s").values()} == {"completed"}


# Launchers.


def test_joblib_divides_the_machine_and_shares_one_recording(command: Command, tmp_path: Path) -> None:
    tiny = [o for o in FAKE if not o.startswith(("dataset", "logger", "horizon", "n_action", "device"))]
    dataset = [
        "dataset.tasks=[drawer-close]",
        "dataset.episodes_per_task=2",
        "dataset.image_size=32",
        "dataset.val_fraction=0.5",
        "dataset.workers=1",
    ]
    asked = [
        *tiny,
        *LIGHT,
        *dataset,
        "eval_episodes=1",
        "env.max_episode_steps=16",
        "logger=wandb",
        "env.videos_per_task=0",
    ]
    sweep = tmp_path / "s"
    code, out, err = command(
        "train",
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        *asked,
        "seed=0,1",
        f"hydra.sweep.dir={sweep}",
    )
    assert code == 0, err + out
    assert {r["status"] for r in results(sweep).values()} == {"completed"}
    logs = [file.read_text() for file in sweep.glob("*/log.txt")]
    assert len(logs) == 2
    assert sum("recorded" in log or "demonstrations" in log for log in logs) >= 1
    assert len(list((tmp_path / "data" / "datasets").glob("[!.]*"))) == 1
    assert len(list(sweep.glob("*/wandb/offline-run-*/*.wandb"))) == 2
    # The group, where no study is named.
    assert all(sweep.name.encode() in file.read_bytes() for file in sweep.glob("*/wandb/offline-run-*/*.wandb"))


def test_workers_end_with_their_killed_sweep_and_nothing_is_written_twice(command: Command, tmp_path: Path) -> None:
    import csv

    sweep, log = tmp_path / "s", tmp_path / "log.txt"
    long = [o for o in QUICK if not o.startswith(("trainer.max_steps", "trainer.val_every"))] + [
        "trainer.max_steps=150",
        "trainer.val_every=50",
    ]
    asked = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *long, "seed=0,1,2", f"hydra.sweep.dir={sweep}"]
    process = start(asked, log)
    end = time.monotonic() + 120
    while len(list(sweep.glob("*/checkpoints/latest"))) < 2:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    workers = children(process.pid)
    process.kill()  # the sweep alone, not its workers
    process.wait()
    code, out, err = command("train", *asked)
    assert code == 0, err + out
    assert {r["status"] for r in results(sweep).values()} == {"completed"}
    for file in sweep.glob("*/metrics.csv"):
        with file.open() as rows:
            steps = [int(float(row["step"])) for row in csv.DictReader(rows) if row["train/loss"]]
        assert steps == list(range(1, 151))
    assert len(workers) >= 2
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def children(pid: int) -> list[int]:
    """The worker processes of a sweep (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (
                int((place / "stat").read_text().rpartition(")")[2].split()[1]) == pid
                and "LokyProcess" in (place / "cmdline").read_text()
            ):
                found.append(int(place.name))
        except (OSError, IndexError):
            continue
    return found


def test_a_run_waits_for_the_process_that_is_in_its_folder(command: Command, tmp_path: Path) -> None:
    import threading

    from provla.jobs.sweep import alone

    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with alone(tmp_path / "run"):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    threading.Timer(2, leave.set).start()
    begun = time.monotonic()
    code, out, err = command("train", *QUICK, f"hydra.run.dir={tmp_path / 'run'}")
    thread.join()
    assert code == 0, err
    assert "another process is at work in this run's folder" in out
    assert time.monotonic() - begun > 1


def test_submitit_local_runs_for_real(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    code, out, err = command(
        "train", "-m", "hydra/launcher=submitit_local", *QUICK, "n_action_steps=4,9", f"hydra.sweep.dir={sweep}"
    )
    assert code == 1, err + out
    assert sorted(r["status"] for r in results(sweep).values()) == ["completed", "failed"]
    assert list((sweep / ".submitit").rglob("*.out"))
    assert "once more" in out


def test_slots_are_given_back_by_the_dead(tmp_path: Path) -> None:
    with slot(tmp_path, 2) as first, slot(tmp_path, 2) as second:
        assert {first, second} == {0, 1}
    script = (
        "import sys, time; from pathlib import Path; from provla.jobs.sweep import slot\n"
        "with slot(Path(sys.argv[1]), 1):\n print('in', flush=True)\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    with slot(tmp_path, 1) as number:
        assert number == 0


def test_a_jobs_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from provla.jobs import sweep

    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.setattr(sweep, "gpus", lambda: 2)
    assert [sweep.share(number, "auto") for number in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert sweep.share(1, "cpu") == "cpu"
    assert (sweep.places(2), sweep.places(2, 3)) == (2, 6)
    monkeypatch.setattr(sweep, "gpus", lambda: 0)
    assert [sweep.places(threads) for threads in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert sweep.crowded(2, 4) == ""
    assert "5 jobs of 2 threads share 8 cores; fewer at a time, or threads=1" in sweep.crowded(2, 5)
