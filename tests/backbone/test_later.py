"""Towers that rest: nothing of them is loaded before somebody asks, and then they are what they would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose, local
from test_backbone import TEXT, VISION, make
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from provla.backbone import tower as module
from provla.backbone.later import put_off, standing_in
from provla.core.build import build
from provla.core.types import Spec, Tokens, fake_observation
from provla.policy.folder import load_policy, save_policy
from provla.policy.matched import count_parameters
from provla.policy.weights import own_state
from provla.run.rehearsal import rehearse_policy

SPEC = Spec(("top",), (40, 40), 3, 4, 8, 1, 4, ("Open the drawer", "Close"), {}, 10.0)
CPU = torch.device("cpu")


def part(group: str, option: str, backbones: Path, *overrides: str) -> Any:
    node = compose(f"{group}={option}", *local(option, backbones), *overrides)[group]
    sizes: dict[str, Any] = {"num_images": 1, "image_size": (40, 40)} if group == "vision" else {"instructions": ["a"]}
    return build({k: v for k, v in node.items() if k not in ("adapter", "quant")}, group, nn.Module)(**sizes).eval()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes whose weights were loaded."""
    names: list[str] = []
    real = module.load_weights

    def counted(cls: Any, *given: Any, **options: Any) -> Any:
        names.append(cls.__name__)
        return real(cls, *given, **options)

    monkeypatch.setattr(module, "load_weights", counted)
    return names


def asked(tower: Any, group: str) -> tuple[Tokens, int]:
    """What a tower says, and the operations that it takes."""
    with FlopCounterMode(display=False) as counter:
        found = tower(fake_observation(SPEC, 2).images if group == "vision" else ["Open", "Close it"])
    return found, counter.get_total_flops()


@pytest.mark.parametrize(
    ("group", "option", "overrides"),
    [
        *(("vision", option, []) for option in VISION),
        *(("text", option, []) for option in TEXT),
        ("vision", "siglip_base", ["vision.pool=pooler", "vision.layer=-2", "vision.input_size=[16,16]"]),
        ("text", "qwen2_5_0_5b", ["text.pool=last", "text.layer=-2", "text.dtype=bfloat16"]),
    ],
)
def test_a_tower_rests_until_it_is_asked(
    group: str, option: str, overrides: list[str], backbones: Path, loaded: list[str], tmp_path: Path
) -> None:
    with put_off(True):
        awake = part(group, option, backbones, *overrides)  # its files were never hashed: it is loaded
        assert not awake.resting
        del loaded[:]
        resting = part(group, option, backbones, *overrides)
    assert resting.resting
    resting.requires_grad_(False)
    awake.requires_grad_(False)
    resting.to(CPU).train()
    resting.eval()
    assert count_parameters(resting) == count_parameters(awake)
    assert resting.from_base() == awake.from_base()
    assert resting.base == awake.base
    resting.save_files(tmp_path / "resting")
    awake.save_files(tmp_path / "awake")
    for file in (tmp_path / "awake").iterdir():
        assert (tmp_path / "resting" / file.name).read_bytes() == file.read_bytes()
    expected, flops = asked(awake, group)
    with standing_in():
        blank, counted = asked(resting, group)
    assert counted == flops > 0
    assert (blank.features.shape, blank.features.dtype) == (expected.features.shape, expected.features.dtype)
    assert torch.equal(blank.mask, expected.mask)
    assert resting.resting
    assert not loaded
    state = torch.get_rng_state()
    with torch.inference_mode():
        resting.wake()
    found, _ = asked(resting, group)
    assert torch.equal(state, torch.get_rng_state())
    assert len(loaded) == 1
    assert torch.equal(found.features, expected.features)
    assert resting.vectors == awake.vectors
    assert not any(p.is_inference() or p.requires_grad for p in resting.model.parameters())
    resting.rest()
    assert resting.resting
    assert torch.equal(asked(resting, group)[0].features, expected.features)
    resting.stay()
    resting.rest()
    assert not resting.resting


def test_weights_that_have_changed_by_then_are_refused(backbones: Path, tmp_path: Path) -> None:
    from shutil import copytree

    from transformers import Qwen2Model

    copytree(backbones / "qwen2", tmp_path / "qwen2")
    with put_off(True):
        for _ in range(2):
            tower = part("text", "qwen2_5_0_5b", backbones, f"text.name={tmp_path / 'qwen2'}")
    model = Qwen2Model.from_pretrained(tmp_path / "qwen2")
    model.norm.weight.data += 1
    model.save_pretrained(tmp_path / "qwen2")
    with pytest.raises(ValueError, match=r"text\.name='.*/qwen2': its weights have changed since this run began"):
        tower(["Open"])


@pytest.mark.parametrize(
    ("overrides", "rest"),
    [
        (["adapter=frozen"], ["vision", "text"]),
        (["adapter=lora", "text.adapter=frozen"], ["text"]),
        (["adapter=frozen", "vision.quant=8bit"], ["text"]),
        (["adapter=last_k"], []),
        (["adapter=frozen", "policy.compile=default"], []),
    ],
)
def test_who_changes_nothing_rests(overrides: list[str], rest: list[str], backbones: Path, tmp_path: Path) -> None:
    towers = ["vision=siglip_base", *local("siglip_base", backbones)]
    towers += ["text=qwen2_5_0_5b", *local("qwen2_5_0_5b", backbones)]
    for _ in range(2):
        policy = make(SPEC, *towers, *overrides)
    assert [key for key in ("vision", "text") if getattr(policy, key).resting] == rest
    if rest == ["vision", "text"]:
        state = own_state(policy)
        assert not any(tensor.is_meta for tensor in state.values())
        save_policy(tmp_path / "policy", policy, compose(*_small(), *towers, *overrides)["policy"], SPEC)
        again, _ = load_policy(tmp_path / "policy", CPU)
        assert not again.vision.resting  # whoever loads a policy may do anything with it
        seen = fake_observation(SPEC, 2)
        acts = [one.act(seen, torch.Generator().manual_seed(0)) for one in (again, policy.eval())]
        assert torch.equal(*acts)


def _small() -> list[str]:
    from test_policy import SMALL

    return [option for option in SMALL if not option.startswith("vision")]


def test_a_rehearsal_wakes_nobody_and_says_what_is_wrong(
    backbones: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = ["vision=siglip_base", *local("siglip_base", backbones), "adapter=frozen"]
    towers += ["text=qwen2_5_0_5b", *local("qwen2_5_0_5b", backbones)]
    flops = [rehearse_policy(make(SPEC, *towers), SPEC, CPU)]
    del loaded[:]
    policy = make(SPEC, *towers)
    flops.append(rehearse_policy(policy, SPEC, CPU))
    assert flops[0] == flops[1]
    assert not loaded
    assert policy.text.resting
    seen, awake = fake_observation(SPEC, 2), make(SPEC, *towers)
    for _, tower in module.towers(awake):
        tower.wake()
    # Nothing of what stood in for the sentences is left.
    found = [one.eval().act(seen, torch.Generator().manual_seed(0)) for one in (policy, awake)]
    assert torch.equal(*found)
    policy = make(SPEC, *towers)
    policy.text._max_length, policy.text._options = 64, {"nonsense": True, "output_attentions": "maybe"}
    monkeypatch.setattr(type(policy.vision), "assemble", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="vision does not work as configured, on one made-up sample: division by zero"):
        rehearse_policy(policy, SPEC, CPU)
