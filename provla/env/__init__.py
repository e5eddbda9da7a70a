"""Worlds: a suite says which episodes there are, and makes the worlds that play them.

NoSuite: no closed-loop episodes.
MetaworldSuite: tasks of Meta-World.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "NoSuite": "episode",
        "MetaworldSuite": "metaworld",
    },
)
