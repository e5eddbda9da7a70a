"""Hydra looks for sweepers in this package; provla's live in `provla.study`, and everything heavy is imported where it is used."""

from provla.study.grid import GridSweeper
from provla.study.search import SearchSweeper

__all__ = ["GridSweeper", "SearchSweeper"]
