"""submitit's launchers, which wait for every job: one that died ends no sibling's sweep, and what still runs on the
cluster is waited for and not started again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.hydra_submitit_launcher import config as submitit_config
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from provla.core.awake import prepare_threads

SUBMITTED = ".submitted.json"  # in the sweep's folder: a job's folder → where submitit keeps it, and its number
POLL = 1.0  # [s]
PATIENCE = 30.0  # [s] between two questions to a scheduler that keeps no accounts


class _Job:
    """What a node calls: the pickled launcher."""

    def __call__(self, *given: Any) -> JobReturn:
        prepare_threads()  # the node may have said something of its own
        done: JobReturn = super().__call__(*given)  # type: ignore[misc]
        return done


class LocalLauncher(_Job, submitit_launcher.LocalLauncher):
    """A process per job on this machine."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        executor = _executor(self._EXECUTOR, self.params)
        return _outcomes(_submit(executor, self, job_overrides, initial_job_idx))


class SlurmLauncher(_Job, submitit_launcher.SlurmLauncher):
    """A job of SLURM per job. One that is preempted or meets its time limit writes a checkpoint and queues up again."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Also waits for the jobs that an earlier start of the sweep, which ended before them, has submitted."""
        executor = _executor(self._EXECUTOR, self.params)
        file = Path(str(self.config.hydra.sweep.dir)) / SUBMITTED
        loader: Any = self.hydra_context.config_loader
        names = [str(loader.load_sweep_config(self.config, list(one)).hydra.sweep.subdir) for one in job_overrides]
        known, jobs = _read(file), {}
        for name in names:
            if name in known and (still := _still(*known[name])):
                jobs[name] = still
        new = [number for number, name in enumerate(names) if name not in jobs]
        submitted = _submit(executor, self, [job_overrides[number] for number in new], initial_job_idx) if new else []
        for number, job in zip(new, submitted, strict=True):
            jobs[names[number]] = job
            known[names[number]] = [str(executor.folder), job.job_id]
        _write(file, known)
        return _outcomes([jobs[name] for name in names])


def _executor(kind: str, params: Mapping[str, Any]) -> Any:
    """As hydra-submitit-launcher makes it."""
    import submitit

    ours = ("submitit_folder", "max_num_timeout", "jobs_per_gpu")
    given = {key: value for key, value in params.items() if key not in ours}
    timeouts = {f"{kind}_{key}": params[key] for key in ("max_num_timeout",) if key in params}
    executor = submitit.AutoExecutor(cluster=kind, folder=params["submitit_folder"], **timeouts)
    shared = set(OmegaConf.structured(submitit_config.BaseQueueConf).keys())
    executor.update_parameters(**{key if key in shared else f"{kind}_{key}": value for key, value in given.items()})
    return executor


def _submit(executor: Any, launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
    state = Singleton.get_state()
    asked = [
        (list(overrides), "hydra.sweep.dir", first + number, f"job_id_for_{first + number}", state)
        for number, overrides in enumerate(job_overrides)
    ]
    return list(executor.map_array(launcher, *zip(*asked, strict=True)))


def _outcomes(jobs: Sequence[Any]) -> list[JobReturn]:
    """Waits for the end of all, and says which died."""
    from rich.markup import escape

    from provla.core.progress import console

    found = [JobReturn() for _ in jobs]
    left, asked = dict(enumerate(jobs)), time.monotonic()
    while left:
        ask = time.monotonic() - asked > PATIENCE
        asked = time.monotonic() if ask else asked
        for number, job in list(left.items()):
            if not job.done() and not (ask and _forgotten(job)):
                continue
            del left[number]
            try:
                if not job.done():  # its own way to ask would wait for ever
                    raise RuntimeError(f"SLURM has no such job any more, and it left no result; see {job.paths.stderr}")
                found[number] = job.results()[0]
            except Exception as error:
                said = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
                console.print(escape(f"job {job.job_id} died, and its siblings go on: {said}"))
        time.sleep(POLL if left else 0)
    return found


def _forgotten(job: Any) -> bool:
    """Whether SLURM knows nothing of a job any more, and keeps no accounts that say how it ended (no sacct)."""
    if type(job).__name__ != "SlurmJob" or str(job.state) != "UNKNOWN":
        return False
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(["squeue", "-h", "-j", job.job_id], capture_output=True, text=True, timeout=60)
        # An error is said of jobs that it has forgotten; of a scheduler that does not answer, another one.
        return not asked.stdout.strip() and (asked.returncode == 0 or "Invalid job id" in asked.stderr)
    return False


def _still(folder: str, job_id: str) -> Any | None:
    """A job that was submitted before, where it is still queued or running."""
    from submitit import SlurmJob

    job: Any = SlurmJob(folder, job_id)
    return None if job.done(force_check=True) or _forgotten(job) else job


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}


def _write(file: Path, known: Mapping[str, Any]) -> None:
    from provla.core.files import write_json

    write_json(file, known)
