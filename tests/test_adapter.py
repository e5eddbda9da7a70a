"""Which weights train, and quantisation: layers, bytes, error, and reloading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_policy import make
from torch import nn

from provla.adapter import Adapter
from provla.core.build import build
from provla.core.types import Spec, fake_batch, fake_observation
from provla.policy.folder import load_policy, save_policy
from provla.quant import Quant, linear_layers

CPU = torch.device("cpu")


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.k_proj(self.q_proj(x).relu()))  # type: ignore[no-any-return]


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("pretrained", [True, False])
def test_what_trains(bits: Any, pretrained: bool) -> None:
    backbone = Backbone()
    report = Adapter("lora", r=4, target_modules=["q_proj"]).apply(backbone, "vision", pretrained, Quant(bits), CPU)
    expected = {"q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"} | (
        set() if pretrained else {"norm.weight", "norm.bias"}
    )
    assert trainable(backbone) == expected
    assert report.layers == (2 if bits else 0)
    backbone(torch.randn(3, 64)).square().sum().backward()
    assert backbone.q_proj.lora_A["default"].weight.grad is not None
    frozen = Backbone()
    Adapter("frozen").apply(frozen, "vision", pretrained, Quant(bits), CPU)
    assert trainable(frozen) == set()


@pytest.mark.parametrize(("bits", "bound", "size"), [(8, 0.02, 4096 + 256), (4, 0.15, 2048)])
def test_quantisation_error_and_bytes(bits: Any, bound: float, size: int) -> None:
    torch.manual_seed(0)
    backbone, x = Backbone(), torch.randn(256, 64)
    exact = backbone(x)
    report = Adapter("frozen").apply(backbone, "vision", True, Quant(bits), CPU)
    error = (backbone(x) - exact).norm() / exact.norm()
    assert 0 < error < bound
    assert report.bytes_before == 2 * 4096 * 4
    assert size <= report.bytes_after / 2 < size + 1500  # weights and their statistics


def test_lora_starts_as_the_identity() -> None:
    backbone, x = Backbone(), torch.randn(3, 64)
    exact = backbone(x)
    Adapter("lora").apply(backbone, "text", True, Quant(), CPU)
    assert torch.equal(backbone(x), exact)


def test_bad_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quant.bits=4 freezes the linear layers.*use adapter=lora"):
        Adapter("full").apply(Backbone(), "vision", True, Quant(4), CPU)
    with pytest.raises(
        ValueError, match=r"'v_proj' matches no linear layer of vision; its layers end in: k_proj, q_proj"
    ):
        Adapter("lora", target_modules=["v_proj"]).apply(Backbone(), "vision", True, Quant(), CPU)
    with pytest.raises(ValueError, match="expected one of: 4, 8, null"):
        build({"_target_": "provla.quant.Quant", "bits": 3}, "quant")
    with pytest.raises(ValueError, match="expected one of: full, lora, last_k, frozen"):
        build({"_target_": "provla.adapter.Adapter", "mode": "half"}, "adapter")


@pytest.mark.parametrize("quant", ["none", "8bit", "4bit"])
def test_quantised_policies_learn_save_and_load(quant: str, spec: Spec, tmp_path: Path) -> None:
    from conftest import compose

    from provla.core.build import build

    node = compose("vision=siglip_tiny", f"quant={quant}", "adapter=lora", "fusion.width=32", "head.channels=[16,32]")[
        "policy"
    ]
    torch.manual_seed(1)
    policy = build(node, "policy", nn.Module, spec=spec, device=CPU)
    reports = policy.quant_report
    if quant != "none":
        assert reports["vision"].layers >= 18  # three blocks of four projections and two in the MLP
        assert reports["text"].layers == 14
        assert reports["vision"].bytes_after < reports["vision"].bytes_before / 3
        left = [*linear_layers(policy.vision), *linear_layers(policy.text)]
        assert left
        assert all("lora_" in name for name in left)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    batch = fake_batch(spec, 4)
    for _ in range(3):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        optimizer.step()
    policy.eval()
    save_policy(tmp_path / "policy", policy, node, spec)
    torch.manual_seed(2)  # other random weights than the stored ones
    loaded, stored = load_policy(tmp_path / "policy", CPU)
    assert stored == spec
    observation = fake_observation(spec, 2)
    expected, found = (p.act(observation, torch.Generator().manual_seed(0)) for p in (policy, loaded))
    assert torch.equal(expected, found)


def test_default_policy_has_layers_to_quantise_in_both_backbones(spec: Spec) -> None:
    reports = make(spec, "quant=4bit").quant_report
    assert reports["vision"].layers >= 1
    assert reports["text"].layers == 14
