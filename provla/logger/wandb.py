"""Trackers: where the metrics, plots and videos of a run go besides its result."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from provla.core.checks import Name
from provla.core.files import link_or_copy, write_json
from provla.core.progress import console
from provla.core.result import Result
from provla.core.secrets import hide, hide_in
from provla.logger.csv import CsvLogger
from provla.logger.upload import Upload

# Which W&B run a folder belongs to, so that a resumed run goes on in it.
WANDB_RUN = "wandb_run.json"


# Seconds that W&B has after the end of a run, and after one that failed or was interrupted.
PATIENCE, HASTE = 30.0, 3.0


class WandbLogger(CsvLogger):
    """Weights & Biases, and metrics.csv beside it. One W&B run per job; its files lie in the run's folder.

    mode: online, offline, or auto: online when a key is set (WANDB_API_KEY, in the environment or in `.env`) and the
    service answers, else offline. artifacts: keep checkpoints as artifacts (aliases latest and best), from which
    `resume=wandb://<entity>/<project>/<name>:<alias>` goes on elsewhere; auto: where the run is online.

    The run waits for W&B nowhere: every call is made in a thread, the record is written to disk as W&B's offline mode
    does, and where the mode is online another process uploads it meanwhile. What that has not sent some seconds after
    the run's end is left to `wandb sync`. A resumed run writes its record anew, whole and under the same id.
    """

    def __init__(
        self,
        project: Name,
        entity: Name | None,
        mode: Literal["auto", "online", "offline"],
        artifacts: Literal["auto", True, False] = "auto",
    ) -> None:
        super().__init__()
        self._project, self._entity, self._mode, self._artifacts = project, entity, mode, artifacts
        self._run: Any = None
        self._upload: Upload | None = None
        self._calls: Background | None = None

    def start(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        group: str | None,
        history: Sequence[Mapping[str, float]],
        tags: Sequence[str] = (),
    ) -> None:
        super().start(folder, config, name, group, history, tags)
        self._folder, self._calls = folder, Background("W&B")
        options = {
            "config": hide_in(config),
            "name": hide(name),
            "group": group,
            "tags": [hide(tag)[:64] for tag in tags],
        }
        rows = [dict(row) for row in history]
        self._calls(lambda: self._open(options, rows))

    def _open(self, options: dict[str, Any], history: Sequence[dict[str, float]]) -> None:
        import wandb
        from wandb.util import generate_id

        online = self._choose() == "online"
        # The command line stays out of the record: nobody's secret belongs there.
        settings = wandb.Settings(silent=True, x_disable_meta=True, disable_git=True, console="off")
        stored = self._folder / WANDB_RUN
        run_id = json.loads(stored.read_text())["id"] if stored.is_file() else generate_id()
        place: dict[str, Any] = {"project": self._project, "entity": self._entity, "dir": str(self._folder)}
        try:
            self._run = wandb.init(
                **place, **options, id=run_id, mode="offline", settings=settings, reinit="finish_previous"
            )
            write_json(stored, {"id": run_id})
        except Exception as error:
            console.print(
                f"W&B could not start ({type(error).__name__}); it is off for this run, and metrics.csv has everything"
            )
            return
        if self._artifacts == "auto":
            self._artifacts = online
        for row in history:
            self._run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        if online:
            self._upload = Upload(Path(self._run.settings.sync_dir))

    def _choose(self) -> str:
        if self._mode != "auto":
            return self._mode
        if not os.environ.get("WANDB_API_KEY"):
            console.print(
                "W&B: offline, because WANDB_API_KEY is not set (environment or .env); `wandb sync` uploads the run "
                "later"
            )
            return "offline"
        server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        try:
            socket.create_connection(
                (server.hostname or "", server.port or (443 if server.scheme == "https" else 80)), timeout=3
            ).close()
        except OSError:
            console.print("W&B: offline, because the service does not answer; `wandb sync` uploads the run later")
            return "offline"
        return "online"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        row = dict(metrics)
        self._call(lambda: self._run.log(row, step=step))

    def media(self, plots: Sequence[Path], videos: Sequence[Path]) -> None:
        def show() -> None:
            import wandb

            pictures = {f"plots/{p.stem}": wandb.Image(str(p)) for p in plots}
            self._run.log(pictures | {f"videos/{v.stem}": wandb.Video(str(v), format="mp4") for v in videos})

        self._call(show)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        def show() -> None:
            import wandb

            self._run.log({name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})

        if rows:
            self._call(show)

    def checkpoint(self, folder: Path, aliases: Sequence[str]) -> None:
        if self._artifacts is False or self._calls is None:
            return
        copy = self._folder / "wandb" / f".{folder.name}-{uuid.uuid4().hex[:8]}"
        try:  # under another name, the files outlive their folder; a checkpoint's are never written to again
            shutil.copytree(folder, copy, copy_function=link_or_copy)
        except OSError as error:
            console.print(f"W&B: {folder.name} is not kept as an artifact ({error})")
            return

        def keep() -> None:
            import wandb

            try:
                if self._artifacts is True and self._run is not None:
                    artifact = wandb.Artifact(
                        f"checkpoint-{self._run.id}", type="model", metadata={"run": self._run.id, "step": folder.name}
                    )
                    for file in sorted(path for path in copy.rglob("*") if path.is_file()):  # `add_dir` talks
                        artifact.add_file(str(file), name=file.relative_to(copy).as_posix())
                    self._run.log_artifact(artifact, aliases=list(aliases))
            finally:
                shutil.rmtree(copy, ignore_errors=True)

        self._calls(keep)

    def finish(self, result: Result, failed: bool = False) -> None:
        if self._calls is None:
            return
        found = summary(result)
        self._call(lambda: self._run.summary.update(found))
        self._call(lambda: self._run.finish(exit_code=int(failed)))
        end = time.monotonic() + (HASTE if failed else PATIENCE)
        whole = self._calls.finish(end - time.monotonic())
        if not whole:
            _end_service()
        if self._upload is not None:
            if not self._upload.finish(end - time.monotonic()):
                problem = self._upload.problem()
                console.print(
                    f"W&B has not got everything{f' ({hide(problem)})' if problem else ''}; send the run later:  wandb "
                    f"sync {self._upload.files}",
                    soft_wrap=True,
                )
        elif not whole:
            console.print(
                f"W&B does not answer on this machine; its record of this run in {self._folder / 'wandb'} may lack the "
                "end, metrics.csv does not"
            )
        self._run = self._upload = self._calls = None

    def _call(self, call: Callable[[], Any]) -> None:
        """Makes a call of W&B in its thread, in its turn; none where W&B could not start."""
        if self._calls is not None:
            self._calls(lambda: call() if self._run is not None else None)


class Background:
    """Calls that are made in their order in a thread: who asks never waits, and an error there ends nothing here."""

    def __init__(self, name: str) -> None:
        self._name, self._complained = name, False
        self._queue: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __call__(self, call: Callable[[], Any]) -> None:
        self._queue.put(call)

    def finish(self, seconds: float) -> bool:
        """Whether all calls were made, in the seconds that they are given."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception as error:
                if not self._complained:
                    console.print(
                        f"{self._name} failed ({type(error).__name__}: {hide(str(error))}); the run goes on without "
                        "what it was to keep"
                    )
                self._complained = True


def summary(result: Result) -> dict[str, Any]:
    """What runs are filtered by, flat: metrics, success with its interval, parameters, and every plain value of a
    result.
    """
    found: dict[str, Any] = {
        key: value for key, value in result.as_json().items() if isinstance(value, int | float | str)
    }
    found |= result.metrics
    for name, cell in result.success.items():
        key = name if name == "success_rate" else f"success_rate/{name}"
        found |= {
            key: cell["rate"],
            f"{key}/low": cell["low"],
            f"{key}/high": cell["high"],
            f"{key}/episodes": cell["episodes"],
        }
    found |= {
        f"parameters/{key}": value for key, value in (result.parameters or {}).items() if isinstance(value, int | float)
    }
    return found


def _end_service() -> None:
    """W&B waits for its service at the end of this process. One that does not answer is ended."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.name().startswith("wandb-core"):
                child.kill()


def download_checkpoint(uri: str, target: Path) -> Path:
    """The files of a `wandb://<entity>/<project>/<name>:<alias>` artifact, in `target`. `ValueError` where it cannot be
    had.
    """
    name = uri.removeprefix("wandb://")
    if name.count("/") != 2 or ":" not in name:
        raise ValueError(
            f"resume={uri!r}: expected wandb://<entity>/<project>/<name>:<alias>, such as "
            "wandb://me/provla/checkpoint-1a2b3c4d:latest"
        )
    import wandb

    try:
        return Path(wandb.Api(timeout=20).artifact(name, type="model").download(root=str(target)))
    except Exception as error:  # wandb raises many kinds, its own and its transport's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"resume={uri!r} could not be fetched from W&B: {reason}\nCheck the name, WANDB_API_KEY (in the "
            "environment or in .env) and the connection, or download the artifact elsewhere and give resume=<folder>."
        ) from error
