"""A process that uploads a W&B run while it is written: `main(<folder of the run's W&B files>)`. It ends with its
parent.

W&B's own `sync --live` would wait for ever for the end of a run that was killed. The parent holds this process's stdin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

GRACE = 10.0  # seconds that W&B has to end when its parent has
UNREACHED = 20.0  # after which a service that has not answered is not waited for
DONE = "Finished syncing"  # what W&B says when everything was sent
REACHED = "View run"  # and when the service has answered


class Upload:
    """The uploading process of a run. What it says goes into upload.log beside the run's W&B files."""

    def __init__(self, files: Path) -> None:
        self.files, self._log, self._begun = files, files / "upload.log", time.monotonic()
        names = ("WANDB_MODE", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SILENT", "WANDB_SERVICE")
        environment = {key: value for key, value in os.environ.items() if key not in names} | {
            "WANDB_DIR": str(files.parents[1])
        }
        environment["PYTHONPATH"] = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from provla.logger.upload import main; main()", str(files)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=files,
                start_new_session=True,  # a Ctrl-C at the terminal ends the run, and the run this
            )

    def finish(self, seconds: float) -> bool:
        """Waits that long for the rest, and less for a service that has not answered since the upload began. Whether
        everything was sent.
        """
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < (
            end if self.reached else min(end, self._begun + UNREACHED)
        ):
            time.sleep(0.1)
        done = self._process.poll() == 0 and DONE in self._said() and "ERROR" not in self._said()
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not done:  # W&B marks as sent what it has given up
            for mark in self.files.glob("*.synced"):
                mark.unlink(missing_ok=True)
        return done

    @property
    def reached(self) -> bool:
        return REACHED in self._said()

    def problem(self) -> str:
        """The last error that W&B named, in a line."""
        lines = [line for line in self._said().splitlines() if "ERROR" in line or "Error" in line]
        return lines[-1].strip()[:200] if lines else ""

    def _said(self) -> str:
        return self._log.read_text(errors="replace")


def main() -> None:
    files = sys.argv[1]
    work = subprocess.Popen(
        [sys.executable, "-m", "wandb", "beta", "sync", "--live", "--no-skip-synced", files], stdin=subprocess.DEVNULL
    )
    threading.Thread(target=_end_with_parent, args=(work,), daemon=True).start()
    os._exit(work.wait() != 0)  # the thread still reads


def _end_with_parent(work: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    work.terminate()
    with suppress(subprocess.TimeoutExpired):
        work.wait(GRACE)
    work.kill()
