"""Claims among processes of one host and of several (a host is a name and a kernel's start: here they are given)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provla.core import claims
from provla.core.claims import Claim, Host, Taken, claimed, holder

BEAT, STALE = 0.2, 1.5
# A process on a host of the name given: what it does is the script's, with the claim's path in `path`.
HEAD = f"""
import os, sys, threading, time
from pathlib import Path
from provla.core import claims
from provla.core.claims import Claim, Host, claimed
from provla.core.files import write_text
claims.BEAT, claims.STALE = {BEAT}, {STALE}
path, name = Path(sys.argv[1]), sys.argv[2]
if name != "here":
    claims.HERE = Host(name, "kernel of " + name)
"""
HOLD = "Claim(path).take()\nprint('in', flush=True)\ntime.sleep(600)\n"


class Processes:
    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, script: str, path: Path, host: str = "here") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + script, str(path), host],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.all.append(process)
        return process

    def holding(self, path: Path, host: str = "here") -> subprocess.Popen[str]:
        """One that holds the claim by now."""
        process = self(HOLD, path, host)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setattr(claims, "BEAT", BEAT)
    monkeypatch.setattr(claims, "STALE", STALE)
    processes = Processes()
    yield processes
    for process in processes.all:
        process.kill()
        process.communicate()


def test_a_claim_says_who_holds_it_and_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "claim"
    assert holder(path) == ""
    for _ in range(3):
        with claimed(path) as claim:
            assert holder(path) == f"process {os.getpid()} on {claims.HERE.name}"
            with pytest.raises(Taken, match=f"claim is held by process {os.getpid()} on .*; wait for its end, or stop"):
                Claim(path).take(0)
        assert holder(path) == ""
    assert [place.name for place in path.iterdir()] == [f"{claim.term:06d}"] == ["000003"]  # what is over is cleared


def test_a_process_that_was_killed_gives_its_claim_back_at_once(start: Processes, tmp_path: Path) -> None:
    owner = start.holding(tmp_path / "c")
    assert holder(tmp_path / "c") == f"process {owner.pid} on {claims.HERE.name}"
    owner.send_signal(signal.SIGKILL)
    while "State:\tZ" not in Path(f"/proc/{owner.pid}/status").read_text():  # nobody has asked how it ended
        time.sleep(0.01)
    begun = time.monotonic()
    Claim(tmp_path / "c").take(0)
    assert time.monotonic() - begun < 0.5


def test_a_stopped_process_of_this_host_keeps_its_claim(start: Processes, tmp_path: Path) -> None:
    owner = start.holding(tmp_path / "c")
    owner.send_signal(signal.SIGSTOP)
    with pytest.raises(Taken):
        Claim(tmp_path / "c").take(2 * STALE)


def test_on_another_host_a_beat_is_life_and_its_absence_is_death(start: Processes, tmp_path: Path) -> None:
    """No process of that number runs here, and clocks of files are never read."""
    owner = start.holding(tmp_path / "c", "far")
    for file in (tmp_path / "c").rglob("*"):
        os.utime(file, (0, 0))
    said: list[str] = []
    begun = time.monotonic()
    with pytest.raises(Taken, match=f"held by process {owner.pid} on far"):
        Claim(tmp_path / "c").take(0, said.append)
    assert time.monotonic() - begun < STALE  # a beat was enough
    assert said == [f"process {owner.pid} on far; if it is gone, that shows after {STALE:g} seconds"]
    with pytest.raises(Taken):
        Claim(tmp_path / "c").take(2 * STALE)
    owner.kill()
    begun = time.monotonic()
    assert holder(tmp_path / "c") == ""
    Claim(tmp_path / "c").take(0)
    assert STALE < time.monotonic() - begun < 3 * STALE


IN_TURNS = """
for _ in range(20):
    with claimed(path):
        inside = path.parent / "inside"
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # raises where another one is inside
        count = int((path.parent / "count").read_text())
        time.sleep(0.002)
        (path.parent / "count").write_text(str(count + 1))
        inside.unlink()
"""


def test_many_hosts_take_turns(start: Processes, tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    for process in [start(IN_TURNS, tmp_path / "c", f"host{i % 4}") for i in range(8)]:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert (tmp_path / "count").read_text() == "160"


TAKE_OVER = """
print("ready", flush=True)
while not (path.parent / "go").exists():
    time.sleep(0.001)
def race(number):
    try:
        Claim(path.parent / f"c{number}").take(0)
    except claims.Taken:
        return
    with (path.parent / "winners").open("a") as file:
        file.write(f"{number} {name}\\n")

threads = [threading.Thread(target=race, args=(number,)) for number in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("done", flush=True)
time.sleep(600)  # alive, with all that it won
"""


def test_a_takeover_has_one_winner(start: Processes, tmp_path: Path) -> None:
    """Twelve claims of a process that is gone, which six processes of three hosts find stale at the same time."""
    gone = start(
        "for i in range(12):\n Claim(path.parent / f'c{i}').take()\nprint('in', flush=True)\ntime.sleep(600)",
        tmp_path / "x",
        "gone",
    )
    assert gone.stdout is not None
    assert gone.stdout.readline() == "in\n"
    gone.kill()
    gone.wait()
    racers = [start(TAKE_OVER, tmp_path / "x", host) for host in ("here", "far", "farther") * 2]
    for word in ("ready", "done"):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == f"{word}\n"
        (tmp_path / "go").touch()
    won = [line.split()[0] for line in (tmp_path / "winners").read_text().splitlines()]
    assert sorted(map(int, won)) == list(range(12))


WRITING = """
Claim(path).take()
print("in", flush=True)
while True:
    write_text(path.parent / "result", name)
    time.sleep(0.1)
"""


def test_an_owner_that_was_held_up_ends_and_writes_nothing_more(start: Processes, tmp_path: Path) -> None:
    owner = start(WRITING, tmp_path / "c", "far")
    assert owner.stdout is not None
    assert owner.stdout.readline() == "in\n"
    time.sleep(2 * BEAT)
    assert (tmp_path / "result").read_text() == "far"
    owner.send_signal(signal.SIGSTOP)
    with claimed(tmp_path / "c"):  # after STALE
        (tmp_path / "result").write_text("mine")
        owner.send_signal(signal.SIGCONT)
        _, said = owner.communicate(timeout=20)
        assert owner.returncode == 1
        assert f"lost its claim {tmp_path / 'c'}: process {os.getpid()} on {claims.HERE.name} has it since" in said
        assert (tmp_path / "result").read_text() == "mine"
        assert holder(tmp_path / "c")


def test_who_is_held_up_while_it_takes_a_claim_has_not_got_it(start: Processes, tmp_path: Path) -> None:
    """Its term was made, and before it said whose it is, others went on for two terms and cleared it away."""
    path = tmp_path / "c"
    slow = Claim(path)
    slow.path.mkdir()
    (path / "000003").mkdir()  # of one who went on
    assert not slow._begin(1)
    assert [place.name for place in path.iterdir()] == ["000003"]


AGAIN = """
if len(sys.argv) == 3:
    Claim(path).take()
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], *sys.argv[1:], "again"])
Claim(path).take(0)
print("in again", flush=True)
"""


def test_a_process_that_executes_another_command_has_given_its_claims_back(start: Processes, tmp_path: Path) -> None:
    out, said = start(AGAIN, tmp_path / "c").communicate(timeout=60)
    assert out == "in again\n", said


FORK = """
claim = Claim(path)
claim.take()
if not os.fork():
    claim.release()
    os._exit(0)
os.wait()
assert claims.holder(path), "a child gave its parent's claim back"
"""


def test_a_forked_child_holds_nothing_of_its_parents(start: Processes, tmp_path: Path) -> None:
    process = start(FORK, tmp_path / "c")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_a_host_of_the_same_name_that_was_started_anew_is_another(
    start: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start.holding(tmp_path / "c")
    monkeypatch.setattr(claims, "HERE", Host(claims.HERE.name, "another"))
    with pytest.raises(Taken):  # by its beat: nothing is known of its process
        Claim(tmp_path / "c").take(0)
