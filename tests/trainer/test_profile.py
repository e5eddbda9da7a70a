"""trainer.profile: where the time goes, at no price to what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, compose
from test_feed import looped

from provla.core.identity import identity, training_identity
from provla.run.profile import OTHER, REST, stages_of, write_profile
from provla.trainer.loop import Loop
from provla.trainer.profile import FIRST, TRACED, Profile

Command = Callable[..., tuple[int, str, str]]
STEPS = ["trainer.max_steps=16", "trainer.val_every=8", "trainer.log_every=4"]


def trained(folder: Path, *overrides: str) -> tuple[Loop, dict[str, torch.Tensor]]:
    loop, policy = looped(folder, lambda loop: None, *STEPS, *overrides)
    loop.run()
    return loop, policy.state_dict()


def test_it_times_what_a_training_does_and_changes_nothing(tmp_path: Path) -> None:
    plain, weights = trained(tmp_path / "plain")
    loop, found = trained(tmp_path / "run", "trainer.profile=true")
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    rows = [[{k: v for k, v in row.items() if "per_second" not in k} for row in x.fit.history] for x in (loop, plain)]
    assert rows[0] == rows[1]
    assert not (tmp_path / "plain" / "profile").exists()
    left = json.loads((tmp_path / "run" / "profile" / "stages.json").read_text())
    stages = left["stages"]
    assert left["steps"] == 16 - TRACED
    once = ("forward", "backward", "optimiser", "data", "encode: vision", "encode: text", "fuse", "head")
    assert {name: stages[name]["calls"] for name in once} == dict.fromkeys(once, 16 - TRACED)
    # Validation shows the policy samples too, and is no part of these; a log falls into the traced steps.
    counts = {name: stages[name]["calls"] for name in ("log", "validate", "checkpoint")}
    assert counts == {"log": 4 - 1, "validate": 2, "checkpoint": 2}
    parts = sum(stages[name]["seconds"] for name in ("encode: vision", "encode: text", "fuse", "head"))
    assert parts <= stages["forward"]["inside"] * (1 + 1e-9)  # an augmentation is a part too
    assert stages["forward"]["inside"] <= stages["forward"]["seconds"]
    assert sum(one["seconds"] - one["inside"] for one in stages.values()) + left["trace"] <= left["wall"]


def test_a_trace_of_steps_after_the_first_ones(tmp_path: Path) -> None:
    loop, _ = trained(tmp_path, "trainer.profile=true")
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    for stage in ("data", "encode: vision", "backward", "optimiser"):
        assert names.count(stage) == TRACED, stage
    assert any(event.get("cat") == "cpu_op" for event in trace["traceEvents"])
    assert not [hook for part in loop.policy.children() for hook in part._forward_hooks]  # nothing stays on it
    few = Profile(tmp_path / "few", torch.device("cpu"), torch.nn.Linear(1, 1))
    with few:
        few.stepped(0)  # a training of one step has none to trace
    assert not (tmp_path / "few" / "profile" / "trace.json").exists()
    assert FIRST + TRACED < 16


def test_what_ends_a_training_is_said_and_what_was_timed_is_kept(tmp_path: Path) -> None:
    profile = Profile(tmp_path, torch.device("cpu"), torch.nn.Linear(1, 1))
    with pytest.raises(KeyError, match="why"), profile, profile.stage("data"):
        raise KeyError("why")
    assert json.loads((tmp_path / "profile" / "stages.json").read_text())["stages"]["data"]["calls"] == 1


def test_stages_add_up_to_the_whole() -> None:
    def stage(seconds: float, inside: float = 0.0) -> dict[str, float]:
        return {"seconds": seconds, "calls": 1, "inside": inside}

    left: dict[str, Any] = {"wall": 10.0, "trace": 1.0, "steps": 5, "device": "cpu"}
    left["stages"] = {
        "backward": stage(3.0),
        "forward": stage(4.0, 2.5),
        "head": stage(2.0),
        "augmentation": stage(0.5),
    }
    found = stages_of(left, 6.0)
    assert list(found) == ["head", "augmentation", REST, "backward", "evaluate", "the trace itself", OTHER]
    assert found[REST] == pytest.approx(1.5)
    assert sum(found.values()) == pytest.approx(16.0)


def test_a_run_leaves_a_page(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = command("train", *FAKE, *STEPS, "trainer.profile=true", f"hydra.run.dir={run}")
    assert code == 0, err
    assert "profile.md" in out.replace("\n", "")
    page = (run / "profile" / "profile.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    names = [row[0].strip() for row in rows]
    assert [name for name in names if name in ("data", "encode: vision", "head", "evaluate", OTHER)] == [
        *("data", "encode: vision", "head", "evaluate"),
        OTHER,
    ]
    assert sum(float(row[2].strip().rstrip("%")) for row in rows) == pytest.approx(100, abs=1)
    assert "![seconds of each stage](stages.png)" in page
    assert {one.name for one in (run / "profile").iterdir()} == {
        "profile.md",
        "stages.json",
        "stages.png",
        "trace.json",
    }
    write_profile(tmp_path, 1.0)  # of a training that was taken over from a sibling there is nothing to say
    assert not (tmp_path / "profile").exists()


def test_neither_a_profile_nor_a_graph_that_is_off_makes_another_run() -> None:
    base = compose()
    for same in (["trainer.profile=true"], ["trainer.graph=off"], ["trainer.graph=auto"]):
        assert identity(compose(*same)) == identity(base)
        assert training_identity(compose(*same)) == training_identity(base)
    assert identity(compose("trainer.graph=on")) != identity(base)  # it rounds otherwise
    trainer = {k: v for k, v in base["trainer"].items() if k not in ("graph", "profile")}
    assert identity(base | {"trainer": trainer}) == identity(base)  # a run of before
