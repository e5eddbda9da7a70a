"""Runs the jobs of a sweep until each is over: once more what failed, and the rest whatever becomes of one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext
from omegaconf import DictConfig

from provla.study.compose import Composed, Overrides

if TYPE_CHECKING:
    from provla.jobs.sweep import Job

Asked = tuple[Overrides, "Job"]
PATIENCE = 10  # seconds for the workers of a broken pool to end


class JobRunner:
    """compose: overrides → a job's configuration. base: the sweep's own. at_once: jobs that the launcher runs at the
    same time.
    """

    def __init__(
        self,
        launcher: Any,
        context: HydraContext,
        compose: Callable[[Overrides], DictConfig],
        base: DictConfig,
        at_once: int,
    ) -> None:
        from provla.core.signals import forward_to_workers

        self._folder = Path(str(base.hydra.sweep.dir))
        self._launcher, self._context, self._compose, self._threads, self._at_once = (
            launcher,
            context,
            compose,
            int(base.threads),
            at_once,
        )
        self._pruning = not str(base.pruner._target_).endswith(".NoPruner")
        kind, settings = type(launcher).__name__, getattr(launcher, "joblib", {})
        self._pool = kind == "JoblibLauncher" and settings.get("n_jobs") != 1  # several workers, which end together
        # Where jobs run in processes that the launcher watches, a signal is theirs first: each writes a checkpoint, and
        # this one ends after them.
        self._tell = {"LocalLauncher": forward_to_workers, "RayLauncher": getattr(launcher, "ask_to_end", None)}.get(
            kind, forward_to_workers if self._pool else None
        )
        self._crowds = self._pool or kind == "LocalLauncher"  # this machine, not a cluster
        self._serial = kind == "BasicLauncher" or (kind == "JoblibLauncher" and not self._pool)
        self._launched = 0
        self.order: list[str] = []  # folders of the jobs as they were asked, and how many there will be
        self.total = 0

    def run(self, queue: Sequence[Asked]) -> int:
        """Launches what is not over, and once more what failed; returns how many have no result at the end."""
        from rich.markup import escape

        from provla.core.progress import console
        from provla.core.result import ATTEMPTS, read_result
        from provla.jobs import limit
        from provla.jobs.sweep import give_up_on_killed

        limit.restart[:] = [sys.executable, *sys.orig_argv[1:]] if self._serial else []
        try:
            for attempt in range(ATTEMPTS):
                for _, job in queue:
                    give_up_on_killed(self._folder, job)
                todo = [
                    (o, job) for o, job in queue if not read_result(self._folder / job.folder).is_over(self._pruning)
                ]
                if attempt and todo:
                    console.print(f"once more: {escape(', '.join(job.folder for _, job in todo))}")
                self._launch(todo)
        finally:
            limit.restart.clear()
        for _, job in queue:
            give_up_on_killed(self._folder, job)
        return sum(not read_result(self._folder / job.folder).succeeded for _, job in queue)

    def _launch(self, todo: Sequence[Asked]) -> None:
        """One after another, or all at once: first one of each training, then those that take its weights over."""
        from provla.core.progress import console
        from provla.jobs.sweep import crowded

        if not todo:
            return
        if self._serial:
            for one in todo:
                self._start([one])
            return
        if self._crowds and (warning := crowded(self._threads, min(len(todo), self._at_once))):
            console.print(warning)
        first = {job.training or job.config_hash: job for _, job in reversed(todo)}
        todo = sorted(todo, key=lambda pair: first[pair[1].training or pair[1].config_hash] is not pair[1])
        self._start(todo)
        if self._pool and (suspects := self._suspects(todo)):
            self._find_culprit(todo, suspects)

    def _start(self, batch: Sequence[Asked]) -> None:
        from rich.markup import escape

        from provla.core.progress import console
        from provla.core.signals import check, deferred
        from provla.study.study import log_end

        self._context.config_loader = Composed({o: self._compose(o) for o, _ in batch})  # type: ignore[assignment]
        for _, job in batch:
            console.print(f"[bold]job {self.order.index(job.folder) + 1} of {self.total}[/bold] {escape(job.folder)}")
        try:
            with deferred(self._tell) if self._tell else nullcontext():
                self._launcher.launch([list(o) for o, _ in batch], initial_job_idx=self._launched)
        except (
            Exception
        ) as error:  # a worker that died (out of memory, kill) takes none of its siblings' results with it
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            console.print(f"a process of the launcher ended early ({escape(said)})")
        check()  # a signal that ended the workers
        self._launched += len(batch)
        for _, job in batch:
            log_end(self._folder, job)

    def _suspects(self, batch: Sequence[Asked]) -> list[Asked]:
        """The jobs that were running when a worker died: joblib kills all workers with it."""
        from provla.jobs import attempts

        end = time.monotonic() + PATIENCE
        while any(attempts.busy(self._folder / job.folder) for _, job in batch) and time.monotonic() < end:
            time.sleep(0.1)
        return [one for one in batch if attempts.lost(self._folder / one[1].folder)]

    def _find_culprit(self, todo: Sequence[Asked], suspects: Sequence[Asked]) -> None:
        """Each suspect goes on alone, so that whoever kills its process is counted, and nobody else; then those that
        had not begun.
        """
        from rich.markup import escape

        from provla.core.progress import console
        from provla.core.result import read_result
        from provla.jobs import attempts

        names = ", ".join(job.folder for _, job in suspects)
        console.print(
            "a worker was killed while these ran; each goes on alone, so that the one to blame is found: "
            f"{escape(names)}"
        )
        for _, job in suspects:
            attempts.forgive(self._folder / job.folder)
        for one in suspects:
            self._start([one])
        left = [
            one
            for one in todo
            if one not in suspects and read_result(self._folder / one[1].folder).status in ("missing", "interrupted")
        ]
        self._launch(left)
