"""policy.compile: what is compiled, in which mode; and what a compiled policy is shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import compose
from torch import nn

from provla.backbone.tower import towers
from provla.core.build import build
from provla.core.types import Spec, fake_batch

CPU = torch.device("cpu")


def make(spec: Spec, *overrides: str) -> Any:
    small = ["fusion.width=16", "head.channels=[16,32]", "head.time_width=16"]
    node = compose(*small, *overrides)["policy"]
    return build(node, "policy", nn.Module, spec=spec, device=CPU)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, Any]]:
    """What was compiled, and in which mode; nothing is."""
    found: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: found.append((self, options["mode"])))
    return found


@pytest.mark.parametrize("word", ["default", "reduce-overhead", "max-autotune", "true"])
def test_the_networks_are_compiled_in_the_mode_that_is_asked_for(word: str, compiled: list[Any], spec: Spec) -> None:
    policy = make(spec, f"policy.compile={word}")
    mode = "default" if word == "true" else word
    assert [m for _, m in compiled] == [mode] * 4
    assert {id(one) for one, _ in compiled} == {
        id(one) for one in (policy.text.model, policy.vision, policy.fusion, policy.head)
    }
    assert policy.compiled == mode


def test_of_a_tower_the_model_is_compiled_and_not_what_prepares_its_pictures(compiled: list[Any], spec: Spec) -> None:
    policy = make(spec, "vision=siglip_tiny", "text=none", "policy.compile=default")
    assert {id(one) for one, _ in compiled} == {id(one) for one in (policy.vision.model, policy.fusion, policy.head)}
    assert [name for name, _ in towers(policy)] == ["vision"]


def test_nothing_is_compiled_unless_asked(compiled: list[Any], spec: Spec) -> None:
    assert make(spec).compiled == ""
    assert make(spec, "policy.compile=false").compiled == ""
    assert compiled == []


@pytest.mark.parametrize("word", ["fast", "reduce_overhead", "1", "null"])
def test_another_word_is_answered_with_the_right_ones(word: str, spec: Spec) -> None:
    valid = "expected one of: default, reduce-overhead, max-autotune, or true or false"
    with pytest.raises(ValueError, match=rf"policy.compile='?{word}'?: {valid}"):
        make(spec, f"policy.compile={word}")


def test_a_step_of_graphs_begins_with_its_first_part(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> None:
    """torch.compile's CUDA graphs overwrite what they gave when a new step begins: never between a step's parts, whose
    gradients they hold.
    """
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    policy = make(spec)
    batch = fake_batch(spec, 2)
    policy.loss(batch)
    assert begun == []  # it has none
    policy._replays = True
    policy.loss(batch)["loss"].backward()
    policy.loss(batch)["loss"].backward()
    assert len(begun) == 1
    policy.zero_grad()
    policy.loss(batch)
    policy.act(batch.observation, torch.Generator().manual_seed(0))
    assert len(begun) == 3


def test_a_sentence_that_is_kept_is_no_memory_of_a_graph(spec: Spec) -> None:
    policy = make(spec, "text.adapter=frozen")
    given: list[torch.Tensor] = []
    inner = policy.text.forward

    def forward(sentences: list[str]) -> Any:
        found = inner(sentences)
        given.append(found.features)
        return found

    policy.text.forward = forward
    (kept,) = (one.features for one in [policy.phrases(["open"])])
    assert torch.equal(kept, given[0])
    given[0].fill_(7)  # as the next replay would
    assert not torch.equal(policy.phrases(["open"]).features, given[0])
