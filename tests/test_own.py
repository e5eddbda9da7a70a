"""What users bring: parts, worlds, data and studies of their own, from a folder outside the repository."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE, ROOT, TINY

from provla.run import evaluate as evaluating

Command = Callable[..., tuple[int, str, str]]

SMALL = [o for o in TINY if not o.startswith(("dataset", "env"))]
QUICK = [*SMALL, "logger=none", "threads=1", "trainer.max_steps=4", "trainer.warmup_steps=1", "trainer.val_every=2"]
QUICK += ["scheduler.num_inference_steps=2"]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working folder is on the import path, as for python -m, and no test meets another one's classes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_ideas", "my_worlds", "my_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("my_ideas", "my_worlds", "my_data"):
        sys.modules.pop(name, None)


def follow(section: str, folder: Path) -> None:
    """A recipe of the README to the letter: its files, by the names that stand before them."""
    text = (ROOT / "README.md").read_text().partition(f"### {section}\n")[2].partition("\n##")[0]
    steps = re.findall(r"`((?:my_\w+\.py)|(?:conf/\S+\.yaml))`.*?```\w+\n(.*?)   ```", text, re.DOTALL)
    assert len(steps) == 2
    for name, content in steps:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(content))


def test_add_a_fusion(command: Command, tmp_path: Path) -> None:
    follow("Add a fusion", tmp_path)
    fake = [o for o in FAKE if not o.startswith("fusion")]
    code, _, err = command("train", "-m", *fake, "fusion=mean,film", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert code == 0, err
    results = [json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/result.json")]
    assert sorted(r["choices"]["fusion"] for r in results) == ["film", "mean"]
    assert all(r["status"] == "completed" for r in results)
    mean = next((tmp_path / "sweep").glob("*fusion=mean*"))
    assert command("evaluate", f"checkpoint={mean}", "device=cpu")[0] == 2  # a stored run wants the reader's word
    assert command("evaluate", f"checkpoint={mean}", "device=cpu", "trust=[my_ideas]")[0] == 0


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the README's world is recorded once for all tests, and all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return f"data_dir={(base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'own'}"


def test_add_a_world(command: Command, tmp_path: Path, shared: str) -> None:
    """Checked, recorded, learned from, driven: a world of pictures of 48×64, in thirty lines."""
    follow("Add a world", tmp_path)
    code, out, err = command("evaluate", "check=env", "env=point")
    assert code == 0, err
    assert "same seed, same episode, after other episodes" in out
    assert out.count("│ yes") == 11
    small = ["dataset.episodes_per_task=2", "dataset.workers=1", shared]
    code, out, err = command("record", "env=point", "dataset=recorded", *small)
    assert code == 0, err
    code, out, err = command(
        "train", "env=point", "dataset=recorded", *small, *QUICK, "eval_episodes=2", "hydra.run.dir=run"
    )
    assert code == 0, err
    assert "recording" not in out  # found again
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["success"]) == {"left", "right", "success_rate"}
    episodes = list(csv.DictReader((tmp_path / "run" / "episodes.csv").open()))
    assert [row["episode_seed"] for row in episodes] == ["100000", "100001"] * 2
    assert not any(row["reason"] for row in episodes)
    assert {row["instruction"] for row in episodes} == {"Go to the left edge", "Go to the right edge"}
    code, _, err = command("analyze", "env=point", "dataset=recorded", *small)
    assert code == 0, err
    assert command("evaluate", "checkpoint=run", "trust=[my_worlds]", "eval_episodes=1")[0] == 0


def test_what_policies_survive(command: Command, tmp_path: Path, shared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged under factors beside the plain episodes, in every run of a study, and one policy under all there are."""
    follow("Add a world", tmp_path)
    asked = [
        "env=point",
        "dataset=recorded",
        "dataset.episodes_per_task=2",
        "dataset.workers=1",
        "eval_episodes=2",
        shared,
    ]
    axes = ["fusion=concat_mlp,film", "seed=range(2)", "study=toy", "perturb={action_delay:2,empty:1}"]
    quick = [*(option for option in QUICK if not option.startswith("fusion=")), "env.videos_per_task=0"]
    code, _, err = command("train", "-m", *asked, *quick, *axes, "hydra.sweep.dir=sweep")
    assert code == 0, err
    found = {file.parent: json.loads(file.read_text()) for file in (tmp_path / "sweep").glob("*/result.json")}
    run = next(run for run, told in found.items() if (told["choices"]["fusion"], told["seed"]) == ("concat_mlp", 0))
    rows = json.loads((run / "result.json").read_text())["perturb"]
    assert [(row["factor"], row["level"]) for row in rows] == [("action_delay", 2), ("empty", 1)]
    plain, late = ([*csv.DictReader(file.open())] for file in [run / "episodes.csv", *run.glob("*/action_d*/*s.csv")])
    assert [row["episode_seed"] for row in late] == [row["episode_seed"] for row in plain]
    won, won_late = (np.mean([row["success"] == "1" for row in each]) for each in (plain, late))
    assert (rows[0]["success"], rows[0]["difference"]) == (won_late, won_late - won)
    assert rows[0]["difference_low"] < rows[0]["difference"] < rows[0]["difference_high"]

    code, _, err = command("report", "folder=sweep")
    assert code == 0, err
    _, _, table = (tmp_path / "sweep" / "report" / "report.md").read_text().partition("What it survives<")
    head, _, *lines = [line for line in table.splitlines() if line.startswith("|")][:5]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == ["concat_mlp", "film"]
    assert [line.split("|")[1].strip() for line in lines] == ["none", "action_delay 2", "empty 1"]
    assert all(re.search(r"\d+ %, [+−]?\d+ \(.* to .*\)", line.split("|")[3]) for line in lines[1:])

    loads, load = [], evaluating.load_policy
    monkeypatch.setattr(evaluating, "load_policy", lambda *given: loads.append(1) or load(*given))
    command("evaluate", f"checkpoint={run}", "perturb=all", "eval_episodes=1", "trust=[my_worlds]", "hydra.run.dir=all")
    assert len(loads) == 1  # for all factors
    found = [row["factor"] for row in csv.DictReader((tmp_path / "all" / "perturb.csv").open())]
    assert found == ["noise", "blur", "dropped_frames", "action_noise", "action_delay", "empty"]
    assert (tmp_path / "all" / "plots" / "perturbed.png").stat().st_size > 1000
    asked = f"checkpoint={run}", "trust=[my_worlds]", "hydra.run.dir=none"
    for levels in ("[camera_yaw]", "{camera_yaw:3,noise:1}"):
        code, _, err = command("evaluate", *asked, f"perturb={levels}")
        assert code == 2
        assert "camera_yaw needs a world that draws with provla's cameras" in err
    assert not (tmp_path / "none" / "episodes.csv").exists()  # said before the first episode


def test_a_world_that_is_changed_is_recorded_anew(tmp_path: Path) -> None:
    from provla.dataset.recorded import WorldRecording

    follow("Add a world", tmp_path)
    asked = ({"_target_": "my_worlds.Point"}, {"left": "Go left"}, 1, 0, 0.0, 0.0, 3, 40, 1.0)
    name = WorldRecording(*asked).name
    assert WorldRecording(*asked).name == name
    (tmp_path / "my_worlds.py").write_text((tmp_path / "my_worlds.py").read_text().replace("255", "254"))
    assert WorldRecording(*asked).name != name


def test_bring_your_data(command: Command, tmp_path: Path) -> None:
    follow("Bring your data", tmp_path)
    rng = np.random.default_rng(0)
    arrays = {
        "front": rng.integers(0, 255, (60, 3, 24, 32), dtype=np.uint8),
        "state": rng.standard_normal((60, 5)).astype(np.float32),
        "actions": rng.standard_normal((60, 2)).astype(np.float32),
        "starts": np.arange(0, 61, 10),
        "task": np.array([0, 1, 0, 1, 0, 1]),
        "instructions": np.array(["Push", "Pull"]),
        "joint_names": np.array(["x", "y"]),
    }
    np.savez("demonstrations.npz", **arrays)
    code, out, err = command("analyze", "dataset=arrays")
    assert code == 0, err
    assert "6 episodes, 60 steps at 10 Hz, cameras front (24, 32)" in out
    code, _, err = command("train", "dataset=arrays", *QUICK, "hydra.run.dir=run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    for name, wrong, message in (
        ("state", arrays["state"].astype(np.float64), r"state is (60, 5) float64, expected (60, S) float32"),
        ("actions", np.full((60, 2), np.nan, np.float32), "actions of row 0 is not finite"),
        ("front", arrays["front"][:, :, :, :, None], "frames of 'front' are (60, 3, 24, 32, 1) uint8, expected"),
        ("starts", np.arange(0, 51, 10), "expected the first row of each episode and at the end 60"),
        ("task", np.array([0, 1, 0, 1, 0, 2]), "a position among its 2 instructions"),
        ("joint_names", np.array(["x"]), "expected 2 joint_names and fps above 0, found 1 and 10"),
    ):
        np.savez("demonstrations.npz", **(arrays | {name: wrong}))
        code, _, err = command("train", "dataset=arrays", *QUICK, "hydra.run.dir=wrong")
        assert code == 2
        assert message in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("return 3", "dataset: load() of Odd returned a int; expected provla.dataset.Demonstrations"),
        (None, "dataset: Odd has no load; a dataset needs load, val_fraction, split_seed"),
    ],
)
def test_a_source_that_is_none(load: str | None, message: str, command: Command, tmp_path: Path) -> None:
    body = f"    def load(self): {load}\n" if load else ""
    (tmp_path / "my_data.py").write_text(f"class Odd:\n    val_fraction, split_seed = 0.1, 0\n{body}")
    changes = [o for o in FAKE if not o.startswith("dataset")]
    code, _, err = command("train", "env=none", "dataset=odd", *changes)
    assert code == 2  # there is no such option yet
    assert "unknown option dataset=odd; valid: aloha_mobile_cabinet" in err
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "odd.yaml").write_text("_target_: my_data.Odd\n")
    code, _, err = command("train", "env=none", "dataset=odd", *changes)
    assert code == 2
    assert message in err


def test_studies_of_the_working_folder_come_first(command: Command, tmp_path: Path) -> None:
    """Planned, run, reported and published there; a name that is taken stands in, and is said."""
    (tmp_path / "experiments").mkdir()
    study = (
        "# @package _global_\n"
        "study: mine\nquestion: Does width matter?\n"
        "hydra: {sweeper: {params: {seed: '0,1', n_obs_steps: '1,2'}}}\n"
    )
    (tmp_path / "experiments" / "mine.yaml").write_text(study)
    (tmp_path / "experiments" / "quant.yaml").write_text(study.replace("mine", "quant"))
    code, out, err = command("report", "study=mine", "plan=true", f"overrides={json.dumps(FAKE)}")
    assert code == 0, err
    assert "4 jobs (2 arms, 2 seeds)" in out
    assert "experiments/ of this folder stands in for what came with provla: quant.yaml" in err
    code, out, err = command("train", "-m", "experiments=mine", *FAKE, "trainer.max_steps=2")
    assert code == 0, err
    code, out, err = command("report", "study=mine", "publish=true")
    assert code == 0, err
    assert (tmp_path / "experiments" / "mine.md").is_file()
    assert "published: experiments/mine.md" in out
    assert not (ROOT / "experiments" / "mine.md").exists()
    code, _, err = command("report")
    assert "fusion, hpo, language, metaworld_mt10, mine, quant" in err


def test_the_shipped_studies_are_still_found(command: Command) -> None:
    code, out, err = command("train", "experiments=quant", "--cfg", "job")
    assert code == 0, err
    assert "study: quant" in out
