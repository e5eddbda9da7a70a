"""Launches a sweep's jobs on a Ray cluster: one process each, on whatever node has room for it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from provla.core.awake import prepare_threads
from provla.core.signals import SIGNALS

INSTALL = "pip install 'provla[ray]' -c constraints.txt"
LOOK = 0.5  # [s] between two looks at whether a signal came
END = ".ray-end"  # in the sweep's folder: its jobs are asked to end
# What a node says of itself; everything else of the environment goes with a job, as it does with sbatch.
OF_THE_NODE = ("CUDA_VISIBLE_DEVICES", "RAY_", "SLURM_", "HOSTNAME", "TMPDIR", "LD_LIBRARY_PATH")


class RayLauncher(Launcher):
    """See conf/launcher/ray.yaml. A job that ends by an error ends no other; one whose node or process died starts
    again, and goes on from its last checkpoint.
    """

    def __init__(self, address: str, num_cpus: float, num_gpus: float | None, retries: int) -> None:
        for key, value in {"num_cpus": num_cpus, "num_gpus": num_gpus, "retries": retries}.items():
            if isinstance(value, bool) or not (isinstance(value, int | float) or (value, key) == (None, "num_gpus")):
                raise ValueError(f"hydra.launcher.{key}={value!r}: expected a number")
            if value is not None and value < 0:
                raise ValueError(f"hydra.launcher.{key}={value!r}: expected 0 or more")
        self._address, self._cpus, self._gpus, self._retries = str(address), num_cpus, num_gpus, int(retries)
        self._ending = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        self._connect(_import_ray())  # what is missing is said before anything is composed

    def ask_to_end(self) -> None:
        """Jobs end after their present step, with a checkpoint. For signal handlers."""
        self._ending = True

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns when every job has ended, one way or another; their folders say which."""
        ray = _import_ray()
        gpus = self._gpus if self._gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        self._check_room(ray, gpus)
        # A process for each job: what one leaves behind (threads, memory, an import that was cut off) is no other's.
        task = ray.remote(num_cpus=self._cpus, num_gpus=gpus, max_retries=0, max_calls=1)(run_one)
        jobs = [
            (list(overrides), ray.cloudpickle.dumps((self.context, self.config, self.task, Singleton.get_state())))
            for overrides in job_overrides
        ]
        self._end = Path(str(self.config.hydra.sweep.dir)).absolute() / END
        self._end.unlink(missing_ok=True)
        given = {key: value for key, value in os.environ.items() if not key.startswith(OF_THE_NODE)}

        def start(number: int) -> Any:
            overrides, payload = jobs[number]
            place = (str(Path.cwd()), str(self._end))
            return task.remote(payload, overrides, initial_job_idx + number, given, place, sys.path)

        loader = self.context.config_loader
        names = [loader.load_sweep_config(self.config, one).hydra.sweep.subdir for one, _ in jobs]
        return self._follow(ray, start, [str(name) for name in names])

    def _follow(self, ray: Any, start: Any, names: Sequence[str]) -> list[JobReturn]:
        from rich.markup import escape

        from provla.core.progress import console

        ended = [JobReturn() for _ in names]
        running, starts, asked = {start(number): number for number in range(len(names))}, [1] * len(names), False
        while running:
            done, _ = ray.wait(list(running), timeout=LOOK)
            if self._ending and not asked:
                asked = True
                self._end.touch()
                for one in running:  # what has not begun is gone; in others, Ray's own interrupt may not come through
                    ray.cancel(one, force=False)
            for one in done:
                number = running.pop(one)
                try:
                    ended[number] = ray.get(one)
                except ray.exceptions.RayError as error:
                    if asked:
                        continue
                    again = starts[number] <= self._retries and not isinstance(error, ray.exceptions.RayTaskError)
                    what = f"it starts again ({starts[number]} of {self._retries})" if again else "its siblings go on"
                    said = f"{type(error).__name__}: {str(error).strip().splitlines()[0].partition('. ')[0]}"
                    console.print(escape(f"{names[number]}: its process or node died ({said}); {what}"))
                    if again:
                        starts[number] += 1
                        running[start(number)] = number
        return ended

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            return
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)  # so that a node finds provla, and yours
        settings = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "log_to_driver": False}
        try:
            if ":" in self._address and "//" not in self._address:  # Ray itself asks for minutes
                host, _, port = self._address.rpartition(":")
                socket.create_connection((host, int(port)), 10).close()
            handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
            ray.init(self._address, logging_level="warning", **settings)
            for signum, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(signum, handler)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"hydra.launcher.address={self._address}: no Ray cluster answers there; start one with ray start "
                "--head, give its <host>:<port>, or take hydra.launcher.address=local for this machine alone"
            ) from error

    def _check_room(self, ray: Any, gpus: float) -> None:
        from provla.core.progress import console

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= self._cpus and node.get("GPU", 0) >= gpus for node in nodes):
            console.print(
                f"no node of this cluster has {self._cpus:g} CPUs and {gpus:g} GPUs for a job; the sweep waits until "
                "one comes (hydra.launcher.num_cpus=, hydra.launcher.num_gpus=)"
            )
        elif not gpus and any(node.get("GPU", 0) for node in nodes):
            console.print("this cluster has GPUs, and hydra.launcher.num_gpus=0 gives the jobs none of them")


def run_one(
    payload: bytes,
    overrides: list[str],
    number: int,
    environment: Mapping[str, str],
    place: tuple[str, str],
    path: Sequence[str],
) -> JobReturn:
    """One job, on the node: in the sweep's working folder, with its environment where the node has none of its own.

    place: that folder, and the file that asks for the end.
    """
    os.chdir(place[0])
    threading.Thread(target=_end_when_asked, args=(Path(place[1]),), daemon=True).start()
    for key, value in environment.items():
        os.environ.setdefault(key, value)
    prepare_threads()
    sys.path += [place for place in path if place not in sys.path]
    import ray

    context, config, task, state = ray.cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = f"{composed.hydra.job.name}_{number}", number
    done: JobReturn = run_job(
        hydra_context=context,
        config=composed,
        task_function=task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return done


def _end_when_asked(file: Path) -> None:
    while not file.exists():
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


def _import_ray() -> Any:
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError as error:
        raise ValueError(f"hydra/launcher=ray needs Ray, which is not installed ({error}): {INSTALL}") from error
    return ray
