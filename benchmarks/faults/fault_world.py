"""Faults of simulated worlds, and of policies whose actions are no numbers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from worlds import ToySuite  # noqa: E402

from provla.core.types import Observation, Spec  # noqa: E402
from provla.env.rollout import Outcome, rollout  # noqa: E402

KINDS = ("raise", "sys.exit", "os._exit", "segv", "hang", "hang in C", "nan")
SPEC = Spec(("eye",), (16, 16), 3, 2, 8, 1, 4, ("go left", "go right"), {"all": [0, 1]}, 10.0)


class Noise:
    """bad: the seed of an episode for which it has no numbers."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def eval(self) -> None: ...

    def act(self, observation: Observation, generator: Any) -> torch.Tensor:
        chunks = torch.stack([torch.randn(8, 2, generator=one) for one in generator]) + 1
        chunks[observation.state[:, -1, 1] == self.bad] = float("nan")
        return chunks


def play(faults: dict[int, tuple[str, int]], bad: int = -1, **options: Any) -> list[Outcome]:
    return rollout(Noise(bad), ToySuite(faults, **options), SPEC, 0, torch.device("cpu"))


def told(outcome: Outcome) -> tuple[Any, ...]:
    return (
        outcome.episode,
        outcome.success,
        outcome.steps,
        outcome.reason,
        [frame.tobytes() for frame in outcome.frames],
    )


def fault_worlds(place: Path) -> tuple[int, int, str]:
    """A world raises, exits, is killed by a signal, hangs, hangs in C, has NaN as its state; at the reset and in the
    middle of an episode
    """
    calm = [told(outcome) for outcome in play({})]
    tried = survived = 0
    for kind in KINDS:
        for when in (0, 6):
            found = [told(outcome) for outcome in play({2: (kind, when)}, timeout=2)]
            lost = [one for one in found if one[3]]
            tried += 1
            survived += (
                len(lost) == 1
                and lost[0][0].seed == 2
                and not lost[0][1]
                and [a for a in found if not a[3]] == [b for b in calm if b[0].seed != 2]
            )
    return tried, survived, "one failure each, with its reason; all other episodes equal to the last byte"


def fault_together(place: Path) -> tuple[int, int, str]:
    """All of these in one evaluation, twice, in one process and in three"""
    faults = {seed: (kind, i) for i, (seed, kind) in enumerate(zip((0, 1, 2, 100, 101, 102), KINDS, strict=False))}
    runs = [[told(outcome) for outcome in play(faults, timeout=2, workers=workers)] for workers in (1, 3, 3)]
    good = runs[0] == runs[1] == runs[2] and sum(bool(one[3]) for one in runs[0]) == len(faults)
    return 1, int(good), f"{len(faults)} of 8 episodes lost, the same ones each time"


def fault_policy(place: Path) -> tuple[int, int, str]:
    """A policy's actions are NaN in one episode"""
    calm, found = play({}), play({}, bad=101)
    lost = [outcome for outcome in found if outcome.reason]
    good = [outcome.episode.seed for outcome in lost] == [101] and "not finite" in lost[0].reason
    return (
        1,
        int(good and [told(a) for a in found if not a.reason] == [told(b) for b in calm if b.episode.seed != 101]),
        lost[0].reason if lost else "",
    )


def fault_orphans(place: Path) -> tuple[int, int, str]:
    """The process of an evaluation is killed with SIGKILL while its worlds work, and while one hangs with the
    interpreter's lock held
    """
    tried = survived = 0
    for faults in ({}, {2: ("hang in C", 0)}):
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}, "
            f"{str(Path(__file__).parent)!r}]\nimport fault_world, time\nact = "
            "fault_world.Noise.act\nfault_world.Noise.act = lambda self, *given: (print('GO', flush=True), "
            f"time.sleep(1), act(self, *given))[2]\nfault_world.play({faults!r}, timeout=1000, each=50)\n"
        )
        run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert run.stdout
        if not faults:
            while "GO" not in run.stdout.readline():
                pass
        else:
            _wait_for(run.pid)
        time.sleep(2)
        children = _children(run.pid)
        run.kill()
        run.wait()
        time.sleep(3)
        tried += 1
        survived += bool(children) and not any(Path(f"/proc/{pid}").exists() for pid in children)
    return tried, survived, "no process is left after three seconds"


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _wait_for(pid: int) -> None:
    end = time.monotonic() + 60
    while len(_children(pid)) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(3)
