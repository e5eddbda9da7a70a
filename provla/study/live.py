"""A running sweep, as it goes: a page on this machine, and the same in the terminal. It reads the folder, and writes
nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from provla.core.files import SWEEP
from provla.core.progress import console
from provla.jobs import attempts
from provla.study.study import Study, load_study, read_curve
from provla.study.tables import STATES
from provla.study.verdict import judge
from provla.study.words import signed

EVERY = 2.0  # seconds between two looks
CURVE = "trajectory_mse"


def follow(folder: Path, margin: float, port: int, every: float = EVERY) -> None:
    """Serves the page and redraws the table until the sweep is over. port: of the page, on this machine alone; 0: any.
    `ValueError` where the port is taken.
    """
    watch = Watch(folder, margin)
    state = watch.look()
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(lambda: state))
    except OSError as error:
        raise ValueError(f"port={port}: {error.strerror}; choose another, or 0 for any that is free") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    console.print(f"live: http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it, not the sweep)", soft_wrap=True)
    try:
        with Live(_table(state), console=console, auto_refresh=False) as live:
            while not state["over"]:
                time.sleep(every)
                state = watch.look()
                live.update(_table(state), refresh=True)
    finally:
        server.shutdown()
        server.server_close()
    console.print(f"the sweep is over: python -m provla.report folder={folder}", soft_wrap=True)


class Watch:
    """A sweep's folder, looked at again and again; its results are read and judged anew where one of them changed."""

    def __init__(self, folder: Path, margin: float) -> None:
        self._folder, self._margin = folder, margin
        self._seen: dict[Path, tuple[int, int]] | None = None

    def look(self) -> dict[str, Any]:
        """What the folder says now: jobs by state, arms with their figures so far, curves, time left."""
        if (seen := self._results()) != self._seen:
            self._study = load_study(self._folder)
            self._arms, self._seen = _arms(self._study, self._margin), seen
        study = self._study
        jobs = [
            {"folder": run.job.folder, "arm": run.job.arm, "seed": run.job.seed, "state": _state(run)}
            for run in study.runs
        ]
        states = Counter(job["state"] for job in jobs)
        left = sum(states[state] for state in ("missing", "interrupted", "running"))
        seconds = [run.result.wall_seconds for run in study.completed if run.result.wall_seconds]
        return {
            "study": study.sweep.study or self._folder.name,
            "question": study.sweep.question,
            "metric": study.metric,
            "baseline": study.sweep.baseline,
            "jobs": jobs,
            "states": {state: states[state] for state in ("running", *STATES) if states[state]},
            "arms": self._arms,
            "curves": {run.job.folder: curve for run in study.runs if (curve := read_curve(run.folder, CURVE))},
            "seconds_left": left * sum(seconds) / len(seconds) if seconds and left else None,
            "over": bool(jobs) and not left,
        }

    def _results(self) -> dict[Path, tuple[int, int]]:
        """Which files say what is asked and what came of it; each is written by a rename."""
        found = {}
        for path in (self._folder / SWEEP, *self._folder.glob("*/result.json"), *self._folder.glob("*/config.json")):
            with suppress(FileNotFoundError):  # replaced just now
                found[path] = (stat := path.stat()).st_mtime_ns, stat.st_ino
        return found


def _state(run: Any) -> str:
    """As in a report, but `running` where a process has begun."""
    return "running" if run.status in ("interrupted", "missing") and attempts.begun(run.folder) else str(run.status)


def _arms(study: Study, margin: float) -> list[dict[str, Any]]:
    """Means and differences so far. No words: to look at a verdict while it can still be changed is how one errs."""
    if study.sweep.kind != "grid":
        runs = [run for run in study.completed if math.isfinite(run.value)]
        return [{"arm": run.job.folder, "runs": 1, "mean": run.value, "difference": ""} for run in runs]
    try:
        verdict = judge(study, margin, trial=False)
    except ValueError as error:  # unpaired, say: the report will name it
        return [{"arm": str(error), "runs": 0, "mean": None, "difference": ""}]
    rows = []
    for arm in verdict.arms:
        found, difference = arm.comparison, "baseline" if arm.name == study.sweep.baseline else ""
        if found and math.isfinite(found.low):
            one, low, high = (signed(x, verdict.percent) for x in (found.difference, found.low, found.high))
            difference = f"{one} ({low} to {high})"
        mean = arm.mean if math.isfinite(arm.mean) else None
        rows.append({"arm": arm.name, "runs": len(arm.seeds), "mean": mean, "difference": difference})
    return rows


def _table(state: dict[str, Any]) -> Table:
    states = ", ".join(f"{count} {name}" for name, count in state["states"].items())
    left = f"; about {state['seconds_left'] / 60:.0f} minutes left" if state["seconds_left"] else ""
    table = Table(
        title=f"{state['study']}: {states}{left}", title_justify="left", caption="so far, not final: no words yet"
    )
    for column in ("arm", "runs", state["metric"], "difference"):
        table.add_column(column, overflow="fold")
    for row in state["arms"]:
        mean = "–" if row["mean"] is None else f"{row['mean']:.4g}"
        table.add_row(row["arm"], str(row["runs"]), mean, row["difference"])
    return table


def _handler(state: Callable[[], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    place = Path(__file__).parent
    script = (place / "live.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (place / "live.html").read_text().replace("{{ script }}", script)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._send(page.encode(), "text/html; charset=utf-8")
            elif self.path == "/state.json":
                self._send(json.dumps(_plain(state())).encode(), "application/json")
            else:
                self.send_error(404)

        def _send(self, body: bytes, kind: str) -> None:
            # A page of another origin that found a name for this address has no business here.
            if (self.headers.get("Host") or "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(403)
                return
            self.send_response(200)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Security-Policy", policy),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the terminal shows the sweep."""

    return Handler


def _plain(value: Any) -> Any:
    """Without numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
