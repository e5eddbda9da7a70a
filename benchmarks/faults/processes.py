"""Commands in processes of their own that start in milliseconds: forked from this one, which has imported all that they
need.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# What a training imports when it comes to it.
import accelerate.state  # noqa: F401
from diffusers import DDIMScheduler  # noqa: F401
from torch.utils.flop_counter import FlopCounterMode  # noqa: F401
from transformers import AutoModel, AutoTokenizer, ByT5Tokenizer, Qwen2Model  # noqa: F401

import provla.run.plots
import provla.run.train
import provla.train

sys.path.append(str(Path(__file__).parents[1]))
from tiny import TINY

SMALL = [*TINY, "env=none", "logger=csv", "threads=2"]


with tempfile.TemporaryDirectory() as place:  # the first picture of a process reads its fonts
    provla.run.plots.plot_losses([{"step": 1, "train/loss": 1.0, "val/loss": 2.0}], Path(place) / "loss.png")


def start(
    arguments: Sequence[str], folder: Path, command: str = "train", prepare: Callable[[], None] | None = None
) -> int:
    """Starts `python -m provla.<command> …` in `folder`, in a process group of its own; its id. What it says goes to
    log.txt.

    prepare: called in the new process first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        os.chdir(folder)
        os.environ.setdefault("PROVLA_DATA", str(folder / "data"))
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [f"provla.{command}", *arguments]
        if prepare is not None:
            prepare()
        __import__(f"provla.{command}", fromlist=["main"]).main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(address: str) -> int:
    """A process that starts jobs for others who can only run a command: `python -E -S client.py <address> <argument> …`
    is then the same as `python -m provla.train <argument> …`, but for the seconds of the imports. Its id; to be
    killed.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    if server := os.fork():
        listener.close()
        return server
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Runs what is asked for, with the asker's output, folder and environment; tells its exit code and ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, handles, _, _ = socket.recv_fds(connection, 2**20, 2)
    asked = json.loads(message)
    child = start(asked["arguments"], Path(asked["folder"]), prepare=lambda: _as_asked(asked["environment"], handles))
    connection.sendall(json.dumps(wait(child)).encode())
    os._exit(0)


def _as_asked(environment: dict[str, str], handles: list[int]) -> None:
    for number, handle in enumerate(handles, 1):
        os.dup2(handle, number)
    os.environ.clear()
    os.environ.update(environment)
    if "CKPT_CHAOS_WATCH" in environment:
        from ckpt_chaos.targets.common import arm_from_env

        arm_from_env(0, lazy=True)


def ended(child: int) -> bool:
    """Whether the process is over; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(child: int, seconds: float = 600) -> int:
    """Its exit code, −n where signal n killed it; a process that does not end in time is killed, and the code
    is 1000.
    """
    until = time.monotonic() + seconds
    while not ended(child):
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 1000
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(child: int, condition: Callable[[], object]) -> bool:
    """Waits until the condition holds; False where the process ended before."""
    while not condition():
        if ended(child):
            return False
        time.sleep(0.001)
    return True


def run(arguments: Sequence[str], folder: Path) -> None:
    """The command, to its good end."""
    if code := wait(start(arguments, folder)):
        raise RuntimeError(f"exit code {code}: {(folder / 'log.txt').read_text()[-2000:]}")


def outcome(run: Path) -> tuple[str, list[dict[str, str]]]:
    """What must not depend on a kill: the hash of the policy's weights, and metrics.csv without the columns of time."""
    digest = hashlib.sha256((run / "policy" / "weights.safetensors").read_bytes()).hexdigest()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return digest, [{key: value for key, value in row.items() if "per_second" not in key} for row in rows]
