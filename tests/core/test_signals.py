"""Signals for real, sent to this process: what each moment of a run makes of one. With more moments and processes:
benchmarks/faults/fault_signals.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import FAKE
from test_trainer import CPU, fit, setup

from provla.core import signals
from provla.core.errors import Interrupted
from provla.trainer.checkpoint import Checkpoints

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 4)])
def test_a_training_ends_at_its_steps_end_and_goes_on_bit_for_bit(
    tmp_path: Path, signum: signal.Signals, step: int
) -> None:
    """Also where the signal comes between a step and its validation (step 4)."""
    options = [
        "trainer.max_steps=6",
        "trainer.val_every=4",
        "trainer.log_every=3",
        "trainer.batch_size=4",
        "trainer.grad_accumulation=2",
    ]
    whole, expected = fit(tmp_path / "whole", *options)
    policy, trainer, train, val = setup(*options)
    seen = []

    def signalled(module: object, arguments: object) -> None:  # in the first of a step's two parts
        seen.append(0)
        if len(seen) == 2 * step - 1:
            os.kill(os.getpid(), signum)

    policy.head.register_forward_pre_hook(signalled)
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as error, signals.listening():
        trainer.fit(policy, train, val, Checkpoints(tmp_path / "part"), 0, CPU, lambda step, row: None)
    assert error.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is before
    stored = Checkpoints(tmp_path / "part").load()
    assert stored is not None
    assert stored[1]["fit"]["step"] == step
    resumed, found = fit(tmp_path / "part", *options)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    rows = [
        [{k: v for k, v in row.items() if "per_second" not in k} for row in one.history] for one in (resumed, whole)
    ]
    assert rows[0] == rows[1]


def test_a_command_ends_with_128_and_the_signal_and_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def when_it_trains() -> None:
        while not (run / "metrics.csv").is_file() or (run / "metrics.csv").read_text().count("\n") < 4:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    fake = [o for o in FAKE if not o.startswith(("logger", "trainer.max_steps", "trainer.val_every"))]
    threading.Thread(target=when_it_trains, daemon=True).start()
    asked = [
        "train",
        *fake,
        "logger=csv",
        "trainer.max_steps=100000",
        "trainer.val_every=100000",
        f"hydra.run.dir={run}",
    ]
    code, _, err = command(*asked)
    assert code == 143
    assert "SIGTERM: ending after this step, with a checkpoint; a second signal ends at once" in err
    assert "error: ended by SIGTERM; the same command with the same folder" in err
    assert "Traceback" not in err
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["attempts"]) == ("interrupted", 0)
    stored = Checkpoints(run / "checkpoints").load()
    assert stored is not None
    assert stored[1]["fit"]["step"] >= 3


def test_elsewhere_a_signal_ends_at_once_and_a_block_may_hold_it_back() -> None:
    done = []

    def work(number: int) -> None:
        for _ in range(number):  # at the same moment they are the same request
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(Interrupted), signals.listening():
        work(1)
    assert done == []
    with pytest.raises(Interrupted), signals.listening(), signals.deferred():
        work(2)
    assert done == [2]
    signals.check()  # nothing of it is left


def test_between_its_jobs_a_worker_remembers_a_signal(tmp_path: Path) -> None:
    """A launcher's process: a signal between two jobs does not raise in the launcher's own code, and no further job
    starts.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            with signals.working():
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)  # the sweep's business
            try:
                with signals.working():
                    code = 2
            except Interrupted:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_while_a_command_prepares_is_said_in_a_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provla.command.compose.register", lambda: os.kill(os.getpid(), signal.SIGUSR1))
    code, _, err = command("train", *FAKE)
    assert code == 138
    assert err.startswith("error: ended by SIGUSR1; the same command")


def test_a_signal_waits_for_the_end_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised in the middle of one, it may be swallowed there, and leaves a module that is half made (numpy's)."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.2)\n"
        "except BaseException:\n    pass\ndone = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> None:
        with signals.listening():
            import_module("slow_to_import")
            time.sleep(5)

    with pytest.raises(Interrupted):
        load()
    assert sys.modules["slow_to_import"].done
