"""Trackers: told of a run's metrics, pictures, checkpoints and result.

NoLogger: keeps nothing.
CsvLogger: metrics.csv.
WandbLogger: Weights & Biases, beside metrics.csv.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "NoLogger": "parts",
        "CsvLogger": "csv",
        "WandbLogger": "wandb",
    },
)
