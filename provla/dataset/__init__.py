"""Data sets: a source has `load() -> Demonstrations`, all episodes as arrays, of which `Sampler` gathers batches.

LeRobotSource: any LeRobot v3 data set, from a folder or the Hub.
MetaworldSource: demonstrations of Meta-World's scripted experts, recorded on first use.
TwinsSource: those of twins, whose sentences alone tell what is to be done.
OgbenchSource: those of OGBench's oracles in its scene.
AlohaSource: those of a scripted expert with two arms, in gym-aloha's tasks.
RecordedSource: those of the scripted expert of a world of your own.
MixSource: several of these as one.
FakeSource: random pixels and smooth motions, in memory.
Demonstrations: what the `load` of a source of your own returns.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "LeRobotSource": "lerobot",
        "MetaworldSource": "metaworld",
        "TwinsSource": "metaworld",
        "OgbenchSource": "ogbench",
        "AlohaSource": "aloha",
        "RecordedSource": "recorded",
        "MixSource": "mix",
        "FakeSource": "fake",
        "Demonstrations": "demonstrations",
    },
)
