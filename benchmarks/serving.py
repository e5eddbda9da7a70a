"""Load on a server: 8 clients at 30 Hz for a minute: python benchmarks/serving.py <run> [seconds]

The server is `python -m provla.serve checkpoint=<run>` in a process of its own, the clients are threads of this one, on
the same machine. As robots: each executes `n_action_steps` of a chunk at 30 Hz and asks for the next when it begins to,
so that an answer is late where it comes after the last of them. Every step: each asks at every control step, as soon as
it can where it is behind, which shows what the server gives at most. Lost is what was asked and never answered.
Writes benchmarks/serving.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from provla.core.files import ROOT, write_json
from provla.core.machine import commit, find_device, machine
from provla.serving.client import Client

CLIENTS, HZ = 8, 30.0


@contextmanager
def served(run: str) -> Any:
    """The port of a server."""
    command = [sys.executable, "-m", "provla.serve", f"checkpoint={run}", "port=0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        seen = ""
        while "page: http://127.0.0.1:" not in seen:
            line = server.stdout.readline()
            assert line, f"the server ended with {server.wait()}"
            seen += line
        yield int(seen.rpartition("page: http://127.0.0.1:")[2].partition("/")[0])
    finally:
        server.terminate()
        server.wait(30)


def robot(port: int, number: int, every: float, seconds: float) -> tuple[int, list[float], float]:
    """How often it asked, how long each answer took [s], and how far it was behind its schedule at most [s]."""
    rng, taken, asked, behind = np.random.default_rng(number), [], 0, 0.0
    with Client("127.0.0.1", port) as client:
        h, w = client.facts["image_size"]
        words = client.facts["instructions"]
        pictures = {name: rng.integers(0, 256, (h, w, 3), np.uint8) for name in client.facts["cameras"]}
        state = rng.normal(size=client.facts["state_shape"][-1]).astype(np.float32)
        message = {"images": pictures, "state": state, "prompt": words[number % len(words)]}
        begun = time.perf_counter() + every * rng.uniform()  # robots do not begin together
        due = begun
        while due < begun + seconds:
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            behind = max(behind, -wait)
            at = time.perf_counter()
            asked += 1
            chunk = client.infer(message)["actions"]
            taken.append(time.perf_counter() - at)
            assert chunk.shape == (client.facts["horizon"], client.facts["action_size"])
            due += every
            if every == 1 / HZ:
                due = max(due, time.perf_counter())
    return asked, taken, behind


def load(port: int, steps: int, seconds: float) -> dict[str, Any]:
    """What clients that ask every `steps` control steps meet."""
    every = steps / HZ
    with ThreadPoolExecutor(CLIENTS) as pool:
        begun = time.perf_counter()
        found = list(pool.map(lambda number: robot(port, number, every, seconds), range(CLIENTS)))
        lasted = time.perf_counter() - begun
    taken = np.concatenate([taken for _, taken, _ in found]) * 1000
    asked = sum(count for count, _, _ in found)
    p50, p99 = np.percentile(taken, [50, 99])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state.json") as answer:
        state = json.load(answer)
    return {
        "steps_per_chunk": steps,
        "seconds": round(lasted, 1),
        "asked": asked,
        "lost": asked - len(taken),
        "late": int((taken > 1000 * every).sum()),
        "answers_per_second": round(len(taken) / lasted, 1),
        "wanted_per_second": round(CLIENTS / every, 1),
        "latency_ms": {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "max": round(float(taken.max()), 1)},
        "pass_ms": {key: round(value, 1) for key, value in state["pass_ms"].items()},
        "clients_per_pass": round(state["together"], 2),
    }


def main() -> None:
    run, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    steps = json.loads((Path(run) / "config.json").read_text())["n_action_steps"]
    found = {}
    for name, every in (("as robots", steps), ("every step", 1)):
        with served(run) as port:  # a server each, so that its figures are of this load
            found[name] = load(port, every, seconds)
        print(json.dumps({name: found[name]}), flush=True)
    where = {**machine(find_device("cpu")), "cpus": os.cpu_count()}
    made = {"date": time.strftime("%Y-%m-%d"), "commit": commit()["commit"], "machine": where}
    write_json(ROOT / "benchmarks" / "serving.json", {"clients": CLIENTS, "hz": HZ, **found, **made})


if __name__ == "__main__":
    main()
