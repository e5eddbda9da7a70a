"""One training: its options, its loop, its checkpoints.

Trainer: what the group `trainer` sets.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "Trainer": "options",
    },
)
