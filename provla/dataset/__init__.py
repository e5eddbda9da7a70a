"""Data sets: a source has `load() -> Demonstrations`, all episodes as arrays, of which `Sampler` gathers batches.

LeRobotSource: any LeRobot v3 data set, from a folder or the Hub.
MetaworldSource: demonstrations of Meta-World's scripted experts, recorded on first use.
FakeSource: random pixels and smooth motions, in memory.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "LeRobotSource": "lerobot",
        "MetaworldSource": "metaworld",
        "FakeSource": "fake",
    },
)
