"""Which weights of a backbone train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from provla.backbone.tower import blocks
from provla.core.build import build, first_line
from provla.core.checks import Depth, Fraction, Names, Width, check
from provla.quant import Bits, Quant, QuantReport, bitsandbytes_library, linear_layers, quantize

Mode = Literal["full", "lora", "last_k", "frozen"]


@dataclass
class Adapter:
    """How a backbone trains.

    full: all weights. frozen: none. last_k: the last `k` layers and the norm after them. lora (Hu et al. 2021,
    arXiv:2106.09685): the linear layers are frozen and get low-rank updates of rank r, scaled by alpha / r; the other
    weights of a pretrained backbone are frozen as well, those of a backbone built from scratch train, because there is
    nothing in them to keep. target_modules: name endings of the layers LoRA adapts; null: all linear layers. use_dora
    (Liu et al. 2024, arXiv:2402.09353) and use_rslora (Kalajdzievski 2023, arXiv:2312.03732) change the update; peft:
    any other setting of peft's LoraConfig.
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
            raise ValueError(
                f"quant.bits={quant.bits}: {key} has no linear layers to quantise; set {key}.quant=none to quantise "
                "the other backbone alone"
            )
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
        bitsandbytes_library()  # peft imports it, and it has advice to give
        from peft import LoraConfig, inject_adapter_in_model

        options: dict[str, Any] = {"use_dora": self.use_dora, "use_rslora": self.use_rslora, **self.peft}
        # megatron_… names a module to import.
        unknown = [
            name for name in options if name not in LoraConfig.__dataclass_fields__ or name.startswith("megatron")
        ]
        if unknown:
            raise ValueError(
                f"adapter.peft.{unknown[0]} is no setting of peft's LoraConfig; it has: "
                f"{', '.join(sorted(LoraConfig.__dataclass_fields__))}"
            )
        try:
            config = LoraConfig(
                r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=adapted, **options
            )
            inject_adapter_in_model(config, backbone)
        except Exception as error:  # peft checks little of what it is given
            raise ValueError(
                f"adapter.peft={self.peft}: peft refuses this LoRA configuration: {first_line(error)}"
            ) from error
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
                    f"adapter.target_modules={list(self.target_modules)}: {target!r} matches no linear layer of {key}; "
                    f"its layers end in: {', '.join(endings)}"
                )
            chosen += matched
        return sorted(set(chosen))


def own(value: Any, default: Mapping[str, Any], kind: type[Any], key: str) -> Any:
    """A part's own adapter or quantisation. value: null (the root's), an option's name, or keys that differ from the
    root's.
    """
    if value is None:
        return build(default, key, kind)
    if isinstance(value, Mapping):
        return build({**default, **value}, key, kind)
    check(Mode if kind is Adapter else Bits, value, key)
    if kind is Quant:
        return Quant({"none": None, "8bit": 8, "4bit": 4}[value])
    return build({"_target_": default["_target_"], "mode": value}, key, kind)
