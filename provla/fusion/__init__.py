"""Fusions, where vision, text and state meet: (`Tokens`, `Tokens`, (B,T,S)) → context `Tokens`.

No arm knows of another; what several are made of stands in `parts`.

Add: the pooled modalities in one width, added.
Bilinear: a low-rank product of vision, text and state.
Bottleneck: vision and text exchange through a few tokens only.
ConcatMLP: the pooled modalities side by side.
CrossAttention: text attends to vision and vision to text, in turn.
FiLM: the instruction scales and shifts every vision token.
GatedCrossAttention: text and state look at the image through gates that start closed.
JointAttention: one transformer over all tokens, with a read-out token.
MoE: soft experts on every vision token, weighted by instruction and state.
Perceiver: learned latents attend to all tokens, then to each other.
QFormer: learned queries that read the instruction, then the image.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "Add": "add",
        "Bilinear": "bilinear",
        "Bottleneck": "bottleneck",
        "ConcatMLP": "concat_mlp",
        "CrossAttention": "cross_attention",
        "FiLM": "film",
        "GatedCrossAttention": "gated_cross_attention",
        "JointAttention": "joint_attention",
        "MoE": "moe",
        "Perceiver": "perceiver",
        "QFormer": "qformer",
    },
)
