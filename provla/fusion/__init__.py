"""Fusions: where vision, text and state meet. One file per arm; no arm knows of another."""

from provla.fusion.concat_mlp import ConcatMLP
from provla.fusion.film import FiLM
from provla.fusion.perceiver import Perceiver

__all__ = ["ConcatMLP", "FiLM", "Perceiver"]
