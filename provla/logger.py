"""Trackers: where the metrics, plots and videos of a run go besides its result."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from provla.files import write_json, write_text, writing
from provla.progress import console
from provla.secrets import hide, hide_in

# Which W&B run a folder belongs to, so that a resumed run goes on in it.
WANDB_RUN = "wandb_run.json"


class NoLogger:
    """Nothing is kept but the run's result."""

    def start(self, folder: Path, config: Mapping[str, Any], name: str, group: str | None, history: Sequence[Mapping[str, float]]) -> None:
        """history: the rows already logged before this start, where a run is resumed."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """metrics: name → number."""

    def media(self, plots: Sequence[Path], videos: Sequence[Path]) -> None:
        """Files to show."""

    def chunks(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Predicted and demonstrated chunks, a row per observation, joint and step."""

    def checkpoint(self, folder: Path, aliases: Sequence[str]) -> None:
        """A checkpoint that was written just now. aliases: what it is: latest, best."""

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        """summary: the run's final metrics."""


class CsvLogger(NoLogger):
    """metrics.csv in the run's folder: a row per logged step, a column per metric."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._columns = ["step"]

    def start(self, folder: Path, config: Mapping[str, Any], name: str, group: str | None, history: Sequence[Mapping[str, float]]) -> None:
        self._path = folder / "metrics.csv"
        self._rows = [dict(row) for row in history]
        self._columns = list(dict.fromkeys(["step", *(key for row in self._rows for key in row)]))
        self._write()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        self._rows.append(row)
        if set(row) <= set(self._columns):
            with writing(self._path), self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._columns = list(dict.fromkeys([*self._columns, *row]))
            self._write()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())


class WandbLogger(CsvLogger):
    """Weights & Biases, and metrics.csv beside it. One W&B run per job; its files lie in the run's folder.

    mode: online, offline, or auto: online when a key is set (WANDB_API_KEY, in the environment or in `.env`) and the
    service answers, else offline. artifacts: keep checkpoints as artifacts (aliases latest and best), from which
    `resume=wandb://<entity>/<project>/<name>:<alias>` goes on elsewhere; auto: where the run is online. A run that is
    resumed goes on in its W&B run. A service that fails later never stops the run.
    """

    def __init__(self, project: str, entity: str | None, mode: str, artifacts: str | bool = "auto") -> None:
        super().__init__()
        if mode not in ("auto", "online", "offline"):
            raise ValueError(f"logger.mode={mode!r}; valid: auto, online, offline")
        if artifacts not in ("auto", True, False):
            raise ValueError(f"logger.artifacts={artifacts!r}; valid: auto, true, false")
        self._project, self._entity, self._mode, self._artifacts = project, entity, mode, artifacts
        self._run: Any = None

    def start(self, folder: Path, config: Mapping[str, Any], name: str, group: str | None, history: Sequence[Mapping[str, float]]) -> None:
        super().start(folder, config, name, group, history)
        import wandb
        from wandb.util import generate_id

        mode = self._choose()
        # The command line stays out of the record: nobody's secret belongs there.
        settings = wandb.Settings(silent=True, init_timeout=20, x_disable_meta=True, disable_git=True, console="off")
        stored = folder / WANDB_RUN
        run_id = json.loads(stored.read_text())["id"] if stored.is_file() else generate_id()
        options = {"project": self._project, "entity": self._entity, "dir": str(folder), "config": hide_in(config), "name": hide(name), "group": group}
        for attempt in (mode, "offline"):
            try:
                resume = "allow" if attempt == "online" else None  # offline, the same id joins them when they are synced
                self._run = wandb.init(**options, id=run_id, resume=resume, mode=attempt, settings=settings, reinit="finish_previous")  # type: ignore[arg-type]
                write_json(stored, {"id": run_id})
                if self._artifacts == "auto":
                    self._artifacts = attempt == "online"
                return
            except Exception as error:
                console.print(f"W&B could not start in mode {attempt} ({type(error).__name__})")
        console.print("W&B is off for this run; metrics.csv has everything")

    def _choose(self) -> str:
        if self._mode != "auto":
            return self._mode
        if not os.environ.get("WANDB_API_KEY"):
            console.print("W&B: offline, because WANDB_API_KEY is not set (environment or .env); `wandb sync` uploads the run later")
            return "offline"
        server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        try:
            socket.create_connection((server.hostname or "", server.port or (443 if server.scheme == "https" else 80)), timeout=3).close()
        except OSError:
            console.print("W&B: offline, because the service does not answer; `wandb sync` uploads the run later")
            return "offline"
        return "online"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        self._safely(lambda: self._run.log(dict(metrics), step=step))

    def media(self, plots: Sequence[Path], videos: Sequence[Path]) -> None:
        import wandb

        self._safely(
            lambda: self._run.log(
                {f"plots/{p.stem}": wandb.Image(str(p)) for p in plots} | {f"videos/{v.stem}": wandb.Video(str(v), format="mp4") for v in videos}
            )
        )

    def chunks(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        if rows:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._safely(lambda: self._run.log({"chunks": table}))

    def checkpoint(self, folder: Path, aliases: Sequence[str]) -> None:
        import wandb

        def upload() -> None:
            artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="model", metadata={"run": self._run.id, "step": folder.name})
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact, aliases=list(aliases))

        if self._artifacts is True:
            self._safely(upload)

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        self._safely(lambda: self._run.summary.update(dict(summary)))
        self._safely(lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _safely(self, call: Any) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:
            console.print(f"W&B failed ({type(error).__name__}: {error}); the run goes on without it")
            self._run = None


def download_checkpoint(uri: str, target: Path) -> Path:
    """The files of a `wandb://<entity>/<project>/<name>:<alias>` artifact, in `target`. `ValueError` where it cannot be had."""
    name = uri.removeprefix("wandb://")
    if name.count("/") != 2 or ":" not in name:
        raise ValueError(f"resume={uri!r}: expected wandb://<entity>/<project>/<name>:<alias>, such as wandb://me/provla/checkpoint-1a2b3c4d:latest")
    import wandb

    try:
        return Path(wandb.Api(timeout=20).artifact(name, type="model").download(root=str(target)))
    except Exception as error:  # wandb raises many kinds, its own and its transport's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"resume={uri!r} could not be fetched from W&B: {reason}\nCheck the name, WANDB_API_KEY (in the environment or in .env) and the connection, "
            "or download the artifact elsewhere and give resume=<folder>."
        ) from error
