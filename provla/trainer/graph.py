"""A training step as one CUDA graph: what Python would tell a GPU again at every step, it has been told once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from provla.core.build import first_line
from provla.core.progress import console
from provla.core.types import Batch

if TYPE_CHECKING:
    from provla.trainer.loop import Loop

WARM = 3  # steps that run as they are, so that libraries and optimiser have all they need
SENTENCES = 64  # that are read at every step

Run = Callable[[], None]


def reason(loop: Loop) -> str:
    """Why the steps of a training cannot be one graph; empty where they can, as far as it shows before the first."""
    policy = loop.policy
    for found, why in (
        (loop.device.type != "cuda", f"they are captured on a GPU, and this runs on {loop.device.type}"),
        (loop.ranks.size > 1, "several ranks speak to each other in every step"),
        (loop.o.grad_accumulation > 1, f"trainer.grad_accumulation={loop.o.grad_accumulation}"),
        (loop.accelerator.scaler is not None, "fp16's loss scaling changes from step to step"),
        (loop.o.on_nan == "skip", "trainer.on_nan=skip looks at every step"),
        (loop.o.profile, "trainer.profile=true looks into the steps"),
        (bool(getattr(policy, "compiled", "")), "policy.compile is set"),
        (not getattr(policy, "graphable", False), f"{type(policy).__name__} may read the host in a step"),
    ):
        if found:
            return why
    if (count := len(policy.spec.instructions)) > SENTENCES:
        return f"the data have {count} instructions, more than the {SENTENCES} that a graph would read at every step"
    return ""


def begin(loop: Loop) -> Graph | None:
    """The graph that a training asked for; None where it did not, or where a line says why it has none."""
    if loop.o.graph != "on":
        return None
    if why := reason(loop):
        console.print(f"trainer.graph=on: the steps are no graph: {why}")
        return None
    loop.feed.always(loop.policy.spec.instructions)

    def step(batch: Batch, number: Tensor, weight: Tensor) -> None:
        loop.optimizer.zero_grad()  # first: the gradients of a graph stay where it writes them
        loss = loop.model(batch)["loss"]
        loop.accelerator.backward(loss)
        loop.clip(number, loss.detach())
        loop.update(weight)

    return Graph(step, loop.optimizer.param_groups, loop.device)


class Unfit(Exception):
    """Why a step cannot be captured. Nothing of it was done."""


class Graph:
    """The first `WARM` steps run as they are. The last of them is watched, for what it asks of the host would be asked
    once and for ever. The next is captured, which does nothing, and from then on replayed.

    A graph reads and writes the same memory each time: batch, number of the step, learning rate and weight of the
    average are copied there before. All that it reads and did not make is held.
    """

    def __init__(
        self,
        run: Callable[[Batch, Tensor, Tensor], None],
        groups: Sequence[dict[str, Any]],
        device: torch.device,
        cuda: Cuda | None = None,
    ) -> None:
        """run: a whole step, of a batch, its number and the weight. groups: the optimiser's."""
        self._run, self._groups, self._device = run, groups, device
        self._cuda = cuda or Cuda(device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._lr, self._weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self._batch: Batch | None = None
        self._warm, self._asked = 0, ""
        self._held: list[Tensor] = []
        self._replay: Run | None = None
        for group in groups:
            group["lr"], group["capturable"] = self._lr, True

    def step(self, batch: Batch, step: int, lr: float, weight: float) -> None:
        """One step. `Unfit`, and nothing is done, where it cannot be captured."""
        if self._replay is None and self._warm == WARM:
            self._replay = self._record()
        for place, value in ((self._step, step), (self._lr, lr), (self._weight, weight)):
            place.fill_(value)
        if self._batch is None:
            self._batch = batch
        else:
            copy(batch, self._batch)
        if self._replay is not None:
            self._replay()
            return
        self._warm += 1
        if self._warm < WARM:
            self._cuda.aside(self._once)
            return
        with Watch(self._device) as watch:
            self._cuda.aside(self._once)
        self._asked = watch.asked

    def give_up(self) -> None:
        """Leaves the optimiser as it was, but for its learning rate."""
        for group in self._groups:
            group["capturable"] = False

    def _once(self) -> None:
        assert self._batch is not None
        self._run(self._batch, self._step, self._weight)

    def _record(self) -> Run:
        if self._asked:
            raise Unfit(self._asked)
        try:
            with Watch(self._device) as watch:
                replay = self._cuda.capture(self._once)
        except RuntimeError as error:
            raise Unfit(first_line(error)) from error
        if watch.asked:  # libraries may go another way while they are captured
            raise Unfit(watch.asked)
        self._held = list(watch.found.values())
        return replay


class Cuda:
    """What is CUDA's of it. It has a stream of its own: on the one that is there from the start nothing is captured,
    and what ran there before may hang on it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self, run: Run) -> None:
        """Runs it on that stream, in its turn."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def capture(self, run: Run) -> Run:
        """A graph of it. thread_local: other threads may pin memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            run()
        replay: Run = graph.replay
        return replay


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """asked: the first operation that needs the host: reads a number, has a size that depends on numbers, or touches a
    tensor that lies elsewhere; empty where none does. found: a tensor of each storage that was read and not made here.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = device.type
        self.asked = ""
        self.found: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        for one in given:
            if (place := one.untyped_storage()._cdata) not in self._made:
                self.found.setdefault(place, one)
        out = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        self._made.update(one.untyped_storage()._cdata for one in made)
        if not self.asked and (_waits(func, args) or any(one.device.type != self._kind for one in (*given, *made))):
            self.asked = f"{func} needs the host"
        return out


def _waits(func: Any, args: Any) -> bool:
    """Whether an operation's result depends on numbers that the host would have to know."""
    if func is torch.ops.aten.index.Tensor:  # by positions, or by a mask
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    tags = getattr(func, "tags", ())
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def copy(source: Any, target: Any) -> None:
    """Every tensor of one batch into its place in another of the same shapes."""
    for one in fields(source):
        value, place = getattr(source, one.name), getattr(target, one.name)
        if is_dataclass(value):
            copy(value, place)
            continue
        pairs = ([leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)] for held in (value, place))
        for new, old in zip(*pairs, strict=True):
            old.copy_(new, non_blocking=True)
