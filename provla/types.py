"""Where classes of one's own took the shapes from when these stood here."""

from provla.core.types import Batch, Observation, Spec, Tokens

__all__ = ["Batch", "Observation", "Spec", "Tokens"]
