"""A report says which data set, at which commit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from provla.core.result import Result
from provla.study.study import data_of


def test_the_facts_name_the_commit_of_a_data_set_of_the_hub(tmp_path: Path) -> None:
    node = {"_target_": "provla.dataset.LeRobotSource", "repo_id": "acme/waves"}
    (tmp_path / "config.json").write_text(json.dumps({"dataset": node}))
    data = {"revision": "5ca1ab1e" + 32 * "0", "episodes": 20, "held_out": 2, "frames": 400}
    run: Any = SimpleNamespace(folder=tmp_path, result=Result(data=data))
    assert data_of(run) == "acme/waves at 5ca1ab1e0000 (20 episodes)"
    run.result = Result()  # of an earlier provla
    assert data_of(run) == "acme/waves"
