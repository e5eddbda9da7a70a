"""Can each of Meta-World's 50 tasks be recorded? python benchmarks/experts.py

Six demonstrations of each by its scripted expert, as `dataset=metaworld` records them (noise, limit), without pictures.
Writes benchmarks/experts.csv: attempts that the six took, and the steps of the longest. Takes two minutes.
"""

from __future__ import annotations

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.files import csv_text, write_text
from provla.core.progress import progress_bars
from provla.dataset.recording import MAX_ATTEMPTS, _demonstrate

WANTED = 6


class Tally:
    """What `_demonstrate` writes to, counted."""

    def __init__(self) -> None:
        self.attempts, self.frames, self.lengths = 1, 0, [0]

    def add_frame(self, frame: object) -> None:
        self.frames += 1

    def save_episode(self) -> None:
        self.lengths.append(self.frames)
        self.frames = 0

    def clear_episode_buffer(self) -> None:
        self.attempts, self.frames = self.attempts + 1, 0


class Blind:
    """A world that draws nothing."""

    def __init__(self, world: object) -> None:
        self._world, size = world, world.embodiment.cameras["corner2"]  # type: ignore[attr-defined]
        self._picture = np.zeros((*size, 3), np.uint8)

    def __getattr__(self, name: str) -> object:
        return getattr(self._world, name)

    def images(self) -> dict[str, object]:
        return {"corner2": self._picture}


def main() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", ["dataset=metaworld", "dataset.tasks=mt50"]), resolve=True)
    recording, rows = build(node["dataset"], "dataset").recording, []  # type: ignore[index, call-overload]
    with progress_bars() as bars:
        bar = bars.add_task("experts", total=len(recording.tasks), note="")
        for task in recording.tasks:
            world, attempts, longest, made = recording.make(task), 0, 0, 0
            for number in range(WANTED):
                tally = Tally()
                try:
                    _demonstrate(recording, Blind(world), task, number, tally)
                    made += 1
                    attempts, longest = attempts + tally.attempts, max(longest, *tally.lengths)
                except ValueError:  # it failed too often in a row
                    attempts += MAX_ATTEMPTS
            world.close()
            rows.append({"task": task, "demonstrations": made, "attempts": attempts, "longest": longest})
            bars.advance(bar)
    write_text(ROOT / "benchmarks" / "experts.csv", csv_text(rows))
    hard = sorted(rows, key=lambda row: -row["attempts"])[:5]
    print(f"{sum(row['demonstrations'] == WANTED for row in rows)} of {len(rows)} tasks gave {WANTED} demonstrations")
    print("most attempts:", ", ".join(f"{row['task']} {row['attempts']}" for row in hard))


if __name__ == "__main__":
    main()
