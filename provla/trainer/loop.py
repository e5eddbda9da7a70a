"""The training loop: on accelerate, resumable bit for bit, and ignorant of any model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from provla.core.errors import Interrupted, NotFinite
from provla.core.progress import console, progress_bars
from provla.core.ranks import joined
from provla.core.signals import deferred, pending
from provla.core.types import Batch
from provla.dataset.sampler import Sampler
from provla.policy.weights import base_fingerprints, check_bases, own_state
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.feed import Feed, Part
from provla.trainer.finite import Gauge, keep_batch, name_bad, not_finite
from provla.trainer.fit import PRUNED, Fit, make_accelerator, seed_everything
from provla.trainer.graph import Graph, Unfit, begin
from provla.trainer.profile import FORWARD, Off, Profile
from provla.trainer.validation import validate
from provla.trainer.whole import Tensors, Whole

if TYPE_CHECKING:
    from provla.trainer.options import Trainer

LogRow = Callable[[int, dict[str, float]], None]
Prune = Callable[[int, float], bool]
UNLIMITED = 10**9


class Loop:
    """The state of one training: `run` does it."""

    def __init__(
        self,
        options: Trainer,
        policy: Any,
        train: Sampler,
        val: Sampler,
        checkpoints: Checkpoints,
        seed: int,
        device: torch.device,
        log: LogRow,
        prune: Prune,
    ) -> None:
        self.prune = prune
        self.o, self.policy, self.train, self.val = options, policy, train, val
        self.checkpoints, self.seed, self.device, self.log = checkpoints, seed, device, log
        self.ranks = joined()
        self.accelerator = make_accelerator(options.precision, device, options.shard)
        constants = not_finite(own_state(policy))
        kind = _shards() if options.shard and self.ranks.size > 1 else Whole
        self.weights = kind(policy, options, self.accelerator, self.ranks, device)
        self.named, self.average = self.weights.named, self.weights.average
        self.model, self.optimizer = self.weights.model, self.weights.optimizer
        self.fit = Fit()
        self.saved = (0, False)  # step of the last checkpoint, and whether it was due for validation
        self.gauge = self._gauge()
        self.constants = set(constants) - set(self.named)  # such as a mask of −inf
        self.asks = device.type != "cuda" or options.on_nan == "skip"  # at every step whether all was finite
        size = options.batch_size * options.grad_accumulation
        self.feed = Feed(train, seed, size, options.grad_accumulation, self.ranks, device)
        profiled = options.profile and self.ranks.leads
        self.profile = Profile(checkpoints.folder.parent, device, self.weights.trained) if profiled else Off()
        self.graph: Graph | None = None
        norms = [module for module in self.weights.trained.modules() if getattr(module, "track_running_stats", False)]
        self.statistics = [b for norm in norms for b in norm.buffers(recurse=False)] if options.on_nan == "skip" else []
        self.total = self.planned = options.total_steps(len(train))
        epochs = options.val_every_epochs
        self.val_every = options.val_every if epochs is None else epochs * options.steps_per_epoch(len(train))

    def run(self) -> Fit:
        with self.ranks.together():
            self._resume()
        with self.feed, self.profile, progress_bars() as bars, deferred(), self.ranks.together():
            self.graph = begin(self)
            try:
                self._steps(bars)
            except Interrupted:  # between two steps, or within a validation, which rank 0 alone takes
                if self.ranks.leads and self.saved != (self.fit.step, self.fit.due):
                    self._write(best=False)
                raise
        self.fit.stopped = self.fit.stopped or "done"
        with self.ranks.together():
            self.weights.finish(self.fit.step)
        if self.o.keep == "best" and self.ranks.leads and (stored := self._best()):
            self.weights.finish_as(stored[0], self.checkpoints.folder)
        return self.fit

    def _gauge(self) -> Gauge:
        return Gauge(self.device, self.fit.sums, self.accelerator.scaler is not None)

    def _steps(self, bars: Any) -> None:
        started, before = time.monotonic(), self.fit.seconds
        bar = bars.add_task(
            "training", total=None if self.planned == UNLIMITED else self.planned, completed=self.fit.step, note=""
        )
        if before >= self.o.max_seconds:
            self.total = self.fit.step
        if self.fit.due:
            self._validate(bars)
        while self.fit.step < self.total and not self.fit.stopped:
            begun = time.monotonic()
            spent = self._clock(before + begun - started)
            lr = self.o.lr_at(max(self.fit.step, spent / self.o.max_seconds * self.planned), self.planned)
            self._step(lr)
            self.fit.step += 1
            bars.advance(bar)
            self.fit.seconds = self._clock(before + time.monotonic() - started)
            if self.fit.seconds >= self.o.max_seconds:
                self.total = self.fit.step
            logs = self.fit.step % self.o.log_every == 0 or self.fit.step == self.total
            sums = self._read() if logs else None
            self.fit.window += time.monotonic() - begun
            if sums:
                with self.profile.stage("log"):
                    bars.update(bar, note=self._log(sums, lr))
            self.profile.stepped(self.total - self.fit.step)
            self.fit.due = self.fit.step % self.val_every == 0 or self.fit.step == self.total
            self._heed()
            if self.fit.due:
                self._validate(bars)
            elif self.o.save_every and self.fit.step % self.o.save_every == 0:
                self._save(best=False)
            else:
                continue
            self._heed()

    def _clock(self, seconds: float) -> float:
        """Rank 0's, where the training goes by it."""
        return seconds if math.isinf(self.o.max_seconds) else self.ranks.lead(lambda: seconds)

    def _heed(self) -> None:
        """Raises `Interrupted` on every rank where a signal has come to any of them."""
        if signum := self.ranks.most(pending()):
            self._sound()
            self.weights.collect(self.fit.step)
            raise Interrupted(signum)

    def _step(self, lr: float) -> None:
        """One optimiser step; where its loss or gradients are not finite, weights, optimiser and average stay as they
        are.
        """
        # Young averages forget faster, so that the random start does not stay in them (as in diffusers' EMAModel).
        weight = 1 - min(self.o.ema_decay, (1 + self.fit.step) / (10 + self.fit.step))
        with self.profile.stage("data"):
            parts = self.feed.at(self.fit.step)
        if self.graph is not None and self._replayed(parts[0].batch, lr, weight):
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        kept = [buffer.clone() for buffer in self.statistics]
        loss = self._backward(self.fit.step, parts)
        with self.profile.stage("optimiser", device=True):
            self.clip(self.fit.step, loss)
            if self.asks and self.gauge.broken() is not None:
                for buffer, value in zip(self.statistics, kept, strict=True):
                    buffer.copy_(value)
                self._bad_step(self.fit.step)
            else:
                self.update(weight)
            self.optimizer.zero_grad()

    def clip(self, step: int | Tensor, loss: Tensor) -> None:
        """Clips the gradients of a step, and notes their norm and its loss."""
        self.gauge.add(step, loss, self.weights.clip())

    def update(self, weight: float | Tensor) -> None:
        """Weights, and their average, to which they come with a weight."""
        if not self.asks and self.accelerator.scaler is None:
            # The fused kernel then leaves everything as it is, and nobody waits.
            self.optimizer.optimizer.found_inf = self.gauge.bad
        self.optimizer.step()
        if self.average:
            averages, weights = list(self.average.values()), [p.detach() for p in self.named.values()]
            with torch.no_grad():
                torch._foreach_lerp_(
                    averages, weights, [weight] * len(averages) if isinstance(weight, Tensor) else weight
                )

    def _replayed(self, batch: Batch, lr: float, weight: float) -> bool:
        """The step, by the graph; False where that cannot be, and has not been."""
        assert self.graph is not None
        self.model.train()
        seed_everything(self.seed, self.fit.step, 0, device=self.device)
        try:
            self.graph.step(batch, self.fit.step, lr, weight)
        except Unfit as why:
            console.print(f"trainer.graph=on: the steps are no graph: {why}")
            self.graph.give_up()
            self.graph = None
            self.feed.always(None)
            self.optimizer.zero_grad()
            return False
        return True

    def _backward(self, step: int, parts: list[Part]) -> Tensor:
        """Adds up the gradients of a step, over the ranks too; its loss, the mean over all its samples' unpadded
        steps.
        """
        ranks = self.ranks.size
        loss = torch.zeros((), device=self.device)
        self.model.train()
        for number, part in enumerate(parts):
            # What layers draw (dropout) is each part's own, so that no two ranks draw the same.
            seed_everything(self.seed, step, number * ranks + self.ranks.rank, device=self.device)
            with self.weights.part(last=number == len(parts) - 1):
                with self.profile.stage(FORWARD, device=True):
                    found = self.model(part.batch)["loss"] * part.share
                with self.profile.stage("backward", device=True):
                    self.accelerator.backward(found * ranks if ranks > 1 else found)  # of the ranks the mean is taken
            loss += found.detach()
        self.weights.take()
        return self.ranks.total(loss)

    def _read(self) -> list[float]:
        """The gauge's sums, after a look at what it found."""
        if (bad := self.gauge.broken()) is not None:
            self._bad_step(bad)
        self.profile.read()
        if self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() < 1:
            raise NotFinite(
                f"step {self.fit.step}: gradients overflow fp16 at a loss scale below 1; use trainer.precision=bf16 or "
                "none. " + self._way_out()
            )
        return self.gauge.read()

    def _bad_step(self, step: int) -> None:
        """Names what is not finite at a step and keeps its batch. `NotFinite`; where steps may be skipped, one
        more is.
        """
        self.optimizer.zero_grad()
        what = name_bad(self.named, lambda: self._backward(step, self.feed.at(step)), self.weights.agreed)
        folder, size = self.checkpoints.folder.parent / "bad_batches", self.o.batch_size * self.o.grad_accumulation
        file = self.ranks.lead(lambda: str(keep_batch(folder, self.train, self.seed, step, size, what)))
        if self.o.on_nan == "stop" or "weight" in what or len(self.fit.skipped) >= self.o.max_skipped:
            count = len(self.fit.skipped)
            skips = f"; {count} steps were skipped already (trainer.max_skipped)" if count else ""
            raise NotFinite(f"step {step + 1}: {what} is not finite{skips}; its batch: {file}. {self._way_out()}")
        console.print(f"step {step + 1} is skipped: {what} is not finite; its batch: {file}")
        self.fit.skipped.append(step + 1)
        self.gauge.forgive()
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def _way_out(self) -> str:
        skip = "" if self.o.on_nan == "skip" else ", or leave such steps out (trainer.on_nan=skip)"
        way = f"Lower trainer.lr={self.o.lr}, look at the data's ranges (python -m provla.analyze){skip}."
        return f"{way} The checkpoints stand: the same command goes on."

    def _log(self, sums: list[float], lr: float) -> str:
        """A row of the training; the note beside its bar."""
        loss, norm, finite = sums
        count = (self.fit.step - 1) % self.o.log_every + 1
        row = {"train/lr": lr}
        if finite:
            row = {"train/loss": loss / finite, "train/lr": lr, "train/grad_norm": norm / finite}
        row["train/steps_per_second"] = count / self.fit.window
        if (waited := self.train.waited()) is not None:
            row["train/waiting"] = waited / self.fit.window
        self._row(row)
        self.fit.window = 0.0
        self.gauge.clear()
        return f"loss {row.get('train/loss', math.nan):.4f}  lr {lr:.1e}"

    def _validate(self, bars: Any) -> None:
        """Metrics of the averaged weights, then a checkpoint."""
        best = True
        self._sound()
        self.weights.collect(self.fit.step)
        if len(self.val):
            with self.profile.stage("validate"):
                found = self.ranks.lead(lambda: self._measure(bars))
            best = found[self.o.monitor] < self.fit.best
            if best:
                self.fit.best, self.fit.best_step, self.fit.stale = found[self.o.monitor], self.fit.step, 0
            else:
                self.fit.stale += 1
            self._row({f"val/{name}": value for name, value in found.items()})
            if self.o.patience is not None and self.fit.stale >= self.o.patience:
                self.fit.stopped = f"early: {self.o.monitor} has not improved for {self.o.patience} validations"
            elif self.ranks.lead(lambda: self.prune(self.fit.step, found[self.o.monitor])) and (
                self.fit.step < self.total
            ):
                self.fit.stopped = f"{PRUNED}: {self.o.monitor} {found[self.o.monitor]:.4g} fell behind its siblings'"
        self.fit.due = False
        self._save(best)

    def _measure(self, bars: Any) -> dict[str, float]:
        """What the averaged weights come to on what is held out."""
        held = self.weights.tensors()
        self._check({"weight": held["weights"], "average": held["average"]})
        try:
            with self.weights.averaged():
                sizes = self.o.val_samples, self.o.batch_size
                found = validate(self.policy, self.val, *sizes, self.seed, self.device, bars)
        except NotFinite as error:
            raise NotFinite(f"step {self.fit.step}: {error}. {self._way_out()}") from error
        if self.o.monitor not in found:
            raise ValueError(f"trainer.monitor={self.o.monitor!r} is not measured; valid: {', '.join(found)}")
        return found

    def _sound(self) -> None:
        """`NotFinite` where a step so far was bad: every rank looks, for it takes them all to name what was."""
        if (step := self.gauge.broken()) is not None:
            self._bad_step(step)

    def _check(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """`NotFinite` for what is not to be kept. groups: what it is → its tensors."""
        for kind, tensors in groups.items():
            if bad := [name for name in not_finite(tensors) if name not in self.constants]:
                raise NotFinite(f"step {self.fit.step}: the {kind} {bad[0]} is not finite. {self._way_out()}")

    def _row(self, values: dict[str, float]) -> None:
        self.fit.history.append({"step": self.fit.step, **values})
        self.log(self.fit.step, values)

    def _save(self, best: bool) -> None:
        """A checkpoint, which rank 0 writes, of weights that are the same on all."""
        self._sound()
        self.weights.same()
        with self.profile.stage("checkpoint"):
            self.weights.collect(self.fit.step)
            self.ranks.lead(lambda: self._write(best))

    def _write(self, best: bool) -> None:
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        tensors = self.weights.tensors()
        self._check(tensors)
        self.fit.sums = self.gauge.read()
        state = {"fit": vars(self.fit), "scaler": scaler, "bases": base_fingerprints(self.policy)}
        self.checkpoints.save(self.fit.step, tensors, state, best)
        self.saved = (self.fit.step, self.fit.due)

    def _best(self) -> tuple[Tensors, dict[str, Any]] | None:
        """The best checkpoint; `ValueError` where it is gone."""
        stored = self.checkpoints.load("best")
        if self.fit.best_step and (stored is None or stored[1]["fit"]["step"] != self.fit.best_step):
            raise ValueError(
                f"trainer.keep=best needs the checkpoint of step {self.fit.best_step}, which is not in "
                f"{self.checkpoints.folder}; bring it back"
            )
        return stored

    def _resume(self) -> None:
        stored = self.ranks.spread(self.checkpoints.load)
        if stored is None:
            self.ranks.lead(lambda: self.checkpoints.check_space(self.weights.size()))
            return
        tensors, state = stored
        check_bases(self.policy, state["bases"], self.checkpoints.folder)
        self.weights.load(tensors, self.checkpoints.folder)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.fit = Fit(**state["fit"])
        self.gauge = self._gauge()
        if self.fit.stopped == "done" or self.fit.stopped.startswith(
            PRUNED
        ):  # a pruned run that is started again has lost its pruner
            self.fit.stopped = ""
        if self.o.keep == "best":
            self.ranks.lead(lambda: self._best() is None)  # better to know now that it is gone


def _shards() -> type[Whole]:
    """Imported where it is asked for: it takes a second."""
    from provla.trainer.shards import Shards

    return Shards
