"""What `policy.onnx` traces: a policy's `act`, made of operations that torch's exporter knows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from provla.core.types import Observation, Tokens
from provla.policy.provla import ProVLA

DRAWS = torch.randn, torch.randn_like, torch.rand, torch.rand_like, torch.randint, Tensor.normal_, torch.normal
PAST = ("past_actions", "past_is_pad")  # inputs of a policy that reads what was executed


class OtherDraw(Exception):
    """A sampler that draws what a graph cannot be given."""


class Noise(TorchFunctionMode):
    """What a sampler draws with `torch.randn`: written down, or, where `given` (B,K,H,A), taken from there in turn.
    Draws of another kind, which a graph cannot be given, are refused.
    """

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self._given = given

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in DRAWS and function is not torch.randn:
            raise OtherDraw(
                f"this policy draws by {function.__name__} while it acts, and the graph is given standard normal noise "
                "alone"
            )
        if self._given is not None and function in OTHERWISE:
            return OTHERWISE[function](*args, **(kwargs or {}))
        if function is not torch.randn:
            return function(*args, **(kwargs or {}))
        if self._given is None:
            self.drawn.append(function(*args, **(kwargs or {})))
        else:
            self.drawn.append(self._given[:, len(self.drawn)])
        return self.drawn[-1]


class Graph(nn.Module):
    """What is exported: `act`, with the sentences' tokens of `words` for a sentence, and noise for a generator."""

    features: Tensor
    mask: Tensor

    def __init__(self, policy: ProVLA, words: Tokens, inputs: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.inputs = policy, inputs
        self.register_buffer("features", words.features)  # (K,N,D)
        self.register_buffer("mask", words.mask)

    def forward(self, *given: Tensor) -> Tensor:
        policy, asked = self.policy, dict(zip(self.inputs, given, strict=True))
        shape = (1, policy.spec.horizon, policy.spec.action_size)
        with Noise(asked.get("noise", given[0][:, :0])):
            at = asked.get("instruction", torch.zeros(1, dtype=torch.int64))  # else there are no tokens
            told = Tokens(self.features.index_select(0, at), self.mask.index_select(0, at))
            past, early = map(asked.get, PAST)
            seen = Observation(asked["images"], asked["state"], [""], past, early)
            context: Tokens = policy.fusion(policy.vision(seen.images), told, policy.felt(seen))
            if policy.project is not None:
                context = Tokens(policy.project(context.features), context.mask)
            chunk: Tensor = policy.scheduler.sample(policy.head, context, shape, None)
            return policy.outside(chunk, seen)


def resized(
    image: Tensor,
    size: Sequence[int] | None = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Tensor:
    """`torch.nn.functional.interpolate` as two products of matrices, of columns and of rows, which is what it is; the
    exporter knows none with antialiasing. Bytes to the bit: a CPU's kernel weighs them by whole numbers and gives bytes
    after each of the two, as Pillow does. Other numbers to rounding.
    """
    bytes_ = image.dtype == torch.uint8
    if mode not in ("bilinear", "bicubic") or size is None or image.dim() != 4 or (bytes_ and not antialias):
        return interpolate(image, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    how = {"mode": mode, "align_corners": align_corners, "antialias": antialias}
    with _untraced():
        kind = torch.float64 if bytes_ else image.dtype
        rows, columns = (
            _weights(int(was), int(to), kind, **how) for was, to in zip(image.shape[-2:], size, strict=True)
        )
        shifts = _shift(rows), _shift(columns)
        if bytes_:
            rows, columns = _counted(rows, shifts[0]), _counted(columns, shifts[1])
        columns = columns.T.contiguous()
    if not bytes_:
        return rows @ (image @ columns)
    found = _byte((image.double() @ columns) * 2.0 ** -shifts[1])
    return _byte((rows @ found) * 2.0 ** -shifts[0]).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _weights(was: int, to: int, kind: torch.dtype, **how: Any) -> Tensor:
    """(to, was): what each line of the resized picture takes of each line before."""
    found: Tensor = interpolate(torch.eye(was, dtype=kind)[None, None], size=(to, was), **how)[0, 0]
    return found


def _shift(weights: Tensor) -> int:
    """Bits behind the point of the kernel's weights: as many as keep the largest in 16 bits, and at most 22."""
    largest = float(weights.max())
    return next((bits for bits in range(22) if int(0.5 + largest * 2 ** (bits + 1)) >= 2**15), 22)


def _counted(weights: Tensor, shift: int) -> Tensor:
    """In steps of 2^-shift, halves away from zero."""
    return (weights * 2.0**shift).abs().add(0.5).floor() * weights.sign()


def _byte(sums: Tensor) -> Tensor:
    return (sums + 0.5).floor().clamp(0, 255)


@contextmanager
def _untraced() -> Iterator[None]:
    """What is computed here is a constant of the graph."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _pairs(*lines: Tensor) -> Tensor:
    return torch.stack([line.flatten() for line in torch.meshgrid(*lines, indexing="ij")], -1)


def _moved(x: Tensor, source: int, to: int) -> Tensor:
    order = list(range(x.dim()))
    order.insert(to % x.dim(), order.pop(source % x.dim()))
    return x.permute(order)


# What torch's exporter does not know (of a pair of lines, every pair; resizing), or gets wrong (of axes counted from
# the end).
OTHERWISE: dict[Any, Callable[..., Tensor]] = {
    torch.cartesian_prod: _pairs,
    Tensor.movedim: _moved,
    torch.movedim: _moved,
    interpolate: resized,
}
