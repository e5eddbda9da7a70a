"""What a GPU is handed and told without anybody waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. What goes from the host to a GPU goes by pinned memory, and nobody waits; the host's
    tensor may be given up at once.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def settle(device: torch.device) -> None:
    """Waits until a GPU has done all it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seed_torch(seed: int, device: torch.device) -> None:
    """Seeds torch's generator of the CPU and that of `device`; other GPUs' stay as they are (`torch.manual_seed` seeds
    every GPU).
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
