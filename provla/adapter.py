"""Which weights of a backbone train, and in how many bits the frozen ones are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.backbone import blocks
from provla.build import build, first_line
from provla.checks import Depth, Fraction, Names, Width, check

Mode = Literal["full", "lora", "last_k", "frozen"]
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


def _bitsandbytes() -> Any:
    """The module; its advice to install CPU kernels from the Hub is no use to somebody without a network."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


@cache
def _int8_layer() -> Any:
    """bitsandbytes' 8-bit layer, that keeps its scales when a `.to(device)` after the first forward loses the weight's copy."""

    class Linear8bitLt(_bitsandbytes().nn.Linear8bitLt):  # type: ignore[misc]
        def init_8bit_state(self) -> None:
            if self.weight.SCB is None:
                self.state.CB, self.weight.CB = self.weight.CB, None
            else:
                super().init_8bit_state()

    return Linear8bitLt


def quantize(backbone: nn.Module, quant: Quant, device: torch.device) -> QuantReport:
    """Replaces every linear layer of `backbone` in place; the quantised weights are frozen."""
    bnb = _bitsandbytes()
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
            # Its repacking on some CPUs needs sizes divisible by 32 and computes otherwise in evaluation than in training.
            new.support_avx512bf16_for_cpu = False
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=quant.double_quant, quant_type=quant.quant_type)
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


def own(value: Any, default: Mapping[str, Any], kind: type[Any], key: str) -> Any:
    """A part's own adapter or quantisation. value: null (the root's), an option's name, or keys that differ from the root's."""
    if value is None:
        return build(default, key, kind)
    if isinstance(value, Mapping):
        return build({**default, **value}, key, kind)
    check(Mode if kind is Adapter else Bits, value, key)
    if kind is Quant:
        return Quant({"none": None, "8bit": 8, "4bit": 4}[value])
    return build({"_target_": default["_target_"], "mode": value}, key, kind)


def _bytes(layer: Any) -> int:
    """Bytes a quantised layer keeps for its weight, statistics included."""
    total = sum(value.nbytes for key, value in layer.state_dict().items() if key != "bias" and isinstance(value, Tensor))
    return int(total)


def load_quantized(policy: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts stored quantised weights back into the quantised layers of `policy`; returns the other entries of `weights`."""
    rest = dict(weights)
    if not any(type(layer).__name__ in ("Linear4bit", "Linear8bitLt") for layer in policy.modules()):
        return rest
    bnb = _bitsandbytes()
    for name, layer in policy.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            if f"{name}.weight" not in rest:
                continue  # its base has it
            stored = {key[len(name) + 8 :]: rest.pop(key) for key in list(rest) if key.startswith(f"{name}.weight.")}
            device = layer.weight.device
            layer.weight = bnb.nn.Params4bit.from_prequantized(rest.pop(f"{name}.weight"), stored, requires_grad=False, device=str(device))
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

    The new weight is what the layer makes of the identity matrix, so it holds for every kind of update and of quantisation.
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
        dtype = bias.dtype if bias is not None else next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
        layer.eval()
        rows = layer(torch.eye(layer.in_features, device=device, dtype=dtype)).float()  # (in, out)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device=device, dtype=dtype)
        plain.weight.copy_((rows - bias.float() if bias is not None else rows).T)
        if bias is not None:
            plain.bias.copy_(bias)
        backbone.set_submodule(name, plain)
    return len(found)


@dataclass
class Adapter:
    """How a backbone trains.

    full: all weights. frozen: none. last_k: the last `k` layers and the norm after them. lora (Hu et al. 2021,
    arXiv:2106.09685): the linear layers are frozen and get low-rank updates of rank r, scaled by alpha / r; the other
    weights of a pretrained backbone are frozen as well, those of a backbone built from scratch train, because there is
    nothing in them to keep. target_modules: name endings of the layers LoRA adapts; null: all linear layers. use_dora
    (Liu et al. 2024, arXiv:2402.09353) and use_rslora (Kalajdzievski 2023, arXiv:2312.03732) change the update; peft: any
    other setting of peft's LoraConfig.
    """

    mode: Mode
    r: Width = 16
    alpha: Width = 32
    dropout: Fraction = 0.05
    target_modules: Names | None = None
    use_dora: bool = False
    use_rslora: bool = False
    peft: dict[str, Any] = field(default_factory=dict)
    k: Depth = 2

    def apply(self, backbone: nn.Module, key: str, pretrained: bool, quant: Quant, device: torch.device) -> QuantReport:
        """Changes `backbone` in place. key: its configuration key, for messages."""
        if quant.bits and self.mode in ("full", "last_k"):
            raise ValueError(
                f"quant.bits={quant.bits} freezes the linear layers, which adapter={self.mode} wants to train; "
                "use adapter=lora (what quant=4bit and quant=8bit choose by themselves) or adapter=frozen"
            )
        names = list(linear_layers(backbone))
        if quant.bits and not names and any(True for _ in backbone.parameters()):
            raise ValueError(f"quant.bits={quant.bits}: {key} has no linear layers to quantise; set {key}.quant=none to quantise the other backbone alone")
        adapted = self._targets(names, key) if self.mode == "lora" else []
        report = QuantReport()
        if self.mode == "frozen":
            backbone.requires_grad_(False)
        elif self.mode == "last_k":
            self._last_layers(backbone, key)
        elif self.mode == "lora":
            if pretrained:
                backbone.requires_grad_(False)
            for layer in linear_layers(backbone).values():
                layer.requires_grad_(False)
        trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
        if quant.bits:
            report = quantize(backbone, quant, device)
        if adapted:
            self._inject(backbone, adapted, trainable)
        return report

    def _inject(self, backbone: nn.Module, adapted: list[str], trainable: set[str]) -> None:
        _bitsandbytes()  # peft imports it, and it has advice to give
        from peft import LoraConfig, inject_adapter_in_model

        options: dict[str, Any] = {"use_dora": self.use_dora, "use_rslora": self.use_rslora, **self.peft}
        unknown = [name for name in options if name not in LoraConfig.__dataclass_fields__ or name.startswith("megatron")]  # which names a module
        if unknown:
            raise ValueError(f"adapter.peft.{unknown[0]} is no setting of peft's LoraConfig; it has: {', '.join(sorted(LoraConfig.__dataclass_fields__))}")
        try:
            config = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=adapted, **options)
            inject_adapter_in_model(config, backbone)
        except Exception as error:  # peft checks little of what it is given
            raise ValueError(f"adapter.peft={self.peft}: peft refuses this LoRA configuration: {first_line(error)}") from error
        for name, parameter in backbone.named_parameters():  # peft freezes whatever it did not add
            added = "lora_" in name
            parameter.requires_grad_(added or name in trainable)
            if added:
                parameter.data = parameter.data.float()  # updates this small would vanish in half precision

    def _last_layers(self, backbone: nn.Module, key: str) -> None:
        stacks = [stack for m in [backbone, *backbone.children()] if (stack := blocks(m)) is not None]
        if not stacks:
            raise ValueError(f"adapter=last_k: {key} is no stack of layers; use adapter=full or frozen")
        backbone.requires_grad_(False)
        for stack in stacks:
            if self.k > len(stack):
                raise ValueError(f"adapter.k={self.k}: {key} has {len(stack)} layers")
            stack[-self.k :].requires_grad_(True)
        # The norm after the stack: registered behind it and not inside it.
        inside = {id(m) for stack in stacks for m in stack.modules()}
        behind = False
        for module in backbone.modules():
            behind = behind or id(module) in inside
            if behind and id(module) not in inside and "Norm" in type(module).__name__:
                module.requires_grad_(True)

    def _targets(self, names: list[str], key: str) -> list[str]:
        if self.target_modules is None or not names:
            return names
        endings = sorted({name.rsplit(".", 1)[-1] for name in names})
        chosen = []
        for target in self.target_modules:
            matched = [name for name in names if name == target or name.endswith(f".{target}")]
            if not matched:
                raise ValueError(
                    f"adapter.target_modules={list(self.target_modules)}: {target!r} matches no linear layer of {key}; its layers end in: {', '.join(endings)}"
                )
            chosen += matched
        return sorted(set(chosen))
