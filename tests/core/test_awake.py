"""Threads wait long for each other where the cores are theirs, and shortly where others want them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import unsaid

from provla.core import awake

LINUX = pytest.mark.skipif(not awake._libraries(), reason="torch's threads are not libgomp's here")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def here(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@LINUX
def test_idle_threads_come_and_go_with_a_crowd() -> None:
    """As many as there are cores, itself among them, in each libgomp."""
    before = tasks()
    crowd = awake._Crowd(awake._libraries())
    until(lambda: tasks() == before + 1 + len(awake._libraries()) * (awake.cores() - 1))
    crowd.leave()
    until(lambda: tasks() == before)


@LINUX
def test_a_run_is_crowded_until_it_is_quiet_and_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, share = 0, 0.5

    def scripted() -> dict[str, int]:
        nonlocal waited
        waited += round(share * 0.02 * 1e9)
        return {"1": waited, "2": 0}

    monkeypatch.setattr(awake, "LOOK", 0.02)
    monkeypatch.setattr(awake, "_waited", scripted)
    over = threading.Event()
    watching = threading.Thread(target=awake._watch, args=(awake._libraries(), over))
    watching.start()
    until(lambda: here("crowd"))
    time.sleep(0.2)
    assert here("crowd")
    share = 0.0
    until(lambda: not here("crowd"))
    share = 1.5
    until(lambda: here("crowd"))
    over.set()
    watching.join()
    assert not here("crowd")


@LINUX
@pytest.mark.parametrize(
    ("said", "watched"), [("", True), ("OMP_WAIT_POLICY=active", False), ("GOMP_SPINCOUNT=9", False)]
)
def test_a_process_is_watched_once_where_its_user_has_not_said_how_long(said: str, watched: bool) -> None:
    """And one that is forked from it is watched anew."""
    code = (
        "import os, threading\nfrom provla.core import awake\nawake.prepare_threads()\nimport torch\n"
        "def count(): awake.watch(); return sum(one.name == 'awake' for one in threading.enumerate())\n"
        "print(count(), count(), flush=True)\n"
        "child = os.fork()\nif child: os.waitpid(child, 0)\nelse: print(count(), flush=True)"
    )
    told = dict(word.split("=") for word in said.split())
    done = subprocess.run([sys.executable, "-c", code], env=unsaid() | told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([str(int(watched))] * 3 if awake.turns() == awake.LONG else ["0"] * 3)


@LINUX
def test_a_process_ends_quietly_while_a_crowd_comes_and_goes() -> None:
    code = (
        "import itertools, threading, time\nfrom provla.core import awake\nawake.turns = lambda: awake.LONG\n"
        "awake.prepare_threads()\nimport torch\nwaited = itertools.count()\nawake.LOOK = awake.SOON = 0.001\n"
        "awake._waited = lambda: {'1': (n := next(waited)) // 3 * 10**9}\nawake.watch()\n"
        "threading.Thread(target=time.sleep, args=(0.3,)).start()  # for which the interpreter waits, when it ends"
    )
    done = subprocess.run([sys.executable, "-c", code], env=unsaid(), capture_output=True, text=True, check=True)
    assert not done.stderr


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="this system does not say how long threads wait")
def test_threads_wait_long_only_where_it_can_be_seen_that_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert awake.turns() == awake.LONG
    monkeypatch.setattr(awake, "cores", lambda: awake.MANY + 1)
    assert awake.turns() == awake.SHORT
    monkeypatch.undo()
    monkeypatch.setattr(awake, "_waited", lambda: {"1": 0})
    assert awake.turns() == awake.SHORT
