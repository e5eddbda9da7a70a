"""The same, in shards: of weights, gradients, optimiser and average each rank holds its own rows (FSDP2, Zhao et al.
2023, arXiv:2304.11277).

torch's `fully_shard` and not accelerate's plugin for it, which is for GPUs alone, so that nothing of it could be tried
on CPUs, and which stores weights in float32 that were not.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from provla.backbone.tower import Tower, blocks, towers
from provla.policy.weights import load_state, own_state
from provla.trainer.fit import load_optimizer
from provla.trainer.whole import Tensors, Whole, swap


class Shards(Whole):
    """`trained` is in shards, and `policy` whole on rank 0 alone: in the host's memory, but for validations. Into it go
    the gathered weights where it is validated, stored or judged, which rank 0 does alone. Elsewhere there is no whole
    policy any more.

    The optimiser, the average and the clipping see plain tensors that lie where the shards lie, so that their kernels
    are those of one process.
    """

    _kept: Tensors
    _step: int | None = None  # of what is gathered

    def _place(self) -> tuple[nn.Module, dict[str, Parameter]]:
        check_shardable(self.policy)
        if self.accelerator.scaler is not None:
            raise ValueError(
                "trainer.shard=true: this GPU has no bfloat16, so trainer.precision=auto is fp16, whose loss scaling "
                "has not been tried on shards; set trainer.precision=none, or trainer.shard=false"
            )
        trained = self.policy
        if self.ranks.leads:
            self.policy.to("cpu")
            trained = copy.deepcopy(self.policy)
        shard(trained, self.ranks.size, self.device)
        self._weights = dict(trained.named_parameters())
        named = {
            name: Parameter(_local(p.detach())) if isinstance(p, DTensor) else p
            for name, p in self._weights.items()
            if p.requires_grad
        }
        return trained, named

    def _prepare(self, optimizer: Any) -> tuple[Any, Any]:
        model = self.accelerator.prepare_model(self.trained, evaluation_mode=True)  # autocast, and no DDP
        return model, self.accelerator.prepare_optimizer(optimizer)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """Each part's gradients go around: kept until the last they would be whole."""
        return nullcontext()

    def take(self) -> None:
        """From FSDP's weights to those that the optimiser sees; and every rank has some of the same."""
        found = bytearray()
        for name, own in self.named.items():
            weight = self._weights[name]
            found.append(weight.grad is not None)
            if not isinstance(weight, DTensor):
                if own.grad is not None:
                    self.ranks.total(own.grad).div_(self.ranks.size)
            else:
                own.grad, weight.grad = None if weight.grad is None else _local(weight.grad), None
        self.ranks.check_equal(zlib.crc32(found), "the weights that got a gradient (trainer.shard=true)", UNEVEN)

    def clip(self) -> Tensor:
        # What is no shard is the same on all ranks, and counts once.
        counted = [
            p.grad
            for name, p in self.named.items()
            if p.grad is not None and (self.ranks.leads or isinstance(self._weights[name], DTensor))
        ]
        square = get_total_norm(counted).to(self.device, torch.float32).square()
        norm = self.ranks.total(square).sqrt()
        clip_grads_with_norm_(self.named.values(), self.options.grad_clip, norm)
        return norm

    def agreed(self, flags: Tensor) -> Tensor:
        return self.ranks.total((~flags).float()) == 0

    def same(self) -> None:
        """Nothing is twice there."""

    def collect(self, step: int) -> None:
        if self._step == step:
            return
        leads, self._kept, self._step = self.ranks.leads, {}, step
        whole = dict(self.policy.named_parameters())
        for name in self.named:
            full = self._full(name, self.named[name].detach())
            if leads:
                whole[name].data.copy_(full)
        kept: Tensors = {"average": {}, "optimizer": {}}
        for name, own in self.named.items():
            slots = [("average", name, self.average[name])] if self.average else []
            slots += [("optimizer", f"{name}:{key}", slot) for key, slot in self.optimizer.state.get(own, {}).items()]
            for kind, key, tensor in slots:
                full = self._full(name, tensor) if tensor.ndim else tensor
                if leads:
                    kept[kind][key] = full.detach().to("cpu", copy=True)
        if leads:
            self._kept, buffers = kept, dict(self.trained.named_buffers())
            for name, buffer in self.policy.named_buffers():
                buffer.copy_(buffers[name])

    def tensors(self) -> Tensors:
        assert self._step is not None
        return {"weights": own_state(self.policy), **self._kept}

    def load(self, tensors: Mapping[str, dict[str, Tensor]], source: Path) -> None:
        """Every rank takes its rows of what is whole."""
        self._step = None
        weights, buffers = tensors["weights"], dict(self.trained.named_buffers())
        if self.ranks.leads:
            load_state(self.policy, weights, source)  # says what does not fit
        with torch.no_grad():
            for name, full in weights.items():
                if name in buffers:
                    buffers[name].copy_(full)
                elif name in self._weights:
                    self._own(name).copy_(self._rows(name, full))
            for name, own in self.average.items():
                own.copy_(self._rows(name, tensors["average"][name]))
        names = {key: key.rpartition(":")[0] for key in tensors["optimizer"]}
        load_optimizer(
            self.optimizer,
            self.named,
            {
                key: self._rows(names[key], full).clone() if full.ndim and names[key] in self.named else full
                for key, full in tensors["optimizer"].items()
            },
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """On rank 0."""
        swap(self.policy, self._kept["average"])
        self.policy.to(self.device)
        try:
            yield
        finally:
            self.policy.to("cpu")
            swap(self.policy, self._kept["average"])

    def finish(self, step: int) -> None:
        self.collect(step)
        if self.ranks.leads:
            swap(self.policy, self._kept["average"])
            self.policy.to(self.device)

    def finish_as(self, tensors: Mapping[str, dict[str, Tensor]], source: Path) -> None:
        load_state(self.policy, tensors["weights"], source)
        swap(self.policy, {name: tensors["average"][name].to(self.device) for name in self.average})

    def _own(self, name: str) -> Tensor:
        weight = self._weights[name].detach()
        return _local(weight) if isinstance(weight, DTensor) else weight

    def _rows(self, name: str, full: Tensor) -> Tensor:
        """This rank's, of what has a weight's shape, as FSDP2 cuts it: into as many equal chunks, the last ones
        shorter.
        """
        if not isinstance(self._weights[name], DTensor):
            return full
        each = -(-full.shape[0] // self.ranks.size)
        begin = self.ranks.rank * each
        return full[begin : begin + self._own(name).shape[0]]

    def _full(self, name: str, own: Tensor) -> Tensor:
        """From all ranks, what has a weight's shape."""
        like = self._weights[name]
        if not isinstance(like, DTensor):
            return own
        whole = DTensor.from_local(
            own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return whole.full_tensor()


UNEVEN = (
    "FSDP2 adds up gradients of equal sizes, so every rank's samples must reach the same weights: does the policy "
    "route samples to some of its experts alone? trainer.shard=false can do that."
)


def shard(policy: nn.Module, ranks: int, device: torch.device) -> None:
    """Cuts a policy's weights up in place. They are gathered as they are, and autocast makes of them what it makes of
    them on one GPU; FSDP2's own mixed precision would round norms and embeddings too.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    left_out = kept_whole(policy)
    precise = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for group in groups(policy):
        fully_shard(group, mesh=mesh, mp_policy=precise, ignored_params=left_out)
    for weight in left_out:
        weight.data = weight.data.to(device)
    assert isinstance(policy, FSDPModule)
    if device.type == "cpu":  # gloo takes no mean
        policy.set_force_sum_reduction_for_comms(True)


def groups(policy: nn.Module) -> list[nn.Module]:
    """What is gathered at a time, the inner ones first: each block of a backbone that trains, what else it has, and the
    rest.
    """
    found: list[nn.Module] = []
    for _, tower in towers(policy):
        if _trains(tower):
            found += [*(blocks(tower.model) or []), tower.model]
    return [*found, policy]


def kept_whole(policy: nn.Module) -> set[Parameter]:
    """The weights of backbones in which nothing trains, because a rank asks a frozen one when it meets something new
    (`Phrases`), and not when the others do; and numbers that have no rows.
    """
    frozen = {p for _, tower in towers(policy) if not _trains(tower) for p in tower.model.parameters()}
    return frozen | {p for p in policy.parameters() if not p.ndim}


def _trains(tower: Tower) -> bool:
    return any(p.requires_grad for p in tower.model.parameters())


def check_shardable(policy: nn.Module) -> None:
    """`ValueError` for a policy whose weights FSDP2 would not take, or would train otherwise."""
    if mode := getattr(policy, "compiled", ""):
        raise ValueError(
            f"trainer.shard=true with policy.compile={mode}: gathering within a compiled network has not been tried; "
            "set policy.compile=false or trainer.shard=false"
        )
    for name, p in policy.named_parameters():
        if not p.is_floating_point():
            raise ValueError(
                f"trainer.shard=true: {name} is quantised ({_kind(p)}), and FSDP2 cuts floating point weights alone; "
                "set quant=none or trainer.shard=false"
            )
    owner: dict[str, int] = {}  # name of a module → which group gathers its own weights
    names = {id(module): name for name, module in policy.named_modules()}
    for number, group in enumerate(groups(policy)):
        for module in group.modules():
            owner.setdefault(names[id(module)], number)
    first: dict[int, tuple[int, str]] = {}  # what has been met of a type in a group, and of a weight
    left_out, kinds = kept_whole(policy), dict[int, tuple[str, Tensor]]()
    for name, p in policy.named_parameters(remove_duplicate=False):
        if p in left_out:
            continue
        number = owner[name.rpartition(".")[0]]
        group_of, other = first.setdefault(id(p), (number, name))
        if group_of != number:
            raise ValueError(
                f"trainer.shard=true: {other} and {name} are one weight, which shards would tear apart; set "
                "trainer.shard=false"
            )
        one, weight = kinds.setdefault(number, (name, p)) if p.requires_grad else (name, p)
        if weight.dtype != p.dtype:
            raise ValueError(
                f"trainer.shard=true: {one} is {_kind(weight)} and {name} is {_kind(p)}, and FSDP2 adds up the "
                "gradients of what it gathers together in one type; set the backbone's dtype=float32, train its "
                "adapters alone (a pretrained backbone with adapter=lora), or set trainer.shard=false"
            )


def _kind(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _local(tensor: Tensor) -> Tensor:
    """A rank's own rows, in the same memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
