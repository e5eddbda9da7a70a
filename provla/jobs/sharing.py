"""Jobs of a sweep that train the same weights: the first one trains, its siblings wait for it, take its training over,
and judge on their own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provla.core.claims import Claim
from provla.core.files import SWEEP, atomic, fingerprint, link_or_copy, write_json
from provla.core.identity import sampler_steps, training_identity
from provla.core.progress import console

MARK = "training.json"  # in a run's folder: its training is done, and who did it


class Training:
    """A run's training among those of its sweep.

    checkpoints: the identity of its checkpoints, which is the same with and without a pruner, so that a pruned run can
    go on.
    by: the sibling's folder that trained these weights; None: this run trains for itself. anew: they were taken over
    just now.
    foreign: the sibling validated with other sampler steps, so that its metrics of sampled chunks are not this run's.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], claim: Claim | None = None) -> None:
        self.identity, self._folder, self._claim = training_identity(config), folder, claim
        self.checkpoints = training_identity({**config, "pruner": {"_target_": "provla.pruner.NoPruner"}})
        self._sampler = fingerprint(sampler_steps(config))
        self.by: str | None = None
        self.anew = self.foreign = False

    def look_around(self) -> None:
        """Takes over what this run took over before, or what a sibling has finished."""
        mine = self._finished(self._folder)
        if mine is None:
            found = [
                (file.parent, mark)
                for file in sorted(self._folder.parent.glob(f"*/{MARK}"))
                if (mark := self._finished(file.parent))
            ]
            if not found:
                return
            # Who trained rather than who took over.
            sibling, mark = min(found, key=lambda pair: pair[1].get("by") is not None)
            self._copy(sibling)
            mine = {**mark, "by": mark.get("by") or sibling.name}
            write_json(self._folder / MARK, mine)
            self.anew = True
            console.print(f"{mine['by']} has trained these weights already; this job takes them over and judges them")
        self.by = mine.get("by")
        self.foreign = mine.get("sampler") != self._sampler

    def done(self, step: int) -> None:
        """The training is at its end, with a checkpoint; siblings that wait go on."""
        if self.by is None:
            write_json(
                self._folder / MARK, {"training": self.identity, "step": step, "sampler": self._sampler, "by": None}
            )
        self.release()

    def release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def own(self, history: Sequence[Mapping[str, float]], judged: int | None = None) -> list[dict[str, float]]:
        """The part of a history that is this run's too: without the metrics that another sampler gave, and without the
        validation of step `judged`.
        """
        if not self.foreign:
            return [dict(row) for row in history]
        rows = [{k: v for k, v in row.items() if not k.startswith("val/") or k == "val/loss"} for row in history]
        return [row for row in rows if not (row["step"] == judged and "val/loss" in row)]

    def _finished(self, folder: Path) -> dict[str, Any] | None:
        """The mark of a training of these weights that is at its end, with the checkpoint that it names."""
        with contextlib.suppress(OSError, ValueError):
            mark = json.loads((folder / MARK).read_text())
            if isinstance(mark, dict) and mark.get("training") == self.identity and isinstance(mark.get("step"), int):
                return mark if (folder / "checkpoints" / f"step_{mark['step']:07d}").is_dir() else None
        return None

    def _copy(self, sibling: Path) -> None:
        """Its checkpoints, as hard links where the disk has them: nothing ever writes into a checkpoint's file."""
        with atomic(self._folder / "checkpoints") as partial:
            ignore = shutil.ignore_patterns(".*", "*.damaged*")
            shutil.copytree(sibling / "checkpoints", partial, symlinks=True, ignore=ignore, copy_function=link_or_copy)


@contextmanager
def one_training(folder: Path, config: Mapping[str, Any]) -> Iterator[Training]:
    """A run's turn to train: in a sweep, jobs with equal weights take turns until one has trained. A killed one gives
    its turn back.
    """
    training = Training(folder, config)
    if not (folder.parent / SWEEP).is_file():
        yield training
        return
    claim = Claim(folder.parent / ".trainings" / training.identity)
    claim.take(waiting=lambda who: console.print(f"a sibling ({who}) is training the same weights; waiting for them"))
    training = Training(folder, config, claim)
    try:
        training.look_around()
        if training.by is not None:
            training.release()
        yield training
    finally:
        training.release()
