"""A run again: the same is said to be the same, and what is not is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from conftest import FAKE

Command = Callable[..., tuple[int, str, str]]


def test_a_run_comes_out_again_and_what_differs_is_named(command: Command, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    asked = ["train", *[o for o in FAKE if o != "logger=none"], "logger=csv"]
    assert command(*asked, f"hydra.run.dir={run}")[0] == 0
    code, out, err = command("train", f"rerun={run}", f"hydra.run.dir={again}")
    assert code == 0, err
    assert "came out again, weights, metrics and episodes, to the last bit" in " ".join(out.split())
    found = json.loads((again / "rerun.json").read_text())
    assert (found["same"], found["environment"]) == (True, {})
    assert (again / "policy" / "weights.safetensors").read_bytes() == (
        run / "policy" / "weights.safetensors"
    ).read_bytes()

    # Another number, another curve, another torch, another machine: each is named.
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["trajectory_mse"] += 0.5
    result["versions"]["torch"], result["machine"]["cpu"] = "1.0", "Abacus"
    (run / "result.json").write_text(json.dumps(result))
    rows = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*rows[:2], rows[2].replace(".", ".1", 1), *rows[3:]]))
    code, out, err = command("train", f"rerun={run}", f"hydra.run.dir={tmp_path / 'third'}")
    assert code == 1
    assert "did not come out again" in err
    found = json.loads((tmp_path / "third" / "rerun.json").read_text())
    assert not found["same"]
    assert [line.partition(":")[0] for line in found["differs"]] == ["trajectory_mse", "metrics.csv"]
    assert "first in row 2" in found["differs"][1]
    assert (found["environment"]["torch"][0], found["environment"]["cpu"][0]) == ("1.0", "Abacus")
    assert "Abacus" in out


def test_what_cannot_be_run_again_is_refused(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = command("train", f"rerun={run}")
    assert code == 2
    assert "is missing; expected the folder of a completed run" in err
    assert command("train", *FAKE, f"hydra.run.dir={run}")[0] == 0
    code, _, err = command("train", f"rerun={run}", "seed=1", f"hydra.run.dir={tmp_path / 'other'}")
    assert code == 2
    assert "seed=… with rerun=…: that is another run" in err
    config = json.loads((run / "config.json").read_text())
    config["env"]["_target_"] = "os.system"
    (run / "config.json").write_text(json.dumps(config))
    code, _, err = command("train", f"rerun={run}", f"hydra.run.dir={tmp_path / 'other'}")
    assert code == 2
    assert "env._target_='os.system'" in err
    assert not (tmp_path / "other" / "result.json").exists()
