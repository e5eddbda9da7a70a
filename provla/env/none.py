"""No world."""

from __future__ import annotations

from provla.core.world import Episode


class NoSuite:
    """`env=none`: no simulation; a policy is judged on held-out demonstrations alone."""

    episodes: tuple[Episode, ...] = ()
