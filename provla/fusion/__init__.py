"""Fusions: where vision, text and state meet. One file per arm; no arm knows of another."""

from provla.fusion.add import Add
from provla.fusion.bilinear import Bilinear
from provla.fusion.bottleneck import Bottleneck
from provla.fusion.concat_mlp import ConcatMLP
from provla.fusion.cross_attention import CrossAttention
from provla.fusion.film import FiLM
from provla.fusion.gated_cross_attention import GatedCrossAttention
from provla.fusion.joint_attention import JointAttention
from provla.fusion.moe import MoE
from provla.fusion.perceiver import Perceiver
from provla.fusion.qformer import QFormer

__all__ = [
    "Add",
    "Bilinear",
    "Bottleneck",
    "ConcatMLP",
    "CrossAttention",
    "FiLM",
    "GatedCrossAttention",
    "JointAttention",
    "MoE",
    "Perceiver",
    "QFormer",
]
