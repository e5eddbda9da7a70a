"""The training loop: on accelerate, resumable bit for bit, and ignorant of any model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from provla.checkpoint import Checkpoints, base_fingerprints, check_bases, count_bytes, load_state, own_state
from provla.dataset import Sampler
from provla.metrics import chunk_metrics, measured
from provla.precision import repeatable
from provla.progress import progress_bars

LogRow = Callable[[int, dict[str, float]], None]
Prune = Callable[[int, float], bool]
UNLIMITED = 10**9
PRUNED = "pruned"  # how `Fit.stopped` begins where a pruner ended the training


@dataclass
class Fit:
    """What a training left behind. history: one row per logged step. stopped: why it ended."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Options of the loop. Steps are optimiser steps; a step sees `batch_size · grad_accumulation` samples.

    max_steps, max_epochs, max_minutes (of training): whichever ends first; one must be given. A budget of minutes compares arms at equal
    time; its schedule follows the clock, so such a run is not repeated bit for bit. lr_schedule: cosine (to 0) or constant, both after `warmup_steps` of linear
    warm-up; a fraction below 1 counts as that part of all steps. precision, of the training steps alone: bf16, fp16 (with loss
    scaling), none; auto: bf16 on a GPU that has it, fp16 on another, none on the CPU. What is validated and judged acts in
    the precision of deployment (`provla.precision`). ema_decay: of the exponential moving average of the
    weights that is validated and kept; 0 turns it off. Every `val_every` steps, or `val_every_epochs` epochs where that is
    given, and at the end, the objective and the metrics of sampled chunks are taken on `val_samples` evenly spaced
    validation samples, and a checkpoint is written; another one every `save_every` steps where that is given.
    monitor: the metric (lower is better) that decides `best` and, with `patience` validations without progress, ends
    the training early; patience null never does. keep: the weights the training ends with, latest or best.
    deterministic: torch's deterministic algorithms on a GPU too, and an error for an operation that has none (see
    `machine.reproducible`; on the CPU they are always taken).
    """

    def __init__(
        self,
        batch_size: int,
        grad_accumulation: int,
        max_steps: int | None,
        max_epochs: int | None,
        max_minutes: float | None,
        lr: float,
        lr_schedule: str,
        warmup_steps: float,
        weight_decay: float,
        betas: tuple[float, float],
        grad_clip: float,
        ema_decay: float,
        precision: str,
        log_every: int,
        val_every: int,
        val_every_epochs: int | None,
        save_every: int | None,
        val_samples: int,
        monitor: str,
        patience: int | None,
        keep: str,
        deterministic: bool,
    ) -> None:
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("grad_accumulation", grad_accumulation, 1),
            ("log_every", log_every, 1),
            ("val_every", val_every, 1),
            ("val_every_epochs", 1 if val_every_epochs is None else val_every_epochs, 1),
            ("save_every", 1 if save_every is None else save_every, 1),
            ("val_samples", val_samples, 1),
            ("patience", 1 if patience is None else patience, 1),
            ("max_steps", 0 if max_steps is None else max_steps, 0),
            ("max_epochs", 1 if max_epochs is None else max_epochs, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"trainer.{key}={value!r}: must be a whole number of at least {least}")
        if max_steps is None and max_epochs is None and max_minutes is None:
            raise ValueError("trainer.max_steps, trainer.max_epochs and trainer.max_minutes are all null: the training would never end; set one")
        if max_minutes is not None and not max_minutes > 0:
            raise ValueError(f"trainer.max_minutes={max_minutes!r}: must be above 0, or null")
        for key, name, valid in (
            ("lr_schedule", lr_schedule, ("cosine", "constant")),
            ("precision", precision, ("auto", "none", "bf16", "fp16")),
            ("keep", keep, ("latest", "best")),
        ):
            if name not in valid:
                raise ValueError(f"trainer.{key}={name!r}; valid: {', '.join(valid)}")
        for key, number, low, high in (
            ("lr", lr, 0.0, math.inf),
            ("warmup_steps", warmup_steps, 0.0, math.inf),
            ("weight_decay", weight_decay, 0.0, math.inf),
            ("grad_clip", grad_clip, 1e-12, math.inf),
            ("ema_decay", ema_decay, 0.0, 1 - 1e-12),
        ):
            if not low <= number <= high:
                raise ValueError(f"trainer.{key}={number}: must lie between {low:g} and {high:g}")
        self.batch_size, self.grad_accumulation = batch_size, grad_accumulation
        self.max_steps, self.max_epochs = max_steps, max_epochs
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.lr, self.lr_schedule, self.warmup_steps = lr, lr_schedule, warmup_steps
        self.weight_decay, self.betas, self.grad_clip = weight_decay, (betas[0], betas[1]), grad_clip
        self.ema_decay, self.precision = ema_decay, precision
        self.log_every, self.val_samples, self.save_every = log_every, val_samples, save_every
        self.val_every, self.val_every_epochs = val_every, val_every_epochs
        self.monitor, self.patience, self.keep, self.deterministic = monitor, patience, keep, deterministic

    def total_steps(self, samples: int) -> int:
        """Optimiser steps of the whole training; more than anybody takes where only minutes limit it.

        Errors: `ValueError` where the warm-up would never end.
        """
        limits = [self.max_steps, None if self.max_epochs is None else self.max_epochs * self.steps_per_epoch(samples)]
        total = min((limit for limit in limits if limit is not None), default=UNLIMITED)
        if total == UNLIMITED and self.warmup_steps >= 1:
            raise ValueError(f"trainer.warmup_steps={self.warmup_steps:g}: a training of minutes has no number of steps; give a fraction below 1, such as 0.1")
        if total and self._warmup(total) >= total:
            raise ValueError(
                f"trainer.warmup_steps={self.warmup_steps:g}: the training has {total} steps, so the learning rate would never get past its warm-up; "
                "give fewer, or a fraction such as 0.1, or train longer"
            )
        return total

    def _warmup(self, total: int) -> int:
        return round(self.warmup_steps * total) if self.warmup_steps < 1 else round(self.warmup_steps)

    def steps_per_epoch(self, samples: int) -> int:
        """Optimiser steps that see every sample once; the rest that fills no step is left out."""
        return max(1, samples // (self.batch_size * self.grad_accumulation))

    def lr_at(self, step: float, total: int) -> float:
        """The learning rate of a step; a pure function, so a resumed run follows the schedule of the uninterrupted one."""
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
        return _Loop(self, policy, train, val, checkpoints, seed, device, log, prune).run()


def make_accelerator(precision: str, device: torch.device) -> Any:
    """accelerate's Accelerator for one run; a process may make several, one after the other, with other settings."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision == "auto":
        precision = "none" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("trainer.precision=fp16 needs a GPU (its loss scaling has no CPU kernels); on the CPU use bf16 or none")
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="no" if precision == "none" else precision, cpu=device.type == "cpu")


def seed_everything(seed: int, *path: int) -> None:
    """python's, numpy's and torch's generators, from the run's seed and where in the run we are."""
    import random

    state = np.random.SeedSequence([seed, *path]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class _Loop:
    """The state of one training."""

    def __init__(
        self, options: Trainer, policy: Any, train: Sampler, val: Sampler, checkpoints: Checkpoints, seed: int, device: torch.device, log: LogRow, prune: Prune
    ) -> None:
        self.prune = prune
        self.o, self.policy, self.train, self.val = options, policy, train, val
        self.checkpoints, self.seed, self.device, self.log = checkpoints, seed, device, log
        self.accelerator = make_accelerator(options.precision, device)
        self.named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        if not self.named:
            raise ValueError("no weight of this policy trains")
        decayed = [p for p in self.named.values() if p.ndim > 1]
        others = [p for p in self.named.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        # Fused: 3.3 times faster than the default on CPUs too.
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if options.ema_decay else {}
        self.fit = Fit()
        self.total = self.planned = options.total_steps(len(train))
        epochs = options.val_every_epochs
        self.val_every = options.val_every if epochs is None else epochs * options.steps_per_epoch(len(train))

    def run(self) -> Fit:
        self._resume()
        started, before = time.monotonic(), self.fit.seconds
        with progress_bars() as bars:
            bar = bars.add_task("training", total=None if self.planned == UNLIMITED else self.planned, completed=self.fit.step, note="")
            if before >= self.o.max_seconds:
                self.total = self.fit.step
            sums, window = np.zeros(2), time.monotonic()
            while self.fit.step < self.total and not self.fit.stopped:
                spent = before + time.monotonic() - started
                lr = self.o.lr_at(max(self.fit.step, spent / self.o.max_seconds * self.planned), self.planned)
                sums += self._step(lr)
                self.fit.step += 1
                bars.advance(bar)
                if before + time.monotonic() - started >= self.o.max_seconds:
                    self.total = self.fit.step
                if self.fit.step % self.o.log_every == 0 or self.fit.step == self.total:
                    count = (self.fit.step - 1) % self.o.log_every + 1
                    loss, norm = sums / count
                    row = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm, "train/steps_per_second": count / (time.monotonic() - window)}
                    self._row(row)
                    bars.update(bar, note=f"loss {loss:.4f}  lr {lr:.1e}")
                    sums, window = np.zeros(2), time.monotonic()
                validates = self.fit.step % self.val_every == 0 or self.fit.step == self.total
                if validates or (self.o.save_every and self.fit.step % self.o.save_every == 0):
                    self.fit.seconds = before + time.monotonic() - started
                    if validates:
                        self._validate(bars)
                    else:
                        self._save(best=False)
                    window = time.monotonic()
        self.fit.stopped = self.fit.stopped or "done"
        self._swap()
        if self.o.keep == "best" and (stored := self._best()):
            self._load(stored[0])
            self._swap()
        return self.fit

    def _step(self, lr: float) -> tuple[float, float]:
        """One optimiser step; its loss (the mean over all its samples' unpadded steps) and gradient norm."""
        batch = self.train.step(self.seed, self.fit.step, self.o.batch_size * self.o.grad_accumulation)
        whole = (~batch.is_pad).sum().item()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = torch.zeros((), device=self.device)
        self.model.train()
        for number, part in enumerate(batch.split(self.o.grad_accumulation)):
            seed_everything(self.seed, self.fit.step, number)  # dropout
            # Weighted by its unpadded steps, the sum over the parts is the large batch's mean.
            share = (~part.is_pad).sum().item() / whole
            found = self.model(part.to(self.device))["loss"] * share
            self.accelerator.backward(found)
            loss += found.detach()
        norm = self.accelerator.clip_grad_norm_(self.named.values(), self.o.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_average()
        if not math.isfinite(value := loss.item()):
            raise ValueError(
                f"the loss is {value} at step {self.fit.step}; lower trainer.lr={self.o.lr} or look at the data's ranges (python -m provla.analyze)"
            )
        return value, float(norm)

    def _update_average(self) -> None:
        if self.average:
            # Young averages forget faster, so that the random start does not stay in them (as in diffusers' EMAModel).
            decay = min(self.o.ema_decay, (1 + self.fit.step) / (10 + self.fit.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], 1 - decay)

    def _swap(self) -> None:
        """Exchanges the weights with their average."""
        for name, average in self.average.items():
            weights = self.named[name].data
            self.named[name].data, self.average[name] = average, weights

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _validate(self, bars: Any) -> None:
        """Metrics of the averaged weights, then a checkpoint."""
        best = True
        if len(self.val):
            with self._averaged():
                found = validate(self.policy, self.val, self.o.val_samples, self.o.batch_size, self.seed, self.device, bars)
            if self.o.monitor not in found:
                raise ValueError(f"trainer.monitor={self.o.monitor!r} is not measured; valid: {', '.join(found)}")
            best = found[self.o.monitor] < self.fit.best
            if best:
                self.fit.best, self.fit.best_step, self.fit.stale = found[self.o.monitor], self.fit.step, 0
            else:
                self.fit.stale += 1
            self._row({f"val/{name}": value for name, value in found.items()})
            if self.o.patience is not None and self.fit.stale >= self.o.patience:
                self.fit.stopped = f"early: {self.o.monitor} has not improved for {self.o.patience} validations"
            elif self.prune(self.fit.step, found[self.o.monitor]) and self.fit.step < self.total:
                self.fit.stopped = f"{PRUNED}: {self.o.monitor} {found[self.o.monitor]:.4g} fell behind its siblings'"
        self._save(best)

    def _row(self, values: dict[str, float]) -> None:
        self.fit.history.append({"step": self.fit.step, **values})
        self.log(self.fit.step, values)

    def _save(self, best: bool) -> None:
        names = {id(p): name for name, p in self.named.items()}
        optimizer = {f"{names[id(p)]}:{key}": value for p, slots in self.optimizer.state.items() for key, value in slots.items() if isinstance(value, Tensor)}
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        tensors = {"weights": own_state(self.policy), "average": self.average, "optimizer": optimizer}
        state = {"fit": vars(self.fit), "scaler": scaler, "bases": base_fingerprints(self.policy)}
        self.checkpoints.save(self.fit.step, tensors, state, best)

    def _load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        load_state(self.policy, tensors["weights"], self.checkpoints.folder)
        self.average = {name: tensors["average"][name].to(self.device) for name in self.average}

    def _best(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The best checkpoint; `ValueError` where it is gone."""
        stored = self.checkpoints.load("best")
        if self.fit.best_step and (stored is None or stored[1]["fit"]["step"] != self.fit.best_step):
            raise ValueError(f"trainer.keep=best needs the checkpoint of step {self.fit.best_step}, which is not in {self.checkpoints.folder}; bring it back")
        return stored

    def _resume(self) -> None:
        stored = self.checkpoints.load()
        if stored is None:
            size = count_bytes(own_state(self.policy), self.average) + 2 * count_bytes({name: p.data for name, p in self.named.items()})
            self.checkpoints.check_space(size)
            return
        tensors, state = stored
        check_bases(self.policy, state["bases"], self.checkpoints.folder)
        self._load(tensors)
        for name, parameter in self.named.items():
            slots = {key.rpartition(":")[2]: value for key, value in tensors["optimizer"].items() if key.rpartition(":")[0] == name}
            # The step count stays where fused AdamW keeps it: with its parameter.
            self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in slots.items()}
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.fit = Fit(**state["fit"])
        if self.fit.stopped == "done" or self.fit.stopped.startswith(PRUNED):  # a pruned run that is started again has lost its pruner
            self.fit.stopped = ""
        if self.o.keep == "best":
            self._best()  # better to know now that it is gone


def validate(policy: Any, val: Sampler, samples: int, batch_size: int, seed: int, device: torch.device, bars: Any | None = None) -> dict[str, float]:
    """`loss` (the objective) and the metrics of sampled chunks on evenly spaced validation samples, with fixed draws, in the
    precision of deployment. torch's generators are left as they were."""
    policy.eval()
    rows = val.rows[np.unique(np.linspace(0, len(val.rows) - 1, min(samples, len(val.rows))).astype(int))]
    rng = np.random.default_rng([seed, 2])
    generator = torch.Generator().manual_seed(seed)
    bar = bars.add_task("validation", total=len(rows), note="") if bars else None
    losses, weights, chunks, truths, pads = [], [], [], [], []
    for start in range(0, len(rows), batch_size):
        batch = val.gather(rows[start : start + batch_size])
        noise = torch.from_numpy(rng.standard_normal(tuple(batch.actions.shape), dtype=np.float32))
        drawn = replace(batch, noise=noise, time=torch.from_numpy(rng.random(len(batch), dtype=np.float32))).to(device)
        with repeatable(seed, device):
            losses.append(policy.loss(drawn)["loss"].item())
            chunks.append(policy.act(drawn.observation, generator).cpu())
        weights.append((~batch.is_pad).sum().item())
        truths.append(batch.actions)
        pads.append(batch.is_pad)
        if bars:
            bars.advance(bar, len(batch))
    if bars:
        bars.remove_task(bar)
    loss = float(np.average(losses, weights=weights))
    return {"loss": loss} | measured(chunk_metrics(torch.cat(chunks), torch.cat(truths), torch.cat(pads), policy.spec.joint_groups))
