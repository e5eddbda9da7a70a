"""The PyPI tool ckpt-chaos (MIT): it ends a training at every event of its files, in every way it knows, starts it
again and compares.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from processes import SMALL, serve, wait

MODES = "before,torn,term,unsynced"
POINTS = 10_000  # more than there are: every event


def fault_ckpt_chaos(place: Path) -> tuple[int, int, str]:
    """ckpt-chaos, every file event of a run with two checkpoints: killed before it, files cut in half, SIGTERM,
    unsynced data lost
    """
    if find_spec("ckpt_chaos") is None:
        return 0, 0, "not done: ckpt-chaos is not installed (make faults brings it)"
    server = serve(str(place / "address"))
    client = [sys.executable, "-E", "-S", str(Path(__file__).parent / "client.py"), str(place / "address")]
    job = [
        *client,
        *SMALL,
        "threads=1",
        "trainer.max_steps=2",
        "trainer.val_every=1",
        "trainer.log_every=1",
        "hydra.run.dir={out}",
    ]
    asked = [
        "--modes",
        MODES,
        "--max-points",
        str(POINTS),
        "--jobs",
        str(os.cpu_count()),
        "--work",
        str(place / "work"),
        "--grace",
        "60",
    ]
    asked += ["--result-file", "{out}/policy/weights.safetensors"]
    asked += [
        "--ckpt-ignore-size",
        "--checkpoint-glob",
        "{out}/checkpoints/step_*",
        "--step-regex",
        r"(?:resuming from|already, at) step (\d+)",  # a run that is over has lost nothing either
    ]
    try:
        with (place / "log.txt").open("w") as log:
            subprocess.run(
                [sys.executable, "-m", "ckpt_chaos", "run", *asked, "--", *job],
                cwd=place,
                stdout=log,
                stderr=log,
                check=False,
            )
    finally:
        os.kill(server, signal.SIGKILL)
        wait(server)
    from ckpt_chaos.runner import rejudge

    rows = rejudge(place / "work")
    verdicts = Counter(row.verdict for row in rows)
    note = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    bad = [f"{row.label}: {row.verdict}" for row in rows if row.verdict != "PASS"][:5]
    return len(rows), verdicts["PASS"], "; ".join([note or (place / "log.txt").read_text()[-300:], *bad])
