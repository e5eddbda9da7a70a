"""Searches: Optuna over a study's axes, by hydra-optuna-sweeper's parsing of spaces."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from provla.study.compose import Overrides
from provla.study.grid import GridSweeper, values_of

if TYPE_CHECKING:
    from provla.jobs.sweep import Job

MISSES = 100  # points in a row that were there already, after which the space is taken for exhausted
ELSEWHERE = "give this one a folder of its own (study=<name> or hydra.sweep.dir=<folder>)"


class SearchSweeper(GridSweeper):
    """Optuna over the axes, by hydra-optuna-sweeper's parsing of spaces; `n_trials` counts all trials, restarts
    included.
    """

    kind = "search"

    def __init__(
        self,
        params: DictConfig | None,
        n_trials: int,
        n_jobs: int | None,
        direction: str | None,
        max_failure_rate: float,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(params, timeout)
        if n_trials < 1:
            raise ValueError(f"hydra.sweeper.n_trials={n_trials}: must be at least 1")
        if direction not in (None, "minimize", "maximize"):
            raise ValueError(
                f"hydra.sweeper.direction={direction!r}; valid: minimize, maximize, null (as the objective needs)"
            )
        self.n_trials, self.n_jobs, self.direction, self.max_failure_rate, self.options = (
            n_trials,
            n_jobs,
            direction,
            max_failure_rate,
            options,
        )

    def _sweep(self, axes: dict[str, Any]) -> int:
        from rich.markup import escape

        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
        from provla.core.progress import console
        from provla.jobs.sweep import save_sweep
        from provla.pruner import opened
        from provla.study.plan import announce

        if self.composed.get("arms"):
            raise ValueError("arms are for grids; with hydra/sweeper=optuna, give axes alone")
        arguments = [
            f"{key}=choice({','.join(values_of(o))})" if _is_glob(o) else str(o.input_line) for key, o in axes.items()
        ]
        space, fixed = create_params_from_overrides(arguments)
        if not space:
            raise ValueError(
                "nothing to search: give at least one axis, such as 'trainer.lr=tag(log, interval(1e-5, 1e-3))'"
            )
        path, name, direction = self._set_up()
        self._trusted = self._check_space(space, fixed)
        with opened(path) as storage:
            self._search(self._open(storage, name, space, direction), space, fixed)
            jobs = [job for _, job in self._queue.values()]
            sweep = self._describe(jobs)
            sweep.n_trials, sweep.best, sweep.storage = self.n_trials, self._best(storage, name), self._storage
            save_sweep(self.folder, sweep)
        announce(sweep, self.folder, None)
        if best := sweep.best:
            folder = escape(str(self.folder / best["folder"]))
            console.print(f"best: trial {best['trial']}, {best['metric']} {best['value']:.4g}, in {folder}")
        console.print(
            f"sweep done: {self._count(jobs)}; importance and pictures: python -m provla.report {self._report_key()}"
        )
        return 0 if sweep.best else 1

    def _set_up(self) -> tuple[Path, str, str]:
        """Makes hydra-optuna-sweeper's machinery. Returns the storage's file, the study's name in it, the direction."""
        from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
        from provla.study.trials import STORE

        options = dict(self.options)
        given = options.pop("storage")
        if given and not str(given).startswith("sqlite:///"):
            raise ValueError(f"hydra.sweeper.storage={given!r}: expected sqlite:///<file>")
        path = Path(str(given).removeprefix("sqlite:///")).absolute() if given else self.folder / STORE
        name = options.pop("study_name") or str(self.composed.study or "search")
        direction = self.direction or self._direction()
        fixed = {"storage": None, "n_jobs": 1, "max_failure_rate": 1.0, "params": None}
        self.impl = OptunaSweeperImpl(direction=direction, study_name=name, n_trials=self.n_trials, **fixed, **options)
        self.impl.config = self.composed
        self._storage = [str(path) if given else STORE, name]  # its own moves with the folder
        return path, name, direction

    def _open(self, storage: Any, name: str, space: Mapping[str, Any], direction: str) -> Any:
        """Optuna's study, new or as it was left."""
        import optuna

        sampler = self.impl.sampler
        if not isinstance(sampler, optuna.samplers.BaseSampler):  # hydra/sweeper/sampler=grid
            choices = {key: self.impl._to_grid_sampler_choices(distribution) for key, distribution in space.items()}
            sampler = sampler(choices)
            self.n_trials = min(self.n_trials, math.prod(map(len, choices.values())))
        try:
            return optuna.create_study(
                study_name=name, storage=storage, sampler=sampler, direction=direction, load_if_exists=True
            )
        except ValueError as error:  # Optuna's own for a direction that differs from the stored one
            raise ValueError(
                f"hydra.sweeper.direction={direction}: the search in {self.folder} was begun with the other; "
                f"{ELSEWHERE}"
            ) from error

    def _search(self, study: Any, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        """Runs trials until there are `n_trials`, those of earlier starts among them."""
        from provla.core.progress import console

        waiting = self._take_up(study, space, fixed)
        if self._queue:
            study.sampler.reseed_rng()  # else a seeded sampler would draw its first points again
            console.print(
                f"{len(self._queue)} of {self.n_trials} trials are in {self.folder} already, {len(waiting)} of them "
                "interrupted"
            )
        at_once = self.n_jobs or self._at_once()  # a sampler learns nothing from trials that run beside each other
        while True:
            batch, waiting = waiting[:at_once], waiting[at_once:]
            batch += self._draw(study, at_once - len(batch), space, fixed)
            if not batch:
                break
            self._save_progress()
            self.runner.order, self.runner.total = [job.folder for _, job in self._queue.values()], self.n_trials
            self.runner.run([self._queue[trial.number] for trial in batch])
            self._tell(study, batch)
        if len(self._queue) < self.n_trials:
            console.print(f"the space holds no further points than these {len(self._queue)}")

    def _take_up(self, study: Any, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Any]:
        """Fills the queue with the trials of earlier starts; returns those that were interrupted."""
        from optuna.trial import Trial

        from provla.study.trials import VOID

        there = study.get_trials(deepcopy=False)
        self._check_unchanged(there, space)
        self._queue: dict[int, tuple[Overrides, Job]] = {}
        self._seen: dict[str, int] = {}
        waiting: list[Any] = []
        for earlier in there:
            if VOID in earlier.user_attrs:
                continue
            overrides = tuple(earlier.user_attrs["overrides"]) if "overrides" in earlier.user_attrs else None
            if overrides is None and not earlier.state.is_finished():  # killed before it had drawn its values
                self._void(study, Trial(study, earlier._trial_id), "nothing drawn")
            elif overrides is not None:
                self._check_stored(overrides, fixed)
                job = self._one(overrides, space, earlier.number)
                self._check_base(overrides, {*space, *earlier.distributions}, fixed)
                self._queue[earlier.number], self._seen[job.config_hash] = (overrides, job), earlier.number
                if not earlier.state.is_finished():
                    waiting.append(Trial(study, earlier._trial_id))
        return waiting

    def _draw(self, study: Any, count: int, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Any]:
        """Up to so many new trials; fewer where there are `n_trials`, or where no more points seem to be there."""
        batch: list[Any] = []
        misses = 0
        while len(batch) < count and len(self._queue) < self.n_trials and misses < MISSES:
            trial = study.ask()
            (overrides,) = (tuple(one) for one in self.impl._configure_trials([trial], dict(space), dict(fixed)))
            job = self._one(overrides, space, trial.number)
            if job.config_hash in self._seen:  # no point is evaluated twice
                self._void(study, trial, f"the point of trial {self._seen[job.config_hash]}")
                misses += 1
                continue
            misses = 0
            trial.set_user_attr("overrides", list(overrides))
            trial.set_user_attr("job", job.folder)
            self._queue[trial.number], self._seen[job.config_hash] = (overrides, job), trial.number
            batch.append(trial)
        return batch

    def _void(self, study: Any, trial: Any, reason: str) -> None:
        """Ends a trial that is none: it counts nowhere."""
        from optuna.trial import TrialState

        from provla.study.trials import VOID

        trial.set_user_attr(VOID, reason)
        study.tell(trial, state=TrialState.FAIL)

    def _tell(self, study: Any, batch: Sequence[Any]) -> None:
        from optuna.trial import TrialState

        from provla.core.result import read_result

        failed = 0
        for trial in batch:
            result = read_result(self.folder / self._queue[trial.number][1].folder)
            if result.status == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            elif math.isfinite(result.value):
                study.tell(trial, result.value)
            else:  # NaN and failures end a trial, not the study
                study.tell(trial, state=TrialState.FAIL)
                failed += 1
        if failed / len(batch) > self.max_failure_rate:
            raise ValueError(
                f"{failed} of {len(batch)} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; see their result.json"
            )

    def _one(self, overrides: Overrides, space: Mapping[str, Any], trial: int) -> Job:
        point = {key: value for key, value in (one.split("=", 1) for one in overrides) if key in space}
        job = self._jobs({overrides: (point, None)})[0]
        return replace(job, trial=trial, arm=", ".join(f"{k}={_short(v)}" for k, v in point.items() if k != "seed"))

    def _check_base(self, overrides: Overrides, axes: set[str], fixed: Mapping[str, Any]) -> None:
        """`ValueError` where a trial there was of another configuration than this start gives it, beside its values on
        the axes.
        """
        from provla.core.identity import differences

        own = [one for one in overrides if one.partition("=")[0] in axes]
        now = (*own, *(f"{key}={value}" for key, value in fixed.items() if key not in axes))
        if set(now) == set(overrides):
            return
        if other := differences(self.files.plain(now), self.files.plain(overrides)):
            raise ValueError(
                f"the search in {self.folder} was begun with another configuration ({'; '.join(other[:4])}); "
                f"{ELSEWHERE}"
            )

    def _save_progress(self) -> None:
        from provla.jobs.sweep import save_sweep

        sweep = self._describe([job for _, job in self._queue.values()])
        sweep.n_trials, sweep.storage = self.n_trials, self._storage
        save_sweep(self.folder, sweep)

    def _check_stored(self, overrides: Overrides, fixed: Mapping[str, Any]) -> None:
        """`ValueError` where a trial in the storage, which anybody can have written, names code that this start does
        not, or changes Hydra.
        """
        from provla.core.trust import check_stored

        known = {f"{key}={value}" for key, value in fixed.items()}
        for one in overrides:
            if one.lstrip("+~").startswith("hydra") and one not in known:
                raise ValueError(
                    f"{one}: a trial stored in {self._storage[0]} of {self.folder} changes Hydra itself, which this "
                    "start does not"
                )
        check_stored(self.files.plain(overrides), f"{self._storage[0]} of {self.folder}", self._trusted)

    def _check_space(self, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
        """Composes one point per option of every axis, so that a wrong group, key or option is said before any job
        starts. Returns the
        modules that these name: what whoever starts the search trusts."""
        from provla.core.trust import modules

        named: set[str] = set()
        points: list[Overrides] = []
        first = {key: _options(distribution)[0] for key, distribution in space.items()}
        for key, distribution in space.items():
            for option in _options(distribution):
                points.append(tuple(f"{k}={v}" for k, v in {**first, key: option, **fixed}.items()))
                named |= set(modules(self.files.plain(points[-1])))
        self._check_built(points)
        return sorted(named)

    def _check_unchanged(self, there: Sequence[Any], space: Mapping[str, Any]) -> None:
        """`ValueError` where an axis' options are others than those that the trials there were drawn from, which Optuna
        cannot go on with.
        """
        from optuna.distributions import check_distribution_compatibility

        for earlier in there:
            for key in earlier.distributions.keys() & space.keys():
                try:
                    check_distribution_compatibility(earlier.distributions[key], space[key])
                except ValueError as error:
                    was, now = _spelled(earlier.distributions[key]), _spelled(space[key])
                    raise ValueError(
                        f"{key}={now}: the search in {self.folder} drew it from {was}, and options cannot change "
                        f"midway; {ELSEWHERE}"
                    ) from error

    def _direction(self) -> str:
        objective = str(self.composed.objective)
        simulated = "NoSuite" not in str(self.composed.env["_target_"])
        return "maximize" if objective.startswith("success_rate") or (objective == "auto" and simulated) else "minimize"

    def _best(self, storage: Any, name: str) -> dict[str, Any] | None:
        import optuna

        from provla.core.result import read_result

        study = optuna.load_study(study_name=name, storage=storage)
        done = [t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
        if not done:
            return None
        trial = study.best_trial
        folder = self._queue[trial.number][1].folder
        measured = read_result(self.folder / folder).objective
        metric = measured.name if measured else self.composed.objective
        return {"trial": trial.number, "metric": metric, "value": trial.value, "params": trial.params, "folder": folder}


def _spelled(distribution: Any) -> str:
    """A distribution as one would write it."""
    if hasattr(distribution, "choices"):
        return f"choice({','.join(map(str, distribution.choices))})"
    return f"interval({distribution.low},{distribution.high})"


def _is_glob(override: Any) -> bool:
    return type(override.value()).__name__ == "Glob"


def _options(distribution: Any) -> list[Any]:
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low]


def _short(value: str) -> str:
    try:
        return value if re.fullmatch(r"-?\d+", value) else f"{float(value):.3g}"
    except ValueError:
        return value
