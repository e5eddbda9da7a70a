"""Which weights of a backbone train, and in how many bits the frozen ones are kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mode = Literal["full", "lora", "frozen"]


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Dotted name → linear layer (LoRA's own and quantised ones are not plain `nn.Linear`s of the backbone)."""
    return {name: m for name, m in backbone.named_modules() if type(m) is nn.Linear}


@dataclass
class Quant:
    """bits: 8 (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339), 4 (QLoRA's nf4, arXiv:2305.14314) or null."""

    bits: Literal[4, 8] | None = None
    quant_type: str = "nf4"
    double_quant: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ValueError(f"quant.bits={self.bits!r}; valid: 4, 8, null")
        if self.quant_type not in ("nf4", "fp4"):
            raise ValueError(f"quant.quant_type={self.quant_type!r}; valid: nf4, fp4")


@dataclass
class QuantReport:
    """What quantisation saved: layers, and bytes of their weights before and after."""

    layers: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


def _bitsandbytes() -> Any:
    """The module; its advice to install CPU kernels from the Hub is no use to somebody without a network."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


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
            new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, **options)
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
            stored = {key[len(name) + 8 :]: rest.pop(key) for key in list(rest) if key.startswith(f"{name}.weight.")}
            device = layer.weight.device
            layer.weight = bnb.nn.Params4bit.from_prequantized(rest.pop(f"{name}.weight"), stored, requires_grad=False, device=str(device))
            layer.weight.module = layer
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            device = layer.weight.device
            packed, scale = rest.pop(f"{name}.weight").to(device), rest.pop(f"{name}.SCB").to(device)
            rest.pop(f"{name}.weight_format", None)
            layer.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False, CB=packed, SCB=scale)
            layer.state.reset_grads()
    return rest


@dataclass
class Adapter:
    """How a backbone trains.

    full: all weights. frozen: none. lora (Hu et al. 2021, arXiv:2106.09685): the linear layers are frozen and get
    low-rank updates of rank r, scaled by alpha / r; the other weights of a pretrained backbone are frozen as well,
    those of a backbone built from scratch train, because there is nothing in them to keep.
    target_modules: name endings of the layers LoRA adapts; null: all linear layers.
    """

    mode: Mode
    r: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.mode not in ("full", "lora", "frozen"):
            raise ValueError(f"adapter.mode={self.mode!r}; valid: full, lora, frozen")

    def apply(self, backbone: nn.Module, key: str, pretrained: bool, quant: Quant, device: torch.device) -> QuantReport:
        """Changes `backbone` in place. key: its configuration key, for messages."""
        if quant.bits and self.mode == "full":
            raise ValueError(
                f"quant.bits={quant.bits} freezes the linear layers, which adapter=full wants to train; "
                "use adapter=lora (what quant=4bit and quant=8bit choose by themselves) or adapter=frozen"
            )
        adapted = self._targets(backbone, key) if self.mode == "lora" else []
        report = QuantReport()
        if self.mode == "frozen":
            backbone.requires_grad_(False)
        elif self.mode == "lora":
            if pretrained:
                backbone.requires_grad_(False)
            for layer in linear_layers(backbone).values():
                layer.requires_grad_(False)
        trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
        if quant.bits:
            report = quantize(backbone, quant, device)
        if adapted:
            from peft import LoraConfig, inject_adapter_in_model

            config = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=adapted)
            inject_adapter_in_model(config, backbone)
            for name, parameter in backbone.named_parameters():  # peft freezes whatever it did not add
                parameter.requires_grad_("lora_" in name or name in trainable)
        return report

    def _targets(self, backbone: nn.Module, key: str) -> list[str]:
        names = list(linear_layers(backbone))
        if self.target_modules is None:
            return names
        chosen = [name for name in names if any(name == t or name.endswith(f".{t}") for t in self.target_modules)]
        if names and not chosen:
            endings = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise ValueError(f"adapter.target_modules={list(self.target_modules)} matches no linear layer of {key}; its layers end in: {', '.join(endings)}")
        return chosen
