"""The processes that train one run side by side, as torchrun and accelerate launch start them.

Rank 0 leads: it composes, writes, prints and judges. The others compute, and hear from it whatever cannot be known
twice: what a clock, a signal or a disk says. torch is imported where it is needed, for every command asks who it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from provla.core.errors import exit_code
from provla.core.signals import ending

if TYPE_CHECKING:
    from torch import Tensor

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what both launchers say
STEP = timedelta(minutes=10)  # that a rank waits for the others within a step
LONG = timedelta(days=7)  # that the others wait for rank 0, which loads, validates, writes

_control: list[Any] = []  # the group over which rank 0 speaks: by gloo whatever they compute on, and with `LONG`
_joined: list[Ranks] = []


class RankLost(ValueError):
    """Another rank has gone; the run's checkpoints stand."""

    exit_code = 1


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run: rank of size, local on its machine. A process alone is rank 0 of 1, and then
    nothing here does anything.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def beside(self) -> int:
        """How many of them there are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.size > 1 else 1

    def lead[T](self, call: Callable[[], T]) -> T:
        """What `call` gives on rank 0, on every rank, as JSON; where it raises there, the others end with its exit
        code.
        """
        if self.size == 1:
            return call()
        if self.leads:
            with self.leading():
                found = call()
            self._send((found, None))
            return found
        found, code = self._receive()
        if code is not None:
            raise SystemExit(code)
        return found

    @contextmanager
    def leading(self) -> Iterator[None]:
        """For rank 0, while the others wait in `lead`: what it raises in this block ends them too."""
        try:
            yield
        except BaseException as error:
            if self.size > 1:
                with suppress(RuntimeError):  # they may have gone already
                    self._send((None, exit_code(error)))
            raise

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        held = torch.tensor(number)
        dist.all_reduce(held, dist.ReduceOp.MAX)  # on the CPU: by gloo
        return int(held)

    def total(self, value: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place; a GPU is not waited for."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(value)
        return value

    def check_equal(
        self, value: float, what: str, why: str = "are their machines, GPUs or versions of torch different?"
    ) -> None:
        """`ValueError` where the ranks have come apart."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        found = [torch.zeros((), dtype=torch.float64) for _ in range(self.size)]
        dist.all_gather(found, torch.tensor(value, dtype=torch.float64))
        if len({float(one).hex() for one in found}) > 1:  # hex: NaN is equal to itself
            raise ValueError(
                f"{what} differ between the ranks ({', '.join(f'{float(one):.17g}' for one in found)}), which must "
                f"never be: {why} The checkpoints stand"
            )

    def spread(
        self, load: Callable[[], tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """As `lead`, for what a checkpoint holds: its tensors (on the CPU) go one by one, so that the others need not
        see rank 0's disk.
        """
        if self.size == 1:
            return load()
        import torch
        import torch.distributed as dist

        held: dict[str, dict[str, Tensor]] = {}

        def plan() -> tuple[dict[str, dict[str, tuple[list[int], str]]], dict[str, Any]] | None:
            if (found := load()) is None:
                return None
            held.update(found[0])
            sizes = {
                file: {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in group.items()}
                for file, group in held.items()
            }
            return sizes, found[1]

        if (planned := self.lead(plan)) is None:
            return None
        sizes, state = planned
        tensors: dict[str, dict[str, Tensor]] = {file: {} for file in sizes}
        for file, group in sizes.items():
            for name, (shape, dtype) in group.items():
                tensor = held[file][name] if self.leads else torch.empty(shape, dtype=getattr(torch, dtype))
                tensors[file][name] = tensor = tensor.contiguous()
                if tensor.numel():
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0, group=_control[0])
        return tensors, state

    @contextmanager
    def together(self) -> Iterator[None]:
        """In this block the end of another rank is said as such, with the way on."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_lost(error):
                ending()
                raise RankLost(
                    f"another of the {self.size} ranks of this run has ended, so this one ends too; "
                    "what it said stands above. The checkpoints stand: the same command with the same hydra.run.dir= "
                    "goes on, on any number of ranks"
                ) from error
            raise

    def _send(self, message: tuple[Any, int | None]) -> None:
        import torch
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor(len(data)), 0, group=_control[0])
        dist.broadcast(data, 0, group=_control[0])

    def _receive(self) -> tuple[Any, int | None]:
        import torch
        import torch.distributed as dist

        size = torch.tensor(0)
        dist.broadcast(size, 0, group=_control[0])
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, group=_control[0])
        found, code = json.loads(data.numpy().tobytes())
        return found, code


ALONE = Ranks()


def launched() -> Ranks:
    """Who this process is, as torchrun or accelerate launch said when they started it."""
    values = [os.environ.get(key, "") for key in LAUNCHED]
    if not all(values) or not all(value.isdecimal() for value in values[:3]) or int(values[1]) < 2:
        return ALONE
    return Ranks(int(values[0]), int(values[1]), int(values[2]))


def joined() -> Ranks:
    """The ranks that train together at present; one alone where nobody has joined."""
    return _joined[0] if _joined else ALONE


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def join() -> Ranks:
    """Meets the other ranks, which come here too. `RankLost` where they do not within `STEP`."""
    found = launched()
    if found.size == 1 or _joined:
        return joined()
    import torch
    import torch.distributed as dist

    with found.together():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=STEP)
        _control.append(dist.new_group(backend="gloo", timeout=LONG))
    _joined.append(found)
    return found


def part() -> None:
    """Each goes its own way: rank 0 judges alone."""
    if _joined:
        import torch.distributed as dist

        dist.destroy_process_group()
        _joined.clear()
        _control.clear()


def _is_lost(error: RuntimeError) -> bool:
    """Whether it is the network's: gloo raises plain RuntimeErrors that name its source files."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower() or "Connection closed by peer" in str(error)
