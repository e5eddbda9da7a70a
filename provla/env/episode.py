"""What an evaluation plays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Episode:
    """One closed-loop episode: what every policy meets in the same way. `film` > 0 keeps a frame every so many
    steps.
    """

    task: str
    instruction: str
    seed: int
    film: int = 0


class NoSuite:
    """`env=none`: no simulation; a policy is judged on held-out demonstrations alone."""

    episodes: tuple[Episode, ...] = ()
