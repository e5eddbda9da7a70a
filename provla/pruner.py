"""Pruners: end the jobs of a sweep whose validation curve falls behind their siblings'.

Optuna's pruners decide, on a study of their own beside the jobs (`pruning.db`), so that grids and searches, and jobs in
one process or in many, prune alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from provla.core.checks import Count, Natural
from provla.core.claims import Taken, claimed
from provla.core.files import writing

STORE = "pruning.db"
PATIENCE = 20  # seconds to wait for a storage that another process holds


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An Optuna storage in an SQLite file. `ValueError` where the file is damaged or another process holds it."""
    import optuna
    from sqlalchemy.exc import DatabaseError

    optuna.logging.set_verbosity(logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(path.with_name(f".{path.name}.claim"), 60):  # two processes must not make the tables at once
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE}}
            )
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (DatabaseError, optuna.exceptions.StorageInternalError, Taken) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        held = (
            "another process holds it; stop that one, or wait"
            if isinstance(error, Taken) or "lock" in reason
            else "it is damaged; delete it to start the study's bookkeeping anew"
        )
        with writing(path):  # a full disk is no damage
            raise ValueError(f"the storage {path} cannot be used ({reason}): {held}") from error


class NoPruner:
    """Every job runs to its end."""

    def open(self, job: Path, total: int) -> None:
        """job: its folder; its siblings lie beside it. total: the steps of the whole training."""

    def prune(self, step: int, value: float) -> bool:
        """Told a validation's value (lower is better), says whether the job should end."""
        return False

    def close(self, status: str) -> None:
        """status: completed, pruned, failed."""


class _OptunaPruner(NoPruner):
    def __init__(self) -> None:
        self._store: Path | None = None

    def make(self, total: int) -> Any:
        raise NotImplementedError

    def open(self, job: Path, total: int) -> None:
        self._store, self._pruner = job.parent / STORE, self.make(total)
        with self._study() as study:
            mine = [
                t
                for t in study.get_trials(deepcopy=False)
                if t.user_attrs.get("job") == job.name and not t.state.is_finished()
            ]
            if mine:  # the job was interrupted and goes on
                self._number = mine[0].number
            else:
                trial = study.ask()
                trial.set_user_attr("job", job.name)
                self._number = trial.number

    def prune(self, step: int, value: float) -> bool:
        with self._study() as study:
            trial = self._trial(study)
            trial.report(value, step)  # a step that was reported before the job was interrupted stays as it was
            return bool(trial.should_prune())

    def close(self, status: str) -> None:
        from optuna.trial import TrialState

        with self._study() as study:
            trial = self._trial(study)
            values = study.get_trials(deepcopy=False)[self._number].intermediate_values
            last = values[max(values)] if values else None
            if status == "completed" and last is not None:
                study.tell(trial, last)
            else:
                study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)

    @contextmanager
    def _study(self) -> Iterator[Any]:
        import optuna

        if self._store is None:
            raise AssertionError("a pruner is opened before it is asked")
        # In turns, from before the file is opened: SQLite's own locks hold among the processes of one host alone.
        with claimed(self._store.with_name(f".{STORE}.turn"), 60), opened(self._store) as storage:
            yield optuna.create_study(
                storage=storage,
                study_name="pruning",
                pruner=self._pruner,
                sampler=optuna.samplers.RandomSampler(),
                direction="minimize",
                load_if_exists=True,
            )

    def _trial(self, study: Any) -> Any:
        import optuna

        return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[self._number]._trial_id)


class Median(_OptunaPruner):
    """Ends a job whose best value so far is worse than the median of its finished siblings at the same step (Golovin
    2017, Vizier).

    n_startup_jobs: siblings that must have finished before any job is pruned. n_warmup_steps: training steps during
    which none is.
    """

    def __init__(self, n_startup_jobs: Natural, n_warmup_steps: Natural) -> None:
        super().__init__()
        self.n_startup_jobs, self.n_warmup_steps = n_startup_jobs, n_warmup_steps

    def make(self, total: int) -> Any:
        import optuna

        return optuna.pruners.MedianPruner(n_startup_trials=self.n_startup_jobs, n_warmup_steps=self.n_warmup_steps)


class Hyperband(_OptunaPruner):
    """Brackets of successive halving (Li 2018): at each rung, only the best 1 / reduction_factor of a bracket's jobs go
    on.

    min_steps: training steps before the first rung; null: a ninth of the training.
    """

    def __init__(self, min_steps: Count | None, reduction_factor: Annotated[int, Ge(2), Le(1000)]) -> None:
        super().__init__()
        self.min_steps, self.reduction_factor = min_steps, reduction_factor

    def make(self, total: int) -> Any:
        import optuna

        least = min(self.min_steps or max(1, total // 9), total)
        return optuna.pruners.HyperbandPruner(
            min_resource=least, max_resource=max(total, 1), reduction_factor=self.reduction_factor
        )
