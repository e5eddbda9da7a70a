"""A report: what it says of broken studies, its forms, its page in a browser."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE, LIGHT, browsing
from studies import TASKS, Command, make_study, outcomes, words, write_run

from provla.core.files import write_json
from provla.env.rollout import Outcome, write_videos
from provla.study.findings import BETTER, UNKNOWN
from provla.study.study import load_study
from provla.study.verdict import judge

# Broken studies: what can be said is said, the rest is named.


def test_half_run_failed_pruned_and_damaged_cells_are_shown_and_counted(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.4})
    shutil.rmtree(folder / "fusion=b,seed=2")
    (folder / "fusion=c,seed=0" / "result.json").write_text('{"status": "compl')
    (folder / "fusion=c,seed=1" / "result.json").unlink()
    write_json(
        folder / "fusion=c,seed=2" / "result.json",
        {"status": "failed", "error": "Traceback\nValueError: no GPU", "attempts": 2},
    )
    write_json(
        folder / "fusion=d,seed=0" / "result.json", {"status": "pruned", "stopped": "pruned", "train_steps": 200}
    )
    (folder / "fusion=d,seed=1" / "episodes.csv").write_text("task,instruction,episode_seed,success,steps\n")
    write_run(folder / "fusion=d,seed=2", "another", 2, outcomes(0.4, 2, 3))
    write_run(folder / "stray", "x", 0, outcomes(0.4, 0, 9))
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    for text in (
        "1 missing (not started yet): b with seed 2",
        "1 interrupted (not at its end; the sweep's command goes on with it): c with seed 1",
        "fusion=c,seed=0: damaged (result.json cannot be read",
        "fusion=c,seed=2: failed (ValueError: no GPU)",
        "fusion=d,seed=1: damaged (episodes.csv has 0 episodes, result.json 100)",
        "fusion=d,seed=2: damaged (result.json is of another configuration than the sweep asked for)",
        "b has no completed run with seed 2, which other arms have; it is compared on fewer trainings",
        "folders that this sweep did not ask for, and that count nowhere: stray",
        "Every cell: 5 completed, 1 pruned, 1 failed, 1 interrupted, 1 missing, 3 damaged",
    ):
        assert text in out, text
    verdict = judge(load_study(folder), 0.1)
    assert words(verdict) == {"b": words(verdict)["b"]}  # c and d have nothing to compare
    assert verdict.compared[0][1].seeds == [0, 1]
    with (folder / "report" / "arms.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert (rows["d"]["verdict"], rows["d"]["pruned"], rows["d"]["damaged"], rows["c"]["failed"]) == (
        UNKNOWN,
        "1",
        "2",
        "1",
    )


def test_results_of_odd_content_are_named_and_crash_nothing(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7, "c": 0.6})
    write_json(folder / "fusion=a,seed=0" / "result.json", {"status": "completed", "config_hash": "a0"})
    write_run(folder / "fusion=b,seed=0", "b0", 0, outcomes(0.7, 0, 1), objective={"name": "loss", "value": 0.1})
    write_run(
        folder / "fusion=b,seed=1", "b1", 1, outcomes(0.7, 1, 1), objective={"name": "success_rate", "value": "many"}
    )
    write_run(
        folder / "fusion=b,seed=2", "b2", 2, outcomes(0.7, 2, 1), objective={"name": "success_rate", "value": math.nan}
    )
    bare = {"status": "completed", "config_hash": "c0", "objective": {"name": "success_rate", "value": 0.6}}
    write_json(folder / "fusion=c,seed=0" / "result.json", bare | {"success": {"success_rate": {"episodes": 100}}})
    (folder / "fusion=c,seed=1" / "metrics.csv").write_text("")
    (folder / "fusion=c,seed=2" / "metrics.csv").write_text("step,val/trajectory_mse\n7,nan\n")
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    assert "fusion=a,seed=0: damaged (result.json has no objective)" in out
    assert "fusion=b,seed=0: damaged (its objective is loss, that of the runs before it success_rate)" in out
    assert "fusion=b,seed=1: damaged (result.json cannot be read: objective={'name': 'success_rate', 'value': " in out
    assert "fusion=b,seed=2: its success_rate is nan; it counts nowhere" in out


def test_the_order_of_the_episodes_rows_changes_no_verdict(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.6, "c": 0.45})
    before = judge(load_study(folder), 0.1)
    for number, file in enumerate(sorted(folder.glob("*/episodes.csv"))):
        head, *rows = file.read_text().splitlines()
        np.random.default_rng(number).shuffle(rows)
        file.write_text("\n".join([head, *rows]) + "\n")
    after = judge(load_study(folder), 0.1)
    assert [vars(found) for _, found in after.compared] == [vars(found) for _, found in before.compared]
    assert [arm.tasks for arm in after.arms] == [arm.tasks for arm in before.arms]
    # An episode that stands there twice is named, and its run counts nowhere.
    (folder / "fusion=b,seed=1" / "episodes.csv").write_text("\n".join([head, rows[0], *rows]) + "\n")
    (broken,) = (run for run in load_study(folder).runs if run.problem)
    assert broken.job.folder == "fusion=b,seed=1"
    assert re.search(
        r"episodes\.csv cannot be read: (drawer-open|window-close), episode seed \d+ stands there twice", broken.problem
    )


def test_a_study_on_several_machines_says_so(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7})
    assert not any("machine" in problem for problem in judge(load_study(folder), 0.1).problems)
    here = {"cpu": "Xeon", "threads": 2, "instruction_set": "AVX512"}
    write_run(folder / "fusion=b,seed=1", "b1", 1, outcomes(0.7, 1, 1), machine=here)
    write_run(folder / "fusion=b,seed=2", "b2", 2, outcomes(0.7, 2, 1), machine=dict(reversed(here.items())))
    assert not any("machine" in problem for problem in judge(load_study(folder), 0.1).problems)
    write_run(folder / "fusion=a,seed=0", "a0", 0, outcomes(0.5, 0, 0), machine={**here, "threads": 4})
    (said,) = (problem for problem in judge(load_study(folder), 0.1).problems if "machine" in problem)
    assert (
        "the runs were made on 2 kinds of machine: cpu Xeon, instruction_set AVX512, threads 2; cpu Xeon, "
        "instruction_set AVX512, threads 4" in said
    )


@pytest.mark.parametrize("name", ["../../etc", ".hidden", "a\nb"])
def test_a_studys_name_is_one_plain_name(name: str, command: Command, tmp_path: Path) -> None:
    asked = f'study="{name}"'
    for code, _, err in (
        command("report", asked),
        command("train", "-m", "seed=0,1", "dataset=fake", asked),
        command("train", "dataset=fake", asked),
    ):
        assert code == 2, err
        assert f"study={name!r}: expected one plain name" in err
    assert not list(tmp_path.glob("**/result.json"))


def test_a_sweep_that_leads_elsewhere_is_refused(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7})
    text = (folder / "sweep.json").read_text()
    for elsewhere in ("../other", "/etc", ".."):
        (folder / "sweep.json").write_text(text.replace('"folder": "fusion=a,seed=0"', f'"folder": "{elsewhere}"'))
        code, _, err = command("report", f"folder={folder}")
        assert code == 2
        assert f"names '{elsewhere}' as a job's folder, which leads out of the sweep's own" in err


def test_arms_on_other_episodes_are_refused_as_unpaired(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7})
    write_run(folder / "fusion=b,seed=1", "b1", 1, outcomes(0.7, 1, 1, episodes=40))
    code, _, err = command("report", f"folder={folder}")
    assert code == 2
    assert (
        "unpaired: fusion=b,seed=1 was evaluated on 80 episodes and fusion=a,seed=0 on 100, of which 80 are the same"
        in err
    )
    assert "needs the same eval_episodes, env.tasks and env.first_seed" in err
    assert not (folder / "report").exists()


def test_folders_that_hold_no_study(tmp_path: Path, command: Command) -> None:
    code, _, err = command("report", "study=nix")
    assert (code, "no folder outputs/nix: the study has not been started here" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = command("report", f"folder={tmp_path / 'empty'}")
    assert (code, "holds no sweep (no sweep.json); start it with" in err) == (2, True)
    (tmp_path / "empty" / "sweep.json").write_text('{"jobs": [')
    code, _, err = command("report", f"folder={tmp_path / 'empty'}")
    assert (code, "sweep.json is damaged" in err) == (2, True)
    code, _, err = command("report")
    assert code == 2
    assert "which study? give study=<name> (" in err
    assert "fusion, " in err
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7})
    for run in folder.glob("fusion*"):
        shutil.rmtree(run)
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    assert "Nothing can be compared yet." in out
    assert "6 missing (not started yet)" in out


def test_a_baseline_without_results_compares_nothing(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7})
    for seed in range(3):
        shutil.rmtree(folder / f"fusion=a,seed={seed}")
    code, out, _ = command("report", f"folder={folder}")
    assert code == 0
    assert "the baseline a has no completed run, so nothing is compared" in out


# Its forms.


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """A study whose runs of one seed have videos."""
    from provla.core.world import Episode

    folder = make_study(tmp_path / "s", {"concat_mlp": 0.5, "film": 0.8, "a_b & 10%": 0.4})
    for run in folder.glob("fusion*,seed=0"):
        films = [
            Outcome(
                Episode(task, "x", i, True),
                "success" if i else "timeout",
                8,
                [np.full((32, 32, 3), 20 * t + 60 * i, np.uint8) for t in range(8)],
            )
            for task in TASKS
            for i in (0, 1)
        ]
        write_videos(films, run / "videos", 10)
    return folder


def test_every_form_of_the_report(filmed: Path, command: Command, tmp_path: Path) -> None:
    code, out, err = command("report", f"folder={filmed}", "publish=true")
    assert code == 0, err
    assert "film is better than concat_mlp: +3" in out
    place = filmed / "report"
    assert out.startswith((place / "report.md").read_text())
    with (place / "arms.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows["film"]["verdict"] == BETTER
    assert float(rows["film"]["difference"]) == pytest.approx(0.3, abs=0.05)
    with (place / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9
    latex = (place / "report.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\begin{tabular}") == 5
    assert r"a\_b \& 10\%" in latex
    assert not re.search(r"(?<!\\)%", latex)
    pictures = {file.name for file in (place / "plots").iterdir()}
    assert pictures == {"forest.png", "learning_curves.png", "success_against_time.png", "tasks.png"}
    import imageio.v3 as iio

    video = iio.imread(place / "videos" / "0.mp4", plugin="pyav")
    assert video.shape[1:] == (2 * (32 + 18), 64, 3)  # two rows with their titles, two tasks
    published = tmp_path / "experiments"
    files = {"probe.md", "probe.csv", "probe_runs.csv", "probe_episodes.csv", "probe"}
    assert {file.name for file in published.iterdir()} == files
    text = (published / "probe.md").read_text()
    assert "![Differences from the baseline](probe/forest.png)" in text
    assert "- report: `python -m provla.report" in text
    assert "- commit: abc" in text
    assert {file.name for file in (published / "probe").iterdir()} == pictures


def test_the_page_in_a_browser(filmed: Path, command: Command) -> None:
    code, _, err = command("report", f"folder={filmed}")
    assert code == 0, err
    requests: list[str] = []
    errors: list[str] = []
    with browsing() as page:
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((filmed / "report" / "report.html").as_uri())
        assert page.title().startswith("probe")

        def column(name: str) -> list[str]:
            at = page.eval_on_selector_all("#arms th", "heads => heads.map(head => head.innerText.trim())").index(name)
            return [
                str(text)
                for text in page.eval_on_selector_all(
                    f"#arms tbody tr td:nth-child({at + 1})", "cells => cells.map(cell => cell.innerText)"
                )
            ]

        assert column("arm") == ["concat_mlp", "film", "a_b & 10%"]
        head = page.locator("#arms th", has_text="success (95 %)")
        head.get_by_role("button").click()
        assert column("arm") == ["a_b & 10%", "concat_mlp", "film"]
        assert head.get_attribute("aria-sort") == "ascending"
        head.get_by_role("button").click()
        assert column("arm") == ["film", "concat_mlp", "a_b & 10%"]
        page.locator("#arms th", has_text="difference").get_by_role("button").click()
        assert column("arm")[-1] == "concat_mlp"  # empty cells stay at the end
        # Nothing is out of sight: the one table fits at a desk, and becomes cards on a phone; what is folded opens.
        for width in (1400, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.eval_on_selector("#arms", "table => table.offsetWidth <= table.parentElement.offsetWidth")
        assert page.locator("#statistics").is_hidden()
        page.get_by_text("What stands behind the words").click()
        assert page.locator("#statistics").is_visible()
        assert page.get_attribute("#runs td a", "href") == "../fusion%3Dconcat_mlp%2Cseed%3D0/"
        widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        assert len(widths) == 4
        assert all(width > 300 for width in widths)
        page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 1)")
        assert page.eval_on_selector_all("video", "videos => videos.map(video => video.videoWidth)") == [64, 64]
        # The page's own policy stops whatever would leave it.
        assert page.evaluate("fetch('https://example.org').then(() => 'left', () => 'stopped')") == "stopped"
    assert [url for url in requests if not url.startswith(("data:", "file:", "blob:"))] in (
        [],
        ["https://example.org/"],
    )
    assert len([url for url in requests if url.startswith("file:")]) == 1
    assert all("example.org" in error for error in errors), errors


# A search.


def test_a_search_is_reported_and_a_held_storage_is_named(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "search"
    space = ["trainer.lr=tag(log, interval(1e-5, 1e-1))", "fusion=choice(film,concat_mlp)"]
    ours = [o for o in FAKE if not o.startswith("logger")] + LIGHT
    code, out, err = command(
        "train",
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=5",
        *space,
        *ours,
        "logger=csv",
        f"hydra.sweep.dir={folder}",
    )
    assert code == 0, err
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    best = min(json.loads(f.read_text())["objective"]["value"] for f in folder.glob("*/result.json"))
    assert f"trajectory_mse {best:.4g}" in out
    assert "Trials: 5 completed, of 5" in out
    assert "What mattered" in out
    assert "on 5 complete trials. With so few, it is a hint at most." in (folder / "report" / "report.md").read_text()
    assert {f.name for f in (folder / "report" / "plots").iterdir()} == {
        "history.png",
        "importance.png",
        "slices.png",
        "pairs.png",
        "parallel_coordinates.png",
        "learning_curves.png",
    }
    # Another process holds the storage: its numbers are missing and named, the rest is there.
    holder = sqlite3.connect(folder / "optuna.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    import provla.pruner

    provla.pruner.PATIENCE, before = 1, provla.pruner.PATIENCE
    try:
        code, out, err = command("report", f"folder={folder}")
    finally:
        provla.pruner.PATIENCE = before
        holder.close()
    assert code == 0, err
    assert "another process holds it" in out
    assert "Trials: 5 completed, of 5" in out
    (folder / "optuna.db").write_bytes(b"not a database at all")
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    assert "it is damaged" in out
