"""What a training has come to; its seeds and its accelerator."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from provla.core.device import seed_torch
from provla.core.ranks import joined

PRUNED = "pruned"  # how `Fit.stopped` begins where a pruner ended the training


@dataclass
class Fit:
    """What a training left behind. history: one row per logged step. stopped: why it ended.

    skipped: the steps whose update was left out. due: the validation of this step is still to come. sums, window: of
    the `Gauge`, and the seconds, since the last logged step.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    due: bool = False
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    window: float = 0.0


def make_accelerator(precision: str, device: torch.device, shard: bool = False) -> Any:
    """accelerate's Accelerator for one run; a process may make several, one after the other, with other settings.

    shard: autocast keeps no copies of the weights that were gathered.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision == "auto":
        precision = "none" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "trainer.precision=fp16 needs a GPU (its loss scaling has no CPU kernels); on the CPU use bf16 or none"
        )
    AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate trains on the present one, whatever the policy lies on
    if joined().size == 1:
        os.environ.pop("LOCAL_RANK", None)  # of a launcher that started this process alone
    chosen = {"mixed_precision": "no" if precision == "none" else precision, "cpu": device.type == "cpu"}
    return Accelerator(**chosen) if joined().size == 1 else _accelerate_ranks(chosen, shard)


def _accelerate_ranks(chosen: dict[str, Any], shard: bool) -> Any:
    """DDP. A weight may get no gradient at a step (an expert that no token chose). Buffers are not sent around at every
    step: what is judged and kept is rank 0's.
    """
    from accelerate import Accelerator, AutocastKwargs, DistributedDataParallelKwargs

    for key in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(key, "false").lower() in ("1", "true"):
            raise ValueError(
                f"{key}={os.environ[key]}: provla asks for nothing of it; turn it off. FSDP2 is trainer.shard=true"
            )
    if (count := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise ValueError(
            f"accelerate launch asks for {count} accumulated steps; give trainer.grad_accumulation={count}"
        )
    threads = torch.get_num_threads()  # accelerate sets it too
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    found = Accelerator(**chosen, kwargs_handlers=[ddp, AutocastKwargs(cache_enabled=not shard)])
    torch.set_num_threads(threads)
    return found


def make_optimizer(weights: Mapping[str, Parameter], lr: float, betas: tuple[float, float], weight_decay: float) -> Any:
    """AdamW; vectors and scalars do not decay. Fused: 3.3 times faster than the default on CPUs too."""
    decayed = [p for p in weights.values() if p.ndim > 1]
    others = [p for p in weights.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)


def optimizer_tensors(optimizer: Any, weights: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """What an optimiser remembers, by `<weight>:<what>`."""
    names = {id(p): name for name, p in weights.items()}
    return {
        f"{names[id(p)]}:{key}": value
        for p, slots in optimizer.state.items()
        for key, value in slots.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Any, weights: Mapping[str, Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Makes it remember what `optimizer_tensors` gave."""
    slots: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    for key, value in tensors.items():
        name, _, what = key.rpartition(":")
        if name in slots:  # the step count stays where fused AdamW keeps it: with its parameter
            slots[name][what] = value.to(weights[name].device)
    for name, parameter in weights.items():
        optimizer.state[parameter] = slots[name]


def seed_everything(seed: int, *path: int, device: torch.device | None = None) -> None:
    """python's, numpy's and torch's generators, from the run's seed and where in the run we are. device: the only one
    that is about to draw; None: every GPU's.
    """
    import random

    state = np.random.SeedSequence([seed, *path]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    if device is None:
        torch.manual_seed(int(state[2]))
    else:
        seed_torch(int(state[2]), device)
