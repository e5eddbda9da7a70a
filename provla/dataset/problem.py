"""What is wrong with a data set, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set: in which file (relative to it), episode and frame, and what. None: the whole of
    it.
    """

    file: str
    episode: int | None
    frame: int | None
    what: str

    def __str__(self) -> str:
        place = [
            self.file,
            *([] if self.episode is None else [f"episode {self.episode}"]),
            *([] if self.frame is None else [f"frame {self.frame}"]),
        ]
        return f"{', '.join(place)}: {self.what}"
