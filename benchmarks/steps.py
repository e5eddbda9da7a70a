"""Steps at full size against the plain way: python benchmarks/steps.py [lora] [frozen] [chunk]

SigLIP-base and Qwen2.5-0.5B with random weights, two cameras of 224×224, batches of 4. The plain way reads each
sample's sentence, padded to 64 tokens, with the causal language model and its logits, and shows every picture to the
encoder. lora: a training step with LoRA in both backbones. frozen: one where neither trains and the pictures'
features are known, against a step that computes them, and against the plain way of lora. chunk: one action chunk, 10
steps of DDIM, a sentence that was heard before, against 50 steps of the plain way. Losses are equal to 1e-5, or
nothing is measured. Prints a line of JSON for each; medians of ratios of rounds in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.types import Batch, Observation, Spec, Tokens, fake_batch, fake_observation

SPEC = Spec(
    ("high", "wrist"), (224, 224), 14, 14, 16, 1, 8, ("Open the top cabinet, store the pot inside it",), {}, 50.0
)
ROUNDS, PADDED = 5, 64


def policy_of(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        random = ["experiments=reference", "vision.pretrained=false", "text.pretrained=false"]
        node = OmegaConf.to_container(compose("train", [*random, *overrides]), resolve=True)
    torch.manual_seed(0)
    return build(node["policy"], "policy", nn.Module, spec=SPEC, device=torch.device("cpu"))  # type: ignore[index, call-overload]


class Plainly:
    """How a policy reads in the plain way: every sample's sentence, padded, with a causal model's logits."""

    def __init__(self, policy: Any) -> None:
        from transformers import Qwen2ForCausalLM

        self._tower = policy.text
        with torch.device("meta"):
            self._model = Qwen2ForCausalLM(self._tower.model.config)
        self._model.model = self._tower.model
        self._model.lm_head.weight = self._tower.model.get_input_embeddings().weight

    def __call__(self, sentences: list[str]) -> Tokens:
        words = self._tower._processor(sentences, padding="max_length", max_length=PADDED, return_tensors="pt")
        found = self._model(**words, output_hidden_states=True)
        assert found.logits.shape[1] == PADDED
        return Tokens(found.hidden_states[-1].float(), words["attention_mask"].bool())


def plainly(policy: Any, batch: Batch | Observation) -> Any:
    """The context of a batch, and nothing shared between its samples."""
    seen = batch.observation if isinstance(batch, Batch) else batch
    return policy.fusion(policy.vision(seen.images), policy.plain(seen.instruction), policy.state_norm(seen.state))


def drawn() -> Batch:
    g = torch.Generator().manual_seed(0)
    batch = fake_batch(SPEC, 4)
    return replace(batch, noise=torch.randn(batch.actions.shape, generator=g), time=torch.rand(4, generator=g))


def loss_of(policy: Any, batch: Batch, plain: bool) -> Tensor:
    if not plain:
        found: Tensor = policy.loss(batch)["loss"]
        return found
    actions, context = policy.action_norm(batch.actions), plainly(policy, batch)
    kept: Tensor = policy.scheduler.loss(policy.head, actions, context, batch.is_pad, batch.noise, batch.time)
    return kept


def stepper(policy: Any, batch: Batch, plain: bool) -> Callable[[], float]:
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)

    def step() -> float:
        loss = loss_of(policy, batch, plain)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def in_turns(name: str, against: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Prints how long each takes, and the median ratio of rounds."""
    taken: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):  # the first warms up
        pair = []
        for call in (ours, theirs):
            begun = time.perf_counter()
            call()
            pair.append(time.perf_counter() - begun)
        taken.append((pair[0], pair[1]))
    mine, other = zip(*taken[1:], strict=True)
    row = {"what": name, "against": against, "ours": round(median(mine), 3), "theirs": round(median(other), 3)}
    print(json.dumps(row | {"ratio": round(median(b / a for a, b in taken[1:]), 2), "n": ROUNDS}), flush=True)


def lora() -> None:
    policy = policy_of("adapter.dropout=0")
    policy.plain = Plainly(policy)
    policy.train()
    batch = drawn()
    ours, theirs = (stepper(policy, batch, plain) for plain in (False, True))
    assert abs(ours() - theirs()) < 1e-5
    in_turns("training step, LoRA", "the plain way", ours, theirs)


def frozen() -> None:
    policy, tuned = policy_of("adapter=frozen"), policy_of("adapter.dropout=0")
    tuned.plain = Plainly(tuned)
    tuned.train(), policy.train()
    batch = drawn()
    seen = batch.observation
    with torch.no_grad():
        features = policy.vision.encode(seen.images.flatten(0, 2)).unflatten(0, seen.images.shape[:3])
    known = replace(batch, observation=replace(seen, features=features))
    ours, theirs = stepper(policy, known, False), stepper(policy, batch, False)
    assert ours() == theirs()
    in_turns("training step, frozen", "encoding in every step", ours, theirs)
    in_turns("training step, frozen", "the plain way with LoRA", ours, stepper(tuned, batch, True))


def chunk() -> None:
    policy = policy_of("adapter=frozen")
    policy.plain = Plainly(policy)
    policy.eval()
    seen = fake_observation(SPEC, 1)

    def ours() -> Tensor:
        policy.scheduler.num_inference_steps = 10
        found: Tensor = policy.act(seen, torch.Generator().manual_seed(0))
        return found

    def theirs(steps: int = 50) -> Tensor:
        policy.scheduler.num_inference_steps = steps
        with torch.no_grad():
            context = plainly(policy, seen)
            shape = (1, SPEC.horizon, SPEC.action_size)
            found = policy.scheduler.sample(policy.head, context, shape, torch.Generator().manual_seed(0))
            return policy.action_norm.undo(found)  # type: ignore[no-any-return]

    torch.testing.assert_close(ours(), theirs(10), atol=1e-4, rtol=1e-4)
    in_turns("action chunk", "50 steps of the plain way", ours, theirs)


def main() -> None:
    asked = sys.argv[1:] or ["lora", "frozen", "chunk"]
    known = {"lora": lora, "frozen": frozen, "chunk": chunk}
    if unknown := [name for name in asked if name not in known]:
        sys.exit(f"nothing is called {unknown[0]!r} here; valid: {', '.join(known)}")
    for name in asked:
        known[name]()


if __name__ == "__main__":
    main()
