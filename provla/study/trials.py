"""A search as its Optuna storage holds it: trials, what mattered, which was best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORE = "optuna.db"
VOID = "void"  # the user attribute of a trial that counts nowhere: it drew a point that another had drawn


@dataclass(frozen=True)
class Trial:
    """state: complete, pruned, fail or running. value: of a complete one, else nan. params: key → value, numbers as
    numbers.
    """

    number: int
    state: str
    value: float
    params: dict[str, Any]
    logarithmic: frozenset[str]
    folder: str


def load_trials(path: Path, name: str) -> tuple[list[Trial], dict[str, float]]:
    """The trials of the search `name`, and the importance of its parameters: the mean decrease of impurity of a random
    forest on the complete trials, shares of 1 (Breiman 2001; empty below four trials). `ValueError` where the storage
    is missing, damaged or held.
    """
    import optuna

    from provla.pruner import opened

    if not path.is_file():
        raise ValueError(f"no storage {path}: parameter importance needs it")
    with opened(path) as storage:
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError as error:
            raise ValueError(f"the storage {path} holds no study {name!r}") from error
        trials = [
            _trial(found)
            for found in study.get_trials(deepcopy=False)
            if VOID not in found.user_attrs and "job" in found.user_attrs
        ]
        importances: dict[str, float] = {}
        complete = [trial for trial in trials if trial.state == "complete"]
        if len(complete) >= 4 and len({trial.value for trial in complete}) > 1:
            forest = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
            importances = {
                str(key): float(share)
                for key, share in optuna.importance.get_param_importances(study, evaluator=forest).items()
            }
        return trials, importances


def _trial(found: Any) -> Trial:
    value = found.value if found.state.name == "COMPLETE" else math.nan
    logarithmic = frozenset(
        key
        for key, distribution in found.distributions.items()
        if getattr(distribution, "log", False) or "Log" in type(distribution).__name__
    )
    params = {key: number(chosen) for key, chosen in found.params.items()}
    return Trial(found.number, found.state.name.lower(), value, params, logarithmic, found.user_attrs["job"])


def number(value: Any) -> Any:
    """A value that reads as a number as one."""
    try:
        return int(value) if str(value).lstrip("-").isdigit() else float(value)
    except (TypeError, ValueError):
        return value
