"""Grids: every combination of a study's axes and arms, joined with what its folder holds already."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from provla.study.compose import Composer, Overrides, frozen_copy
from provla.study.launch import JobRunner

if TYPE_CHECKING:
    from provla.jobs.sweep import Job, Sweep

Points = dict[Overrides, tuple[dict[str, str], str | None]]


class GridSweeper(Sweeper):
    """Every combination of the axes (`params`), and of the study's `arms` where it names some.

    timeout: minutes after which a job has failed; the jobs read it themselves (`provla.jobs.limit`).
    """

    kind = "grid"

    def __init__(self, params: DictConfig | None, timeout: float | None = None) -> None:
        self.params: Any = params or {}
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
        ):
            raise ValueError(f"hydra.sweeper.timeout={timeout!r}: expected minutes above 0, or null")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.prepare(config, hydra_context.config_loader)
        self.context = HydraContext(config_loader=hydra_context.config_loader, callbacks=hydra_context.callbacks)
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=self.context, task_function=task_function
        )

    def prepare(self, config: DictConfig, loader: ConfigLoader) -> None:
        """What it takes to say which jobs there will be."""
        from provla.core.files import ROOT
        from provla.core.identity import check_study

        check_study(config.study)
        self.composed: DictConfig = config
        self.loader: Any = loader
        self.folder = Path(str(config.hydra.sweep.dir))
        self.files = Composer(config, loader, ROOT)

    def sweep(self, arguments: list[str]) -> None:
        from provla.core.files import ROOT
        from provla.core.secrets import check_literal
        from provla.jobs.sweep import held

        check_literal(OmegaConf.to_container(self.composed))
        with held(self.folder):
            self.files = Composer(self.composed, *frozen_copy(self.loader, self.folder / ".configuration", ROOT))
            self.runner = JobRunner(self.launcher, self.context, self.files.compose, self.composed, self._at_once())
            failed = self._sweep(self._axes(arguments))
        if failed:
            sys.exit(1)

    def _sweep(self, axes: dict[str, Any]) -> int:
        from provla.core.progress import console
        from provla.jobs.sweep import save_sweep
        from provla.study.plan import announce, episodes_of

        sweep, asked = self.ask(axes)
        self._check_built(list(asked))
        save_sweep(self.folder, sweep)
        queue = list(asked.items())
        announce(sweep, self.folder, episodes_of(self.files.plain(queue[0][0])))
        self.runner.order, self.runner.total = [job.folder for _, job in queue], len(queue)
        failed = self.runner.run(queue)
        console.print(
            f"sweep done: {self._count([job for _, job in queue])}; the verdict: python -m provla.report "
            f"{self._report_key()}"
        )
        return failed

    def ask(self, axes: dict[str, Any]) -> tuple[Sweep, dict[Overrides, Job]]:
        """The sweep, with what earlier starts asked of the same study; and the jobs that this start asks for, each
        once.
        """
        from provla.jobs.sweep import join_jobs

        earlier, others = self._earlier(axes)
        points = self._points(axes, {key for job in earlier if job.name is None for key in job.axes})
        asked: dict[Overrides, Job] = {}
        unique: dict[str, Job] = {}
        for overrides, job in zip(points, self._jobs(points), strict=True):
            if unique.setdefault(job.config_hash, job) is job:  # equal points run once
                asked[overrides] = job
        joined = join_jobs(list(asked.values()), earlier)
        return self._describe(joined, [job for job in others if job.config_hash not in unique]), asked

    # What is asked.

    def _points(self, axes: dict[str, Any], known: set[str]) -> Points:
        """Every point of the grid: overrides → its own values, and the name of its arm. known: axes of earlier
        starts.
        """
        points: Points = {}
        values = {key: values_of(override) for key, override in axes.items()}
        varied = {key for key, override in axes.items() if self._is_axis(key, override) or key in known}
        for name, own in self._arms().items():
            for combination in itertools.product(
                *([(key, value) for value in options] for key, options in values.items() if key not in own)
            ):
                overrides = tuple(f"{key}={value}" for key, value in [*own.items(), *combination])
                point = {k: v for k, v in [*own.items(), *combination] if k in varied or k in own}
                if name is None:  # an axis of an earlier start that this one leaves as it is
                    point |= {key: self.files.value(overrides, key) for key in sorted(known - point.keys() - {"seed"})}
                points[overrides] = point, name
        return points

    def _axes(self, arguments: list[str]) -> dict[str, Any]:
        """Key → parsed override; what stands on the command line wins over the study's own."""
        given = [f"{key}={_choice(value)}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.loader)
        try:
            parsed = parser.parse_overrides([*given, *arguments])
        except Exception as error:
            raise ValueError(f"hydra.sweeper.params or the command line cannot be read: {error}") from error
        axes: dict[str, Any] = {}
        for override in parsed:
            key = override.get_key_element()
            axes.pop(key, None)
            axes[key] = override
        return axes

    def _arms(self) -> dict[str | None, dict[str, str]]:
        """The study's named arms, as key → value each; without any, one that has no name."""
        arms = self.composed.get("arms")
        if not arms:
            return {None: {}}
        found: dict[str | None, dict[str, str]] = {}
        for name, own in arms.items():
            if not OmegaConf.is_list(own) or any("=" not in str(one) for one in own):
                raise ValueError(
                    f"arms.{name}={own!r}: expected a list of overrides, such as [policy=act, trainer.lr=1e-4]"
                )
            found[str(name)] = dict(str(one).split("=", 1) for one in own)
        return found

    def _jobs(self, points: Points) -> list[Job]:
        """Composes every job; all that is wrong with any of them is said before the first one starts.

        A job's folder is the one that holds its configuration, whatever it is called; else the one its overrides name.
        """
        from provla.core.identity import check_keys, identity, training_identity
        from provla.jobs.sweep import Job, cell_of, check_config, find_runs

        if not points:
            raise ValueError("an axis of this sweep has no values (a glob that fits nothing?)")
        jobs: list[Job] = []
        owner: dict[str, tuple[str, Overrides]] = {}
        held = find_runs(self.folder)
        for overrides, (point, name) in points.items():
            config = self.files.plain(overrides)
            check_keys(config)
            digest, called = identity(config), str(self.files.compose(overrides).hydra.sweep.subdir)
            if digest not in held:
                check_config(self.folder / called, config)
            self._check_distinct(owner.setdefault(called, (digest, overrides)), (digest, overrides), called)
            self.files.place(overrides, folder := held.get(digest, called))
            named = dict(one.split("=", 1) for one in overrides)
            axes = {key: value for key, value in point.items() if key != "seed"}
            shared = training_identity(config)
            jobs.append(Job(folder, named, axes, config["seed"], digest, "", None, name, cell_of(config), shared))
        return jobs

    def _check_built(self, points: Sequence[Overrides]) -> None:
        """`ValueError` where none of the points can be built, with what is wrong with the first. One among others is a
        failed row.
        """
        from provla.core.build import check_nodes

        problems: list[ValueError] = []
        for overrides in points:
            try:
                return check_nodes(self.files.plain(overrides))
            except ValueError as error:
                problems.append(error)
        raise problems[0]

    def _check_distinct(self, first: tuple[str, Overrides], second: tuple[str, Overrides], folder: str) -> None:
        both = f"{' '.join(first[1])} and {' '.join(second[1])}"
        if first[0] != second[0]:
            raise ValueError(f"two jobs share the folder {folder!r}: {both}; sweep over keys that name it")
        if set(first[1]) != set(second[1]):
            raise ValueError(f"the jobs {both} have one folder and one result: this axis cannot change a result")

    def _describe(self, jobs: list[Job], others: Sequence[Job] = ()) -> Sweep:
        from provla.jobs.sweep import Sweep, find_baseline

        baseline = self.composed.get("baseline")
        wanted = OmegaConf.to_container(baseline) if OmegaConf.is_config(baseline) else baseline
        found = find_baseline(wanted, {job.arm: job.axes for job in jobs})  # type: ignore[arg-type]
        command = " ".join(["python -m provla.train", *map(shlex.quote, sys.argv[1:])])
        settings = (
            self.composed.study,
            self.composed.get("question"),
            self.kind,
            found,
            self.composed.objective,
            command,
        )
        return Sweep(*settings, jobs, others=list(others))

    def _earlier(self, axes: dict[str, Any]) -> tuple[list[Job], list[Job]]:
        """The jobs of earlier starts: those of this study, which differ from what is asked now in their axes alone, and
        the others.

        A job is of this study if its values on all axes, of now and of then, and everything else as this start has it,
        make the configuration that it had. So redundant overrides and their order do not matter, and another budget
        does.
        """
        from provla.jobs.sweep import find_runs, load_sweep

        try:
            stored = load_sweep(self.folder)
        except ValueError:
            return [], []
        if stored.kind != self.kind:
            return [], []
        arms, held = self._arms(), find_runs(self.folder)
        fixed = {key: f"{key}={values_of(o)[0]}" for key, o in axes.items() if not self._is_axis(key, o)}
        mine, others = [], []
        known: dict[
            frozenset[tuple[str, str]], dict[str, Any] | None
        ] = {}  # an arm's overrides → what it has here; None: it is no arm of this study
        for job in [*stored.jobs, *stored.others]:
            arm = frozenset((key, value) for key, value in job.overrides.items() if key != "seed")
            if arm not in known:
                known[arm] = self._same_here(job, fixed, [key for key, o in axes.items() if self._is_axis(key, o)])
            name = job.name or next((n for n in arms if n and (job.arm == n or job.arm.startswith(f"{n}, "))), None)
            found = replace(job, folder=held.get(job.config_hash, job.folder), name=name)
            if (here := known[arm]) is not None:
                mine.append(replace(found, cell=here["cell"], axes=job.axes if name else here["axes"]))
            elif job.config_hash in held:
                others.append(found)
        return mine, others

    def _is_axis(self, key: str, override: Any) -> bool:
        return bool(override.is_sweep_override() or key in self.params)

    def _same_here(self, job: Job, fixed: Mapping[str, str], axes: Sequence[str]) -> dict[str, Any] | None:
        """A job's cell and its values on all axes, of now and of then; None where this start would not give it the
        configuration that it had.
        """
        from provla.core.identity import identity
        from provla.jobs.sweep import cell_of

        moves = {
            key.lstrip("+~")
            for key in (*axes, *job.axes, *(key for own in self._arms().values() for key in own), "seed")
        }
        own = {key: value for key, value in job.overrides.items() if key.lstrip("+~") in moves}
        overrides = (
            *(one for key, one in fixed.items() if key.lstrip("+~") not in moves),
            *(f"{key}={value}" for key, value in own.items()),
        )
        try:
            config = self.files.plain(overrides)
            more = {key: self.files.value(overrides, key) for key in axes if key != "seed" and key not in job.axes}
        except Exception:  # what cannot be composed any more is of another configuration
            return None
        return {"cell": cell_of(config), "axes": {**job.axes, **more}} if identity(config) == job.config_hash else None

    def _at_once(self) -> int:
        """How many jobs the launcher runs at the same time."""
        from provla.core.ranks import cores
        from provla.jobs.sweep import places

        launcher = self.composed.hydra.launcher
        if "n_jobs" in launcher:
            return cores() if launcher.n_jobs == -1 else int(launcher.n_jobs)
        kind = str(launcher._target_).rpartition(".")[2]
        return {"LocalLauncher": places(self.composed.threads), "SlurmLauncher": 8, "RayLauncher": 8}.get(kind, 1)

    def _report_key(self) -> str:
        default = Path("outputs") / str(self.composed.study)
        return f"study={self.composed.study}" if self.folder == default else f"folder={self.folder}"

    def _count(self, jobs: Sequence[Job]) -> str:
        from provla.study.study import count_states

        return count_states(self.folder, jobs)


def values_of(override: Any) -> list[str]:
    """What an axis takes, as Hydra writes it. `ValueError` for a continuous one."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ValueError(
            f"{override.input_line}: a grid has no continuous axes; list values, or search with hydra/sweeper=optuna"
        )
    return [str(value) for value in override.sweep_string_iterator()]


def _choice(value: Any) -> Any:
    """A list in a study's YAML is a choice between its elements."""
    return f"choice({','.join(map(str, value))})" if OmegaConf.is_list(value) else value
