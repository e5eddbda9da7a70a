"""Policies: `loss(batch)` and `act(observation, generator) -> (B,H,A)`, in the robot's units.

ProVLA: vision, text, fusion, head and scheduler, composed.
LeRobotPolicy: LeRobot's ACT, Diffusion and multi-task DiT.
"""

from provla.core.lazy import lazy

__getattr__ = lazy(
    __name__,
    {
        "ProVLA": "provla",
        "LeRobotPolicy": "lerobot",
    },
)
