"""joblib's launcher, in which several small runs may share a GPU."""

from __future__ import annotations

from typing import Any

from hydra_plugins.hydra_joblib_launcher import joblib_launcher


class JoblibLauncher(joblib_launcher.JoblibLauncher):
    """A process per place of this machine. jobs_per_gpu: has been reckoned into `n_jobs` (`jobs.sweep.places`)."""

    def __init__(self, jobs_per_gpu: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
