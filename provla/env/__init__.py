"""Worlds: a suite says which episodes there are, and makes the worlds that play them (`core/interfaces.py`).

NoSuite: no closed-loop episodes.
MetaworldSuite: tasks of Meta-World.
TwinsSuite: three scenes of Meta-World, each under two sentences.
OgbenchSuite: many goals in one scene of OGBench's.
AlohaSuite: two arms, in gym-aloha's tasks.
WorldSuite: worlds of a class of your own.
GymSuite: any gymnasium environment with pictures and a state.
Embodiment, Vector: what a world of your own says of its cameras, state and actions.
"""

from provla.core.lazy import lazy
from provla.core.world import Embodiment as Embodiment
from provla.core.world import Episode as Episode
from provla.core.world import Vector as Vector

__getattr__ = lazy(
    __name__,
    {
        "NoSuite": "none",
        "MetaworldSuite": "metaworld",
        "TwinsSuite": "twins",
        "OgbenchSuite": "ogbench",
        "AlohaSuite": "aloha",
        "WorldSuite": "world",
        "GymSuite": "gym",
        "TaskSuite": "suite",
    },
)
