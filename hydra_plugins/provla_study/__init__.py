"""Hydra's side of a study: two sweepers, a grid and an Optuna search, that can be killed anywhere and started again.

They add to Hydra's own what section 4 of a run's contract asks: every job is composed before the first one starts, from a copy
of the configuration files; what is done is not done again; a failed job is tried once more; and a lock keeps a second sweep out.
Hydra imports this module at every start, so everything heavy is imported where it is used.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from provla.sweep import Job

Overrides = tuple[str, ...]
ELSEWHERE = "give this one a folder of its own (study=<name> or hydra.sweep.dir=<folder>)"


def register() -> None:
    """Puts provla's sweepers and launchers (`conf/` beside this file) in the place of those of the same names, for this process alone."""
    from hydra.core.config_store import ConfigStore

    Plugins.instance()  # imports all plugins, which register theirs; the later one stays
    for file in sorted((Path(__file__).parent / "conf").glob("*/*.yaml")):
        ConfigStore.instance().store(group=f"hydra/{file.parent.name}", name=file.stem, node=OmegaConf.load(file), provider="provla")


class Composed:
    """What launchers need of a config loader: the configuration of a job, as it was composed when the sweep put it into its queue."""

    def __init__(self, configs: Mapping[Overrides, DictConfig]) -> None:
        self.configs = dict(configs)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        return copy.deepcopy(self.configs[tuple(sweep_overrides)])


class GridSweeper(Sweeper):
    """Every combination of the axes (`params`), and of the study's `arms` where it names some."""

    kind = "grid"

    def __init__(self, params: DictConfig | None) -> None:
        self.params: Any = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.prepare(config, hydra_context.config_loader)
        self.context = HydraContext(config_loader=hydra_context.config_loader, callbacks=hydra_context.callbacks)
        self.launcher: Any = Plugins.instance().instantiate_launcher(config=config, hydra_context=self.context, task_function=task_function)

    def prepare(self, config: DictConfig, loader: ConfigLoader) -> None:
        """What it takes to say which jobs there will be."""
        from provla.identity import check_study

        check_study(config.study)
        self.composed: DictConfig = config
        self.loader: Any = loader
        self.folder = Path(str(config.hydra.sweep.dir))
        self.configs: dict[Overrides, DictConfig] = {}
        self.launched = 0
        self.order: list[str] = []  # folders of the jobs as they were asked, and how many there will be
        self.total = 0

    def sweep(self, arguments: list[str]) -> None:
        from provla.secrets import check_literal
        from provla.sweep import held

        check_literal(OmegaConf.to_container(self.composed))
        with held(self.folder), self._snapshot():
            failed = self._sweep(self._axes(arguments))
        if failed:
            sys.exit(1)

    def _sweep(self, axes: dict[str, Any]) -> int:
        from provla.progress import console
        from provla.study import announce, episodes_of
        from provla.sweep import save_sweep

        points = self._points(axes)
        jobs = self._jobs(points)
        sweep = self._describe(jobs)
        save_sweep(self.folder, sweep)
        announce(sweep, self.folder, episodes_of(self._plain(next(iter(points)))))
        self.order, self.total = [job.folder for job in jobs], len(jobs)
        asked = {job.folder: overrides for overrides, job in zip(points, self._all, strict=True)}
        failed = self._run([(asked[job.folder], job) for job in jobs])
        console.print(f"sweep done: {self._count(jobs)}; the verdict: python -m provla.report {self._report_key()}")
        return failed

    # What is asked.

    def _points(self, axes: dict[str, Any]) -> dict[Overrides, tuple[dict[str, str], str | None]]:
        """Every point of the grid: overrides → its own values, and the name of its arm."""
        points: dict[Overrides, tuple[dict[str, str], str | None]] = {}
        values = {key: _values(override) for key, override in axes.items()}
        varied = {key for key, override in axes.items() if override.is_sweep_override() or key in self.params}
        for name, own in self._arms().items():
            for combination in itertools.product(*([(key, value) for value in options] for key, options in values.items() if key not in own)):
                overrides = tuple(f"{key}={value}" for key, value in [*own.items(), *combination])
                points[overrides] = {k: v for k, v in [*own.items(), *combination] if k in varied or k in own}, name
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
                raise ValueError(f"arms.{name}={own!r}: expected a list of overrides, such as [policy=act, trainer.lr=1e-4]")
            found[str(name)] = dict(str(one).split("=", 1) for one in own)
        return found

    def _compose(self, overrides: Overrides) -> DictConfig:
        if overrides not in self.configs:
            before = os.environ.get("PROVLA_ROOT")
            os.environ["PROVLA_ROOT"] = str(self._root)
            try:
                self.configs[overrides] = self.frozen.load_sweep_config(self.composed, list(overrides))
            finally:
                os.environ.pop("PROVLA_ROOT")
                if before is not None:
                    os.environ["PROVLA_ROOT"] = before
        return self.configs[overrides]

    def _plain(self, overrides: Overrides) -> dict[str, Any]:
        """The resolved configuration of a job, as its folder will hold it. `ValueError` where it asks for a part that its policy does not read."""
        from provla.secrets import check_literal
        from provla.unread import check_read

        config = copy.deepcopy(self._compose(overrides))
        check_read(OmegaConf.to_container(config, resolve=False), overrides, config.hydra.runtime.choices.get("policy"))  # type: ignore[arg-type]
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        check_literal(OmegaConf.to_container(config))
        found = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}

    def _jobs(self, points: Mapping[Overrides, tuple[dict[str, str], str | None]]) -> list[Job]:
        """Composes every job; all that is wrong with any of them is said before the first one starts."""
        from provla.identity import check_keys, identity
        from provla.sweep import Job, check_config, name_arms

        if not points:
            raise ValueError("an axis of this sweep has no values (a glob that fits nothing?)")
        axes = [{k: v for k, v in point.items() if k != "seed"} for point, _ in points.values()]
        arms = name_arms(axes, [name for _, name in points.values()])
        jobs: list[Job] = []
        owner: dict[str, tuple[str, Overrides]] = {}
        for overrides, point, arm in zip(points, axes, arms, strict=True):
            config = self._plain(overrides)
            check_keys(config)
            folder = str(self._compose(overrides).hydra.sweep.subdir)
            check_config(self.folder / folder, config)
            digest = identity(config)
            if folder in owner and owner[folder][0] != digest:
                raise ValueError(f"two jobs share the folder {folder!r}: {' '.join(owner[folder][1])} and {' '.join(overrides)}; sweep over keys that name it")
            if folder in owner and set(overrides) != set(owner[folder][1]):
                raise ValueError(
                    f"the jobs {' '.join(owner[folder][1])} and {' '.join(overrides)} have one folder and one result: this axis cannot change a result"
                )
            owner[folder] = digest, overrides
            named = {key.lstrip("+~"): value for key, value in (one.split("=", 1) for one in overrides)}
            jobs.append(Job(folder, named, point, config["seed"], digest, arm))
        self._all = jobs
        unique: dict[str, Job] = {}
        for job in jobs:  # equal points run once
            unique.setdefault(job.config_hash, job)
        return list(unique.values())

    def _describe(self, jobs: list[Job]) -> Any:
        from provla.sweep import Sweep, find_baseline, load_sweep

        baseline = self.composed.get("baseline")
        arms = {job.arm: job.axes for job in jobs}
        wanted = OmegaConf.to_container(baseline) if OmegaConf.is_config(baseline) else baseline
        found = find_baseline(wanted, arms)  # type: ignore[arg-type]
        varied = {"seed"}.union(*(job.axes for job in jobs))
        mine = {k: v for k, v in jobs[0].overrides.items() if k not in varied}
        try:  # the jobs of an earlier start that differ from these in their axes alone belong to the same study
            mine_folders = {job.folder for job in jobs}
            earlier = [
                job
                for job in load_sweep(self.folder).jobs
                if job.folder not in mine_folders and {k: v for k, v in job.overrides.items() if k not in {"seed", *job.axes}} == mine and job.arm in arms
            ]
        except ValueError:
            earlier = []
        command = " ".join(["python -m provla.train", *map(shlex.quote, sys.argv[1:])])
        return Sweep(self.composed.study, self.composed.get("question"), self.kind, found, self.composed.objective, command, [*earlier, *jobs])

    def _report_key(self) -> str:
        default = Path("outputs") / str(self.composed.study)
        return f"study={self.composed.study}" if self.folder == default else f"folder={self.folder}"

    # What is done.

    def _run(self, queue: list[tuple[Overrides, Job]]) -> int:
        """Launches what is not over, and once more what failed; returns how many have no result at the end."""
        from rich.markup import escape

        from provla.progress import console
        from provla.sweep import ATTEMPTS, is_over, read_result

        pruning = not str(self.composed.pruner._target_).endswith(".NoPruner")
        for attempt in range(ATTEMPTS):
            todo = [(o, job) for o, job in queue if not is_over(read_result(self.folder / job.folder), pruning)]
            if attempt and todo:
                console.print(f"once more: {escape(', '.join(job.folder for _, job in todo))}")
            self._launch(todo)
        statuses = [read_result(self.folder / job.folder)["status"] for _, job in queue]
        return sum(status not in ("completed", "pruned") for status in statuses)

    def _at_once(self) -> int:
        from provla.sweep import cores, places

        launcher = self.composed.hydra.launcher
        if "n_jobs" in launcher:
            return cores() if launcher.n_jobs == -1 else int(launcher.n_jobs)
        kind = str(launcher._target_).rpartition(".")[2]
        return {"LocalLauncher": places(self.composed.threads), "SlurmLauncher": 8}.get(
            kind, 1
        )  # a sampler learns nothing from trials that run beside each other

    def _launch(self, todo: list[tuple[Overrides, Job]]) -> None:
        from rich.markup import escape

        from provla.progress import console
        from provla.signals import check
        from provla.study import log_end
        from provla.sweep import crowded

        if not todo:
            return
        self.context.config_loader = Composed({o: self._compose(o) for o, _ in todo})  # type: ignore[assignment]
        serial = type(self.launcher).__name__ == "BasicLauncher"
        if not serial and (warning := crowded(int(self.composed.threads), min(len(todo), self._at_once()))):
            console.print(warning)
        for batch in [[one] for one in todo] if serial else [todo]:
            for _, job in batch:
                console.print(f"[bold]job {self.order.index(job.folder) + 1} of {self.total}[/bold] {escape(job.folder)}")
            try:
                with self._signals():
                    self.launcher.launch([list(o) for o, _ in batch], initial_job_idx=self.launched)
            except Exception as error:  # a worker that died (out of memory, kill) takes none of its siblings' results with it
                console.print(f"a process of the launcher ended early ({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})")
            check()  # a signal that ended the workers
            self.launched += len(batch)
            for _, job in batch:
                log_end(self.folder, job)

    def _signals(self) -> Any:
        """Where jobs run in processes beside this one, a signal is theirs first: each writes a checkpoint, and this one ends after them."""
        from provla.signals import deferred, forward_to_workers

        kind = type(self.launcher).__name__
        beside = kind == "LocalLauncher" or (kind == "JoblibLauncher" and self.composed.hydra.launcher.n_jobs != 1)
        return deferred(forward_to_workers) if beside else nullcontext()

    def _count(self, jobs: Sequence[Job]) -> str:
        from provla.study import count_states

        return count_states(self.folder, jobs)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Copies the configuration files into the sweep's folder: what is edited meanwhile changes no job."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

        from provla.command import ROOT

        loader: Any = self.loader
        kept = self.folder / ".configuration"
        shutil.rmtree(kept, ignore_errors=True)
        self._root = kept / "root"
        for part in ("conf", "experiments"):
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, self._root / part, ignore=_only_yaml, copy_function=_copy)
        path = ConfigSearchPathImpl()
        for number, element in enumerate(loader.get_search_path().get_path()):
            place, provider = str(element.path), str(element.provider)
            source = Path(place.removeprefix("file://"))
            if place.startswith("file://") or (source.is_dir() and "://" not in place):
                inside = source.resolve()
                if inside.is_relative_to(ROOT) and (self._root / inside.relative_to(ROOT)).is_dir():
                    place = f"file://{self._root / inside.relative_to(ROOT)}"
                elif source.is_dir() and inside != ROOT:
                    shutil.copytree(source, kept / f"{number}", ignore=_only_yaml, copy_function=_copy)
                    place = f"file://{kept / str(number)}"
            path.append(provider, place)
        self.frozen: ConfigLoader = ConfigLoaderImpl(config_search_path=path)
        yield


def plan(config: DictConfig, arguments: list[str]) -> tuple[Any, int]:
    """The sweep that a composed configuration (with its `hydra` node) and its command line ask for, and the closed-loop episodes of a run.

    Nothing is started or written. `ValueError` as the sweep itself would raise it.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from provla.command import ROOT
    from provla.study import episodes_of
    from provla.sweep import Sweep

    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.mode = RunMode.MULTIRUN
    settings = config.hydra.sweeper
    sweeper = GridSweeper(settings.params)
    sweeper.prepare(config, GlobalHydra.instance().config_loader())
    sweeper.frozen, sweeper._root = sweeper.loader, ROOT
    axes = sweeper._axes(arguments)
    if str(settings._target_).endswith("SearchSweeper"):
        sweep = Sweep(config.study, config.get("question"), "search", "", config.objective, "", [], int(settings.n_trials))
        sweep.space = [str(override.input_line) for override in axes.values() if override.is_sweep_override()]
        fixed = tuple(str(override.input_line) for override in axes.values() if not override.is_sweep_override())
        return sweep, episodes_of(sweeper._plain(fixed))
    points = sweeper._points(axes)
    jobs = sweeper._jobs(points)
    return sweeper._describe(jobs), episodes_of(sweeper._plain(next(iter(points))))


class SearchSweeper(GridSweeper):
    """Optuna over the axes, by hydra-optuna-sweeper's parsing of spaces; `n_trials` counts all trials, restarts included."""

    kind = "search"

    def __init__(self, params: DictConfig | None, n_trials: int, n_jobs: int | None, direction: str | None, max_failure_rate: float, **options: Any) -> None:
        super().__init__(params)
        if n_trials < 1:
            raise ValueError(f"hydra.sweeper.n_trials={n_trials}: must be at least 1")
        if direction not in (None, "minimize", "maximize"):
            raise ValueError(f"hydra.sweeper.direction={direction!r}; valid: minimize, maximize, null (as the objective needs)")
        self.n_trials, self.n_jobs, self.direction, self.max_failure_rate, self.options = n_trials, n_jobs, direction, max_failure_rate, options

    def _sweep(self, axes: dict[str, Any]) -> int:
        from rich.markup import escape

        from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
        from provla.progress import console
        from provla.pruner import opened
        from provla.search import STORE
        from provla.study import announce
        from provla.sweep import save_sweep

        if self.composed.get("arms"):
            raise ValueError("arms are for grids; with hydra/sweeper=optuna, give axes alone")
        arguments = [f"{key}=choice({','.join(_values(o))})" if _is_glob(o) else str(o.input_line) for key, o in axes.items()]
        space, fixed = create_params_from_overrides(arguments)
        if not space:
            raise ValueError("nothing to search: give at least one axis, such as 'trainer.lr=tag(log, interval(1e-5, 1e-3))'")
        options = dict(self.options)
        given = options.pop("storage")
        if given and not str(given).startswith("sqlite:///"):
            raise ValueError(f"hydra.sweeper.storage={given!r}: expected sqlite:///<file>")
        path = Path(str(given).removeprefix("sqlite:///")).absolute() if given else self.folder / STORE
        name = options.pop("study_name") or str(self.composed.study or "search")
        direction = self.direction or self._direction()
        self.impl = OptunaSweeperImpl(
            direction=direction,
            storage=None,
            study_name=name,
            n_trials=self.n_trials,
            n_jobs=1,
            max_failure_rate=1.0,
            params=None,
            **options,
        )
        self.impl.config = self.composed
        self._storage = [str(path) if given else STORE, name]  # its own moves with the folder
        self._check_space(space, fixed)
        with opened(path) as storage:
            self._search(storage, name, space, fixed, direction)
            jobs = [job for _, job in self._queue.values()]
            sweep = self._describe(jobs)
            sweep.n_trials, sweep.best, sweep.storage = self.n_trials, self._best(storage, name), self._storage
            save_sweep(self.folder, sweep)
        announce(sweep, self.folder, None)
        if sweep.best:
            best = sweep.best
            console.print(f"best: trial {best['trial']}, {best['metric']} {best['value']:.4g}, in {escape(str(self.folder / best['folder']))}")
        console.print(f"sweep done: {self._count(jobs)}; importance and pictures: python -m provla.report {self._report_key()}")
        return 0 if sweep.best else 1

    def _search(self, storage: Any, name: str, space: Mapping[str, Any], fixed: Mapping[str, Any], direction: str) -> None:
        import optuna

        from provla.progress import console
        from provla.search import VOID

        sampler = self.impl.sampler
        if not isinstance(sampler, optuna.samplers.BaseSampler):  # hydra/sweeper/sampler=grid
            choices = {key: self.impl._to_grid_sampler_choices(distribution) for key, distribution in space.items()}
            sampler = sampler(choices)
            self.n_trials = min(self.n_trials, math.prod(map(len, choices.values())))
        try:
            study = optuna.create_study(study_name=name, storage=storage, sampler=sampler, direction=direction, load_if_exists=True)
        except ValueError as error:  # Optuna's own for a direction that differs from the stored one
            raise ValueError(f"hydra.sweeper.direction={direction}: the search in {self.folder} was begun with the other; {ELSEWHERE}") from error
        there = study.get_trials(deepcopy=False)
        self._check_unchanged(there, space)
        self._queue: dict[int, tuple[Overrides, Job]] = {}
        seen: dict[str, int] = {}
        waiting: list[Any] = []
        for earlier in there:
            if VOID in earlier.user_attrs:
                continue
            overrides = tuple(earlier.user_attrs["overrides"]) if "overrides" in earlier.user_attrs else None
            if overrides is None and not earlier.state.is_finished():  # killed before it had drawn its values
                self._void(study, optuna.trial.Trial(study, earlier._trial_id), "nothing drawn")
            elif overrides is not None:
                job = self._one(overrides, space)
                self._queue[earlier.number], seen[job.config_hash] = (overrides, job), earlier.number
                if not earlier.state.is_finished():
                    waiting.append(optuna.trial.Trial(study, earlier._trial_id))
        if self._queue:
            sampler.reseed_rng()  # else a seeded sampler would draw its first points again
            console.print(f"{len(self._queue)} of {self.n_trials} trials are in {self.folder} already, {len(waiting)} of them interrupted")
        at_once = self.n_jobs or self._at_once()
        misses = 0
        while waiting or (len(self._queue) < self.n_trials and misses < 100):
            batch, waiting = waiting[:at_once], waiting[at_once:]
            while len(batch) < at_once and len(self._queue) < self.n_trials and misses < 100:
                trial = study.ask()
                (overrides,) = (tuple(one) for one in self.impl._configure_trials([trial], dict(space), dict(fixed)))
                job = self._one(overrides, space)
                if job.config_hash in seen:  # no point is evaluated twice
                    self._void(study, trial, f"the point of trial {seen[job.config_hash]}")
                    misses += 1
                    continue
                misses = 0
                trial.set_user_attr("overrides", list(overrides))
                trial.set_user_attr("job", job.folder)
                self._queue[trial.number], seen[job.config_hash] = (overrides, job), trial.number
                batch.append(trial)
            if not batch:
                break
            self._save_progress()
            self.order, self.total = [job.folder for _, job in self._queue.values()], self.n_trials
            self._run([self._queue[trial.number] for trial in batch])
            self._tell(study, batch)
        if misses >= 100:
            console.print(f"the space holds no further points than these {len(self._queue)}")

    def _void(self, study: Any, trial: Any, reason: str) -> None:
        """Ends a trial that is none: it counts nowhere."""
        from optuna.trial import TrialState

        from provla.search import VOID

        trial.set_user_attr(VOID, reason)
        study.tell(trial, state=TrialState.FAIL)

    def _tell(self, study: Any, batch: Sequence[Any]) -> None:
        from optuna.trial import TrialState

        from provla.sweep import read_result

        failed = 0
        for trial in batch:
            result = read_result(self.folder / self._queue[trial.number][1].folder)
            value = (result.get("objective") or {}).get("value")
            if result["status"] == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            elif result["status"] == "completed" and value is not None and math.isfinite(value):
                study.tell(trial, float(value))
            else:  # NaN and failures end a trial, not the study
                study.tell(trial, state=TrialState.FAIL)
                failed += 1
        if failed / len(batch) > self.max_failure_rate:
            raise ValueError(f"{failed} of {len(batch)} trials failed, more than hydra.sweeper.max_failure_rate={self.max_failure_rate}; see their result.json")

    def _one(self, overrides: Overrides, space: Mapping[str, Any]) -> Job:
        point = {key: value for key, value in (one.split("=", 1) for one in overrides) if key in space}
        job = self._jobs({overrides: (point, None)})[0]
        return replace(job, arm=", ".join(f"{k}={_short(v)}" for k, v in point.items() if k != "seed"))

    def _save_progress(self) -> None:
        from provla.sweep import save_sweep

        sweep = self._describe([job for _, job in self._queue.values()])
        sweep.n_trials, sweep.storage = self.n_trials, self._storage
        save_sweep(self.folder, sweep)

    def _check_space(self, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        """Composes one point per option of every axis, so that a wrong group, key or option is said before any job starts."""
        first = {key: _options(distribution)[0] for key, distribution in space.items()}
        for key, distribution in space.items():
            for option in _options(distribution):
                self._plain(tuple(f"{k}={v}" for k, v in {**first, key: option, **fixed}.items()))

    def _check_unchanged(self, there: Sequence[Any], space: Mapping[str, Any]) -> None:
        """`ValueError` where an axis' options are others than those that the trials there were drawn from, which Optuna cannot go on with."""
        from optuna.distributions import check_distribution_compatibility

        for earlier in there:
            for key in earlier.distributions.keys() & space.keys():
                try:
                    check_distribution_compatibility(earlier.distributions[key], space[key])
                except ValueError as error:
                    was, now = _spelled(earlier.distributions[key]), _spelled(space[key])
                    raise ValueError(f"{key}={now}: the search in {self.folder} drew it from {was}, and options cannot change midway; {ELSEWHERE}") from error

    def _direction(self) -> str:
        objective = str(self.composed.objective)
        simulated = "NoSuite" not in str(self.composed.env["_target_"])
        return "maximize" if objective.startswith("success_rate") or (objective == "auto" and simulated) else "minimize"

    def _best(self, storage: Any, name: str) -> dict[str, Any] | None:
        import optuna

        from provla.sweep import read_result

        study = optuna.load_study(study_name=name, storage=storage)
        done = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
        if not done:
            return None
        trial = study.best_trial
        folder = trial.user_attrs["job"]
        metric = (read_result(self.folder / folder).get("objective") or {}).get("name", self.composed.objective)
        return {"trial": trial.number, "metric": metric, "value": trial.value, "params": trial.params, "folder": folder}


def _spelled(distribution: Any) -> str:
    """A distribution as one would write it."""
    if hasattr(distribution, "choices"):
        return f"choice({','.join(map(str, distribution.choices))})"
    return f"interval({distribution.low},{distribution.high})"


def _values(override: Any) -> list[str]:
    """What an axis takes, as Hydra writes it. `ValueError` for a continuous one."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ValueError(f"{override.input_line}: a grid has no continuous axes; list values, or search with hydra/sweeper=optuna")
    return [str(value) for value in override.sweep_string_iterator()]


def _choice(value: Any) -> Any:
    """A list in a study's YAML is a choice between its elements."""
    return f"choice({','.join(map(str, value))})" if OmegaConf.is_list(value) else value


def _is_glob(override: Any) -> bool:
    return type(override.value()).__name__ == "Glob"


def _options(distribution: Any) -> list[Any]:
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low]


def _short(value: str) -> str:
    try:
        return value if re.fullmatch(r"-?\d+", value) else f"{float(value):.3g}"
    except ValueError:
        return value


def _only_yaml(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder) / name).is_dir() and not name.endswith((".yaml", ".yml"))]


def _copy(source: str, target: str) -> None:
    """A configuration file, without secrets; a job that would read one is refused by name."""
    from provla.secrets import hide

    Path(target).write_text(hide(Path(source).read_text()))
