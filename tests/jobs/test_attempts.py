"""Jobs that are killed, that hang, and that never say a word: counted, ended, and no harm to their siblings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FAKE, ROOT, compose

from provla.core import claims
from provla.core.result import read_result
from provla.jobs import attempts
from provla.jobs.limit import TimedOut, limited
from provla.jobs.sweep import alone
from provla.run.train import train

Command = Callable[..., tuple[int, str, str]]
KILLED = """import os, sys
from pathlib import Path
from provla.jobs import attempts
attempts.begin(Path(sys.argv[1]))
os.kill(os.getpid(), 9)
"""


def kill_in(folder: Path) -> None:
    """A process starts the job in this folder, and is killed."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False).returncode == -9


def test_a_kill_counts_unless_the_job_got_further(tmp_path: Path) -> None:
    assert attempts.killed(tmp_path) == 0
    kill_in(tmp_path)
    kill_in(tmp_path)
    assert attempts.killed(tmp_path) == 2
    (tmp_path / "checkpoints" / "step_0000010").mkdir(parents=True)
    assert attempts.killed(tmp_path) == 0  # it got further after its last start
    kill_in(tmp_path)
    assert attempts.killed(tmp_path) == 1
    # An end by an error or a signal takes the last start back, and nothing more.
    attempts.begin(tmp_path)
    attempts.end(tmp_path)
    assert attempts.killed(tmp_path) == 1
    attempts.begin(tmp_path)
    (tmp_path / "checkpoints" / "step_0000020").mkdir()
    attempts.end(tmp_path)
    assert attempts.killed(tmp_path) == 0
    assert not (tmp_path / attempts.MARK).exists()


ASKED = """
import os, sys, time
from pathlib import Path
from provla.jobs import attempts
from provla.core import signals
folder = Path(sys.argv[1])
attempts.begin(folder)
with signals.listening(), signals.deferred(), signals.telling(lambda: attempts.forgive(folder)):
    os.kill(os.getpid(), 15)
    time.sleep(0.1)
    os.kill(os.getpid(), 9)
"""


def test_a_run_of_a_host_that_is_gone_goes_on_here(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was killed elsewhere, which is seen by its silence, and counted."""
    monkeypatch.setattr(claims, "STALE", 2.0)
    script = (
        "import os, sys, time; from pathlib import Path; from provla.core import claims; from provla.jobs import "
        "attempts\nfrom provla.jobs.sweep import alone\nclaims.HERE = attempts.HERE = claims.Host('far', 'kernel')\n"
        "attempts.boot = lambda: 'its start'\nwith alone(Path(sys.argv[1])):\n attempts.begin(Path(sys.argv[1]))\n"
        " os.kill(os.getpid(), 9)"
    )
    run = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", script, str(run)], cwd=ROOT, check=False).returncode == -9
    assert attempts.killed(run) == 1
    begun = time.monotonic()
    code, out, err = command("train", *FAKE, f"hydra.run.dir={run}")
    assert code == 0, err
    said = " ".join(out.split())
    assert "on far; if it is gone, that shows after 2 seconds); waiting for its end" in said
    assert time.monotonic() - begun > 2
    assert read_result(run).status == "completed"
    assert not attempts.lost(run)


def test_whoever_was_asked_to_end_is_not_blamed_for_being_killed(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", ASKED, str(tmp_path)], cwd=ROOT, check=False).returncode == -9
    assert attempts.killed(tmp_path) == 0
    assert not attempts.lost(tmp_path)


def test_a_kill_is_not_the_jobs_fault_where_the_machine_or_a_sibling_went_down(tmp_path: Path) -> None:
    kill_in(tmp_path)
    mark = json.loads((tmp_path / attempts.MARK).read_text())
    (tmp_path / attempts.MARK).write_text(json.dumps({**mark, "boot": "another"}))
    assert attempts.killed(tmp_path) == 0
    kill_in(tmp_path)
    assert attempts.lost(tmp_path)
    with alone(tmp_path):  # a worker that outlived its sweep
        assert not attempts.lost(tmp_path)
    attempts.forgive(tmp_path)
    assert not attempts.lost(tmp_path)
    assert attempts.killed(tmp_path) == 0
    (tmp_path / attempts.MARK).write_text("{")
    assert attempts.killed(tmp_path) == 0


def test_a_job_that_kills_its_process_ends_no_sweep(command: Command, tmp_path: Path) -> None:
    sweep = tmp_path / "s"
    asked = ["train", "-m", *FAKE, "seed=0,1", "trainer.max_steps=1", f"hydra.sweep.dir={sweep}"]
    code, _, err = command(*asked)
    assert code == 0, err
    bad, good = sorted(file.parent for file in sweep.glob("*/result.json"))
    (bad / "result.json").unlink()
    for _ in range(2):
        kill_in(bad)
    stamp = (good / "result.json").stat().st_mtime_ns
    code, out, err = command(*asked)
    assert code == 1, err
    assert "1 completed, 1 failed" in out
    result = read_result(bad)
    assert (result.status, result.attempts) == ("failed", 2)
    assert "its process was killed 2 times without getting further, as for lack of memory" in (result.error or "")
    assert (good / "result.json").stat().st_mtime_ns == stamp


def test_a_job_has_a_time_limit(tmp_path: Path) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(TimedOut, match="timeout: the job took longer than hydra.sweeper.timeout=0.01 minutes"),
        limited(0.01, print),
    ):
        time.sleep(30)
    assert time.monotonic() - begun < 10
    with limited(0.01, print):
        pass
    time.sleep(0.7)  # nothing rings after the end
    # Everything is imported: an import is not to be interrupted.
    train(compose(*FAKE, "trainer.max_steps=1"), tmp_path / "first", {})
    config = compose(*FAKE, "trainer.max_steps=100000")
    with pytest.raises(ValueError, match="timeout: the job took longer"):
        train(config, tmp_path / "run", {}, minutes=0.02)
    found = read_result(tmp_path / "run")
    assert (found.status, found.attempts) == ("failed", 1)
    assert "timeout" in (found.error or "").strip().splitlines()[-1]
    assert attempts.killed(tmp_path / "run") == 0


HANGS = """
import ctypes, sys
from pathlib import Path
from provla.jobs import limit
limit.restart[:] = [sys.executable, "-c", "print('the others go on')"] if sys.argv[2] == "sweep" else []
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
limit.GRACE = 0.5
with limit.limited(0.01, Path(sys.argv[1]).write_text):
    libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)  # waits for ever, outside of Python
"""


@pytest.mark.parametrize(("role", "code", "said"), [("sweep", 0, "the others go on"), ("worker", 1, "")])
def test_a_hang_in_native_code_ends_the_process_or_begins_the_sweep_again(
    role: str, code: int, said: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-c", HANGS, str(tmp_path / "why"), role]
    found = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout.strip()) == (code, said), found.stderr
    assert "timeout: the job took longer" in (tmp_path / "why").read_text()
    assert "hung outside of Python" in (tmp_path / "why").read_text()


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "true"])
def test_a_limit_that_is_none_is_refused(minutes: str, command: Command, tmp_path: Path) -> None:
    code, _, err = command(
        "train", "-m", *FAKE, "seed=0,1", f"hydra.sweeper.timeout={minutes}", f"hydra.sweep.dir={tmp_path / 's'}"
    )
    assert code == 2
    assert "hydra.sweeper.timeout=" in err
    assert "expected minutes above 0, or null" in err
