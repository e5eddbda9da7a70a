"""In how many bits the frozen weights of a backbone are kept; merging them back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

Bits = Literal["none", "8bit", "4bit"]


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Dotted name → linear layer (LoRA's own and quantised ones are not plain `nn.Linear`s of the backbone)."""
    return {name: m for name, m in backbone.named_modules() if type(m) is nn.Linear}


@dataclass
class Quant:
    """bits: 8 (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339), 4 (QLoRA's nf4, arXiv:2305.14314) or null."""

    bits: Literal[4, 8] | None = None
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


@dataclass
class QuantReport:
    """What quantisation saved and cost.

    layers; bytes of their weights before and after; error: of the part's tokens on a probe, relative to the unquantised
    ones (Frobenius norms).
    """

    layers: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    error: float | None = None


def bitsandbytes_library() -> Any:
    """The module; its advice to install CPU kernels from the Hub is no use to somebody without a network."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


@cache
def _int8_layer() -> Any:
    """bitsandbytes' 8-bit layer, that keeps its scales when a `.to(device)` after the first forward loses the weight's
    copy.
    """

    class Linear8bitLt(bitsandbytes_library().nn.Linear8bitLt):  # type: ignore[misc]
        def init_8bit_state(self) -> None:
            if self.weight.SCB is None:
                self.state.CB, self.weight.CB = self.weight.CB, None
            else:
                super().init_8bit_state()

    return Linear8bitLt


def quantize(backbone: nn.Module, quant: Quant, device: torch.device) -> QuantReport:
    """Replaces every linear layer of `backbone` in place; the quantised weights are frozen."""
    bnb = bitsandbytes_library()
    report = QuantReport()
    for name, layer in linear_layers(backbone).items():
        options: dict[str, Any] = {"bias": layer.bias is not None}
        weight = layer.weight.data
        if quant.bits == 4:
            new: Any = bnb.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                compute_dtype=weight.dtype,
                compress_statistics=quant.double_quant,
                quant_type=quant.quant_type,
                **options,
            )
            # Its repacking on some CPUs needs sizes divisible by 32 and computes otherwise in evaluation than in
            # training.
            new.support_avx512bf16_for_cpu = False
            new.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=quant.double_quant, quant_type=quant.quant_type
            )
        else:
            new = _int8_layer()(layer.in_features, layer.out_features, has_fp16_weights=False, **options)
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        if layer.bias is not None:
            new.bias = nn.Parameter(layer.bias.data.clone(), requires_grad=False)
        new = new.to(device)  # bitsandbytes quantises on the way to the device
        backbone.set_submodule(name, new)
        report.layers += 1
        report.bytes_before += weight.nbytes
        report.bytes_after += _bytes(new)
    return report


def _bytes(layer: Any) -> int:
    """Bytes a quantised layer keeps for its weight, statistics included."""
    total = sum(
        value.nbytes for key, value in layer.state_dict().items() if key != "bias" and isinstance(value, Tensor)
    )
    return int(total)


def load_quantized(policy: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts stored quantised weights back into the quantised layers of `policy`; returns the other entries of
    `weights`.
    """
    rest = dict(weights)
    if not any(type(layer).__name__ in ("Linear4bit", "Linear8bitLt") for layer in policy.modules()):
        return rest
    bnb = bitsandbytes_library()
    for name, layer in policy.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            if f"{name}.weight" not in rest:
                continue  # its base has it
            stored = {key[len(name) + 8 :]: rest.pop(key) for key in list(rest) if key.startswith(f"{name}.weight.")}
            device = layer.weight.device
            layer.weight = bnb.nn.Params4bit.from_prequantized(
                rest.pop(f"{name}.weight"), stored, requires_grad=False, device=str(device)
            )
            layer.weight.module = layer
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            if f"{name}.weight" not in rest:
                continue
            device = layer.weight.device
            packed, scale = rest.pop(f"{name}.weight").to(device), rest.pop(f"{name}.SCB").to(device)
            rest.pop(f"{name}.weight_format", None)
            layer.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scale)
            layer.state.reset_grads()
    return rest


@torch.no_grad()
def merge(backbone: nn.Module) -> int:
    """Replaces every adapted or quantised linear layer by a plain one that computes the same; returns how many.

    The new weight is what the layer makes of the identity matrix, so it holds for every kind of update and of
    quantisation.
    """
    found: dict[str, Any] = {}
    for name, layer in backbone.named_modules():
        adapted = hasattr(layer, "lora_A")
        if adapted or type(layer).__name__ in ("Linear4bit", "Linear8bitLt"):
            inside = any(name.startswith(f"{other}.") for other in found)
            if not inside:
                found[name] = layer
    for name, layer in found.items():
        bias: Tensor | None = layer.bias
        device = next(layer.parameters()).device
        dtype = (
            bias.dtype
            if bias is not None
            else next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
        )
        layer.eval()
        rows = layer(torch.eye(layer.in_features, device=device, dtype=dtype)).float()  # (in, out)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device=device, dtype=dtype)
        plain.weight.copy_((rows - bias.float() if bias is not None else rows).T)
        if bias is not None:
            plain.bias.copy_(bias)
        backbone.set_submodule(name, plain)
    return len(found)
