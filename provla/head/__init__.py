"""Heads: (noisy actions (B,H,A), time (B,) from 0 to 100, context `Tokens`) → (B,H,A).

UNet1d: convolutions over the chunk, which the context scales and shifts.
UNet1dConcat: convolutions over the chunk, with the context as further channels.
DiT: a transformer over the chunk.
MLP: the chunk as one vector.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "UNet1d": "unet1d",
        "UNet1dConcat": "unet1d",
        "DiT": "dit",
        "MLP": "mlp",
    },
)
