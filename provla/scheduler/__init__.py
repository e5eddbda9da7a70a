"""Schedulers: what a head is trained to predict (`loss`), and how a chunk is made of its predictions (`sample`).

Diffusion: DDPM, DDIM and DPM-Solver++, by diffusers.
Flow: flow matching.
L1: regression, in one step.
MIP: regression, in two steps.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "Diffusion": "diffusion",
        "Flow": "flow",
        "L1": "l1",
        "MIP": "mip",
    },
)
