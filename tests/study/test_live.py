"""A sweep that is followed while it runs."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import browsing
from studies import Command, make_study, outcomes, write_run

from provla.jobs import attempts
from provla.study import live


def get(port: int, path: str, host: str | None = None) -> tuple[str, dict[str, str]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), dict(answer.headers)


def running(folder: Path) -> Path:
    """A study half done: one job not begun, one that runs."""
    study = make_study(folder, {"a": 0.5, "b": 0.8})
    shutil.rmtree(study / "fusion=b,seed=2")
    (study / "fusion=b,seed=1" / "result.json").unlink()
    attempts.begin(study / "fusion=b,seed=1")
    return study


def test_the_state_of_a_running_sweep(tmp_path: Path) -> None:
    state = live.Watch(running(tmp_path / "s"), 0.1).look()
    assert state["states"] == {"running": 1, "completed": 4, "missing": 1}
    assert state["seconds_left"] == pytest.approx(2 * 180)
    assert not state["over"]
    assert [(row["arm"], row["runs"]) for row in state["arms"]] == [("a", 3), ("b", 1)]
    assert set(state["curves"]) == {
        f"fusion={arm},seed={s}" for arm, s in (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1))
    }
    assert not any(word in json.dumps(state) for word in ("better", "worse", "equivalent"))


def test_results_are_judged_again_where_one_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = running(tmp_path / "s")
    judged: list[int] = []
    judge = live.judge
    monkeypatch.setattr(live, "judge", lambda study, *more, **how: judged.append(1) or judge(study, *more, **how))
    watch = live.Watch(folder, 0.1)
    states = [watch.look() for _ in range(3)]
    assert len(judged) == 1
    assert states[0] == states[1] == states[2]
    attempts.end(folder / "fusion=b,seed=1")  # a state that no result says
    assert watch.look()["states"] == {"completed": 4, "interrupted": 1, "missing": 1}
    assert len(judged) == 1
    write_run(folder / "fusion=b,seed=1", "b1", 1, outcomes(0.8, 1, 1))
    assert [(row["arm"], row["runs"]) for row in watch.look()["arms"]] == [("a", 3), ("b", 2)]
    (folder / "fusion=a,seed=0" / "result.json").unlink()
    assert watch.look()["arms"][0]["runs"] == 2
    assert len(judged) == 3


def test_the_page_follows_until_the_sweep_is_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = running(tmp_path / "s")
    before = sorted(path for path in folder.rglob("*"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    follower = threading.Thread(target=live.follow, args=(folder, 0.1, port, 0.1))
    follower.start()
    state: dict[str, Any] = {}
    for _ in range(100):
        try:
            state = json.loads(get(port, "/state.json")[0])
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    assert state["states"]["running"] == 1
    page, headers = get(port, "/")
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    for path, host, code in (
        ("/../../etc/passwd", None, 404),
        ("/sweep.json", None, 404),
        ("/", "evil.example:80", 403),
    ):
        with pytest.raises(urllib.error.HTTPError, match=str(code)):
            get(port, path, host)
    assert sorted(path for path in folder.rglob("*")) == before  # it reads, and no more
    for seed in (1, 2):
        write_run(folder / f"fusion=b,seed={seed}", f"b{seed}", seed, outcomes(0.8, seed, 1))
    follower.join(30)
    assert not follower.is_alive()
    out = "".join(capfd.readouterr())
    assert f"live: http://127.0.0.1:{port}/" in out
    assert "so far, not final: no words yet" in out
    assert "the sweep is over: python -m provla.report folder=" in out


def test_the_page_draws_in_a_browser(tmp_path: Path) -> None:
    folder = running(tmp_path / "s")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    follower = threading.Thread(target=live.follow, args=(folder, 0.1, port, 0.1), daemon=True)
    follower.start()
    with browsing() as page:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#jobs .running")
        assert page.locator("#jobs .completed").count() == 4
        assert page.locator("#curves svg").count() == 2
        assert page.locator("#arms tr").count() == 2
        for seed in (1, 2):
            write_run(folder / f"fusion=b,seed={seed}", f"b{seed}", seed, outcomes(0.8, seed, 1))
        page.get_by_text("the sweep is over").wait_for()
    follower.join(30)


def test_a_port_that_is_taken_is_named(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.8})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = command("report", f"folder={folder}", "live=true", f"port={port}")
    assert code == 2
    assert f"port={port}: Address already in use; choose another, or 0 for any that is free" in err
