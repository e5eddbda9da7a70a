"""Signals for real, at every moment of a run: what is done is kept, the exit code is 128 + n, and the same command goes
on to the same result.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_kill import write_dataset
from processes import SMALL, ended, outcome, run, start, wait, wait_for

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
PARTS = 2  # of an accumulated batch
OPTIONS = [
    *SMALL,
    "trainer.max_steps=12",
    "trainer.val_every=6",
    "trainer.log_every=4",
    "trainer.batch_size=4",
    f"trainer.grad_accumulation={PARTS}",
    "hydra.run.dir=run",
]


def fault_signal_in_a_training(place: Path) -> tuple[int, int, str]:
    """SIGTERM, SIGINT, SIGUSR1, SIGUSR2 in the first step, in the middle of accumulation, in a validation, in a save"""
    run(OPTIONS, place / "whole")
    expected = outcome(place / "whole" / "run")
    moments = {
        "first step": (lambda signum: _at_call("provla.trainer.loop", "seed_everything", 1, signum), 1),
        "accumulation": (lambda signum: _at_call("provla.trainer.loop", "seed_everything", 5 * PARTS - 1, signum), 5),
        "validation": (lambda signum: _at_call("provla.trainer.validation", "repeatable", 1, signum), 6),
        "save": (lambda signum: _at_call("provla.trainer.checkpoint", "save_tensors", 2, signum), 6),
    }
    survived, lost = 0, []
    for moment, (prepare, step) in moments.items():
        for signum in SIGNALS:
            folder = place / f"{moment} {signum.name}"
            code = wait(start(OPTIONS, folder, prepare=lambda prepare=prepare, signum=signum: prepare(signum)))
            stopped = (_step(folder / "run"), _status(folder / "run"), code) == (step, "interrupted", 128 + signum)
            run(OPTIONS, folder)
            good = stopped and outcome(folder / "run") == expected
            survived += good
            lost += [] if good else [f"{moment} {signum.name}: code {code}, step {_step(folder / 'run')}"]
    return len(moments) * len(SIGNALS), survived, "; ".join(lost) or "a checkpoint of that very step each time"


def fault_signal_elsewhere(place: Path) -> tuple[int, int, str]:
    """Signals while frames are decoded and while the policy is judged"""
    root = write_dataset(place / "dataset")
    decode = [
        *SMALL[1:],
        "dataset=lerobot",
        f"dataset.root={root}",
        "trainer.max_steps=4",
        "trainer.val_every=4",
        "hydra.run.dir=run",
    ]
    moments: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
        "decoding": (decode, lambda folder: [*(folder / "data").rglob(".*.partial")]),
        "judging": (OPTIONS, lambda folder: (folder / "run" / "policy").is_dir()),
    }
    survived, lost = 0, []
    for moment, (options, reached) in moments.items():
        run(options, place / moment / "whole")
        expected = outcome(place / moment / "whole" / "run")
        for signum in SIGNALS:
            folder = place / moment / signum.name
            child = start(options, folder)
            wait_for(child, lambda reached=reached, folder=folder: reached(folder))
            os.kill(child, signum)
            begun = time.monotonic()
            code, status, seconds = wait(child), _status(folder / "run"), time.monotonic() - begun
            left = [*(folder / "data").rglob(".*.partial")]
            run(options, folder)
            good = code == 128 + signum and status == "interrupted" and not left and outcome(folder / "run") == expected
            survived += good
            lost += [] if good else [f"{moment} {signum.name}: code {code}, {status}, {seconds:.1f} s"]
    return len(moments) * len(SIGNALS), survived, "; ".join(lost) or "ended at once, nothing half-written left"


def fault_signal_at_import(place: Path) -> tuple[int, int, str]:
    """Signals while a command imports what it needs"""
    survived, codes = 0, []
    for signum, delay in zip(SIGNALS, (0.4, 0.8, 1.6, 3.0), strict=True):
        (folder := place / signum.name).mkdir()
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "provla.train", *OPTIONS], cwd=folder, stdout=log, stderr=log
            )
            wait_for(process.pid, lambda pid=process.pid: _handles(pid, signal.SIGUSR1))  # Python itself has started
            time.sleep(delay)
            process.send_signal(signum)
            codes.append(process.wait(timeout=60))
        survived += codes[-1] == 128 + signum and "Traceback" not in (folder / "log.txt").read_text()
    return len(SIGNALS), survived, f"exit codes {', '.join(map(str, codes))}, no traceback"


def fault_second_signal(place: Path) -> tuple[int, int, str]:
    """A second signal in a step that takes a minute"""
    survived, times = 0, []
    for signum in (signal.SIGTERM, signal.SIGINT):
        folder = place / signum.name
        child = start(OPTIONS, folder, prepare=lambda: _at_call("provla.trainer.loop", "seed_everything", 1, None))
        wait_for(child, lambda folder=folder: (folder / "in the step").exists())
        os.kill(child, signum)
        time.sleep(1)
        still, begun = not ended(child), time.monotonic()
        os.kill(child, signum)
        code = wait(child, 60)
        times.append(time.monotonic() - begun)
        survived += still and code == 128 + signum and times[-1] < 2
    return 2, survived, f"ended in {max(times):.1f} s"


def fault_signal_to_a_sweep(place: Path) -> tuple[int, int, str]:
    """SIGTERM to a sweep: one job after the other, and two at a time by joblib and by submitit_local"""
    options = [
        o for o in OPTIONS if not o.startswith(("hydra.run", "trainer.max_steps", "trainer.val_every", "threads"))
    ]
    options += ["trainer.max_steps=400", "trainer.val_every=200", "threads=1"]
    survived, notes = 0, []
    for launcher in ("basic", "joblib", "submitit_local"):
        folder = place / launcher
        asked = ["-m", *options, "seed=0,1", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}"]
        asked += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
        child = start(asked, folder)
        count = 1 if launcher == "basic" else 2
        wait_for(child, lambda folder=folder, count=count: sum(_rows(job) > 1 for job in _jobs(folder)) == count)
        os.kill(child, signal.SIGTERM)
        code = wait(child, 120)
        statuses = [_status(job) for job in _jobs(folder)]
        kept = statuses == ["interrupted"] * count and all(_step(job) > 0 for job in _jobs(folder))
        again = wait(start(asked, folder))
        good = code == 143 and kept and again == 0 and [_status(job) for job in _jobs(folder)] == ["completed"] * 2
        survived += good
        notes += [] if good else [f"{launcher}: codes {code}, {again}, {statuses}"]
    return (
        3,
        survived,
        "; ".join(notes) or "a checkpoint in each job; no further job started; the same command finished",
    )


def _jobs(folder: Path) -> list[Path]:
    """Those of a sweep that have begun."""
    return sorted(file.parent for file in (folder / "sweep").glob("*/config.json"))


def fault_signal_to_a_recording(place: Path) -> tuple[int, int, str]:
    """SIGTERM and SIGINT to a recording in two processes"""
    import psutil

    survived = 0
    asked = [
        "dataset=metaworld",
        "dataset.tasks=[drawer-close,window-open]",
        "dataset.episodes_per_task=20",
        "dataset.image_size=64",
    ]
    for signum in (signal.SIGTERM, signal.SIGINT):
        folder = place / signum.name
        child = start([*asked, "dataset.workers=2"], folder, command="record")
        wait_for(child, lambda folder=folder: [*(folder / "data").rglob("*.mp4")])
        children = psutil.Process(child).children(recursive=True)
        os.killpg(child, signum) if signum == signal.SIGINT else os.kill(child, signum)
        code = wait(child, 60)
        left = [*(folder / "data" / "datasets").glob(".*.partial")]
        survived += code == 128 + signum and not left and not psutil.wait_procs(children, timeout=2)[1]
    return 2, survived, "workers ended, nothing half-recorded left"


def fault_signal_to_the_smoke_preset(place: Path) -> tuple[int, int, str]:
    """SIGTERM to trainer=smoke with the default policy: how long it takes"""
    options = ["dataset=fake", "env=none", "logger=csv", "trainer=smoke", "trainer.max_steps=400", "hydra.run.dir=run"]
    child = start(options, place / "smoke")
    wait_for(child, lambda: _rows(place / "smoke" / "run") > 0)
    begun = time.monotonic()
    os.kill(child, signal.SIGTERM)
    code, seconds = wait(child, 60), time.monotonic() - begun
    return 1, int(code == 143 and seconds < 5 and _step(place / "smoke" / "run") > 0), f"{seconds:.1f} s"


def _at_call(module: str, name: str, number: int, signum: signal.Signals | None) -> None:
    """In the process that is to be signalled: at the n-th call of a function it signals itself; without a signal, it
    dwells there.
    """
    found: Any = sys.modules[module]
    original, calls = getattr(found, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == number and signum is not None:
            os.kill(os.getpid(), signum)
        elif len(calls) == number:
            Path("in the step").touch()
            until = time.monotonic() + 60
            while time.monotonic() < until:  # a signal's handler would cut one long sleep short
                time.sleep(0.05)
        return original(*arguments, **options)

    setattr(found, name, counted)


def _handles(pid: int, signum: signal.Signals) -> bool:
    """Whether the process has a handler for the signal in place."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def _step(run: Path) -> int:
    return max(
        (int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdecimal()), default=0
    )


def _rows(run: Path) -> int:
    """Of metrics.csv, without its head."""
    path = run / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.is_file() else 0


def _status(run: Path) -> str:
    path = run / "result.json"
    return json.loads(path.read_text())["status"] if path.is_file() else "missing"
