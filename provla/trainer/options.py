"""The options of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from provla.core.checks import Count, Fraction, Name, Natural, NonNegative, Positive, check_values
from provla.core.progress import console
from provla.core.ranks import launched
from provla.dataset.sampler import Sampler
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.fit import Fit
from provla.trainer.loop import UNLIMITED, LogRow, Loop, Prune


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Options of the loop. Steps are optimiser steps; a step sees `batch_size · grad_accumulation` samples.

    max_steps, max_epochs, max_minutes (of training): whichever ends first; one must be given. A budget of minutes
    compares arms at equal time; its schedule follows the clock, so such a run is not repeated bit for bit. lr_schedule:
    cosine (to 0) or constant, both after `warmup_steps` of linear warm-up; a fraction below 1 counts as that part of
    all steps. precision, of the training steps alone: bf16, fp16 (with loss scaling), none; auto: bf16 on a GPU that
    has it, fp16 on another, none on the CPU. What is validated and judged acts in the precision of deployment
    (`provla.core.precision`). ema_decay: of the exponential moving average of the weights that is validated and kept; 0
    turns it off. Every `val_every` steps, or `val_every_epochs` epochs where that is given, and at the end, the
    objective and the metrics of sampled chunks are taken on `val_samples` evenly spaced validation samples, and a
    checkpoint is written; another one every `save_every` steps where that is given.
    monitor: the metric (lower is better) that decides `best` and, with `patience` validations without progress, ends
    the training early; patience null never does. keep: the weights the training ends with, latest or best.
    deterministic: torch's deterministic algorithms on a GPU too, and an error for an operation that has none (see
    `machine.reproducible`; on the CPU they are always taken). on_nan: where a step's loss or gradient is not finite,
    stop the run (its checkpoints stand), or skip the step: its update is left out, `max_skipped` times in a run; on a
    GPU, skip waits for each step's numbers. Either way `bad_batches/` beside the checkpoints names the step's episodes
    and frames. profile: where the time goes, as a page and a trace in the run's `profile/`; no result changes. graph:
    on: a step is one CUDA graph, where that can be (one GPU, one rank, no accumulation, no fp16), else a line says why
    not; it rounds the learning rate to float32. auto: off, until it has been tried on a GPU. shard: several ranks hold
    weights, gradients, optimiser and average in shards (FSDP2) and not each the whole (DDP), so that what does not fit
    one GPU's memory trains on several; checkpoints are the same files. One process has nothing to share.
    """

    batch_size: Count
    grad_accumulation: Count
    max_steps: Natural | None
    max_epochs: Count | None
    max_minutes: Positive | None
    lr: NonNegative
    lr_schedule: Literal["cosine", "constant"]
    warmup_steps: NonNegative
    weight_decay: NonNegative
    betas: tuple[Fraction, Fraction]
    grad_clip: Positive
    ema_decay: Fraction
    precision: Literal["auto", "none", "bf16", "fp16"]
    log_every: Count
    val_every: Count
    val_every_epochs: Count | None
    save_every: Count | None
    val_samples: Count
    monitor: Name
    patience: Count | None
    keep: Literal["latest", "best"]
    deterministic: bool
    on_nan: Literal["stop", "skip"] = "stop"
    max_skipped: Natural = 10
    graph: Literal["auto", "on", "off"] = "auto"
    profile: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        check_values(type(self), vars(self), "trainer")
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            raise ValueError(
                "trainer.max_steps, trainer.max_epochs and trainer.max_minutes are all null: the training would never "
                "end; set one"
            )
        for key, value, why in (
            ("graph", "on", "what shards say to each other in a step is in no graph"),
            ("precision", "fp16", "fp16's loss scaling has not been tried on shards"),
        ):
            if self.shard and getattr(self, key) == value:
                other = "auto" if key == "graph" else "bf16 or none"
                raise ValueError(
                    f"trainer.shard=true with trainer.{key}={value}: {why}; set trainer.{key}={other}, or "
                    "trainer.shard=false"
                )

    @property
    def max_seconds(self) -> float:
        return math.inf if self.max_minutes is None else 60 * self.max_minutes

    def check_samples(self, samples: int) -> None:
        """`ValueError` where a step wants more samples than there are, for it would see some of them twice, or a number
        that the ranks do not divide.
        """
        size = self.batch_size * self.grad_accumulation
        if size > samples:
            accumulated = f" × trainer.grad_accumulation={self.grad_accumulation}" if self.grad_accumulation > 1 else ""
            raise ValueError(
                f"trainer.batch_size={self.batch_size}{accumulated}: expected at most {samples} samples a step, which "
                "is all there are to train on; lower it, or give more episodes"
            )
        if size % (ranks := launched().size):
            accumulated = f" · trainer.grad_accumulation={self.grad_accumulation}" if self.grad_accumulation > 1 else ""
            raise ValueError(
                f"trainer.batch_size={self.batch_size}{accumulated}: the {size} samples of a step cannot be shared "
                f"evenly by {ranks} ranks; give a multiple of {ranks}, or start another number of processes"
            )

    def check_policy(self, policy: Any) -> None:
        """`ValueError` for a policy that cannot be trained so, before anything waits for it."""
        if self.shard and launched().size == 1:
            console.print(
                "trainer.shard=true: one process holds everything; several share it "
                "(torchrun --nproc-per-node=2 -m provla.train …)"
            )
        elif self.shard:
            from provla.trainer.shards import check_shardable

            check_shardable(policy)

    def total_steps(self, samples: int) -> int:
        """Optimiser steps of the whole training; more than anybody takes where only minutes limit it.

        Errors: `ValueError` where the warm-up would never end.
        """
        limits = [self.max_steps, None if self.max_epochs is None else self.max_epochs * self.steps_per_epoch(samples)]
        total = min((limit for limit in limits if limit is not None), default=UNLIMITED)
        if total == UNLIMITED and self.warmup_steps >= 1:
            raise ValueError(
                f"trainer.warmup_steps={self.warmup_steps:g}: a training of minutes has no number of steps; give a "
                "fraction below 1, such as 0.1"
            )
        if total and self._warmup(total) >= total:
            raise ValueError(
                f"trainer.warmup_steps={self.warmup_steps:g}: the training has {total} steps, so the learning rate "
                "would never get past its warm-up; give fewer, or a fraction such as 0.1, or train longer"
            )
        return total

    def _warmup(self, total: int) -> int:
        return round(self.warmup_steps * total) if self.warmup_steps < 1 else round(self.warmup_steps)

    def steps_per_epoch(self, samples: int) -> int:
        """Optimiser steps that see every sample once; the rest that fills no step is left out."""
        return max(1, samples // (self.batch_size * self.grad_accumulation))

    def lr_at(self, step: float, total: int) -> float:
        """The learning rate of a step; a pure function, so a resumed run follows the schedule of the
        uninterrupted one.
        """
        warmup = self._warmup(total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.lr_schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def fit(
        self,
        policy: Any,
        train: Sampler,
        val: Sampler,
        checkpoints: Checkpoints,
        seed: int,
        device: torch.device,
        log: LogRow,
        prune: Prune = lambda step, value: False,
    ) -> Fit:
        """Trains `policy` in place, from its latest checkpoint if there is one, and leaves the averaged weights in it.

        prune: told the monitored metric of each validation but the last, it says whether to end there.
        """
        try:
            return Loop(self, policy, train, val, checkpoints, seed, device, log, prune).run()
        finally:
            train.close()
