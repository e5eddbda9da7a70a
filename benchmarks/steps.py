"""Steps at full size against the plain way: python benchmarks/steps.py [lora] [frozen] [chunk] [head]

SigLIP-base and Qwen2.5-0.5B with random weights, two cameras of 224×224, batches of 4. The plain way reads each
sample's sentence, padded to 64 tokens, with the causal language model and its logits, and shows every picture to the
encoder. lora: a training step with LoRA in both backbones. frozen: one where neither trains and the pictures'
features are known, against a step that computes them, and against the plain way of lora. chunk: one action chunk, 10
steps of DDIM, a sentence that was heard before, against 50 steps of the plain way. head: the U-Net alone, against
LeRobot's of the same weights. What each gives is equal to 1e-5, or nothing is measured. Ours computes as a run does
(`reproducible`), the others as torch does by itself. A line in bf16 says by how much the result differs. Prints lines
of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from turns import chosen, in_turns

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.machine import reproducible
from provla.core.types import Batch, Observation, Spec, Tokens, fake_batch, fake_observation

SPEC = Spec(
    ("high", "wrist"), (224, 224), 14, 14, 16, 1, 8, ("Open the top cabinet, store the pot inside it",), {}, 50.0
)
PADDED = 64


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


def as_in_a_run[T](call: Callable[[], T], bf16: bool = False) -> Callable[[], T]:
    """bf16: as with trainer.precision=bf16."""

    def called() -> T:
        with (
            reproducible(torch.get_num_threads(), torch.device("cpu"), deterministic=False),
            torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext(),
        ):
            return call()

    return called


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


def lora() -> None:
    policy = policy_of("adapter.dropout=0")
    policy.plain = Plainly(policy)
    policy.train()
    batch = drawn()
    step, theirs = (stepper(policy, batch, plain) for plain in (False, True))
    ours, halved = as_in_a_run(step), as_in_a_run(step, bf16=True)
    assert abs(ours() - theirs()) < 1e-5
    in_turns("training step, LoRA", "the plain way", ours, theirs)
    in_turns("training step, LoRA, bf16", "the plain way", halved, theirs, differs=abs(halved() - theirs()))


def frozen() -> None:
    policy, tuned = policy_of("adapter=frozen"), policy_of("adapter.dropout=0")
    tuned.plain = Plainly(tuned)
    tuned.train(), policy.train()
    batch = drawn()
    seen = batch.observation
    with torch.no_grad():
        features = policy.vision.encode(seen.images.flatten(0, 2)).unflatten(0, seen.images.shape[:3])
    known = replace(batch, observation=replace(seen, features=features))
    ours, theirs = (as_in_a_run(stepper(policy, one, False)) for one in (known, batch))
    assert ours() == theirs()
    in_turns("training step, frozen", "encoding in every step", ours, theirs)
    in_turns("training step, frozen", "the plain way with LoRA", ours, stepper(tuned, batch, True))


def chunk() -> None:
    policy, halved = policy_of("adapter=frozen"), policy_of("adapter=frozen", "vision.dtype=bfloat16")
    policy.plain = Plainly(policy)
    policy.eval(), halved.eval()
    halved.load_state_dict(policy.state_dict())
    seen = fake_observation(SPEC, 1)

    def ours(policy: Any = policy) -> Tensor:
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
    in_turns("action chunk", "50 steps of the plain way", as_in_a_run(ours), theirs)
    rounded = as_in_a_run(lambda: ours(halved))
    differs = (rounded() - theirs(10)).abs().max().item()
    in_turns("action chunk, vision in bf16", "50 steps of the plain way", rounded, theirs, differs=differs)


# LeRobot's names of the U-Net's parts → provla's.
RENAMED = {
    r"diffusion_step_encoder\.1": "time.mlp.0",
    r"diffusion_step_encoder\.3": "time.mlp.2",
    r"down_modules\.(\d)\.2\.": r"shrink.\1.",
    r"up_modules\.(\d)\.2\.": r"grow.\1.",
    r"down_modules": "down",
    r"up_modules": "up",
    r"mid_modules": "middle",
    r"conv1\.block": "first",
    r"conv2\.block": "second",
    r"cond_encoder\.1": "condition",
    r"residual_conv": "skip",
    r"final_conv\.0\.block": "out",
    r"final_conv\.1": "out.3",
}


def head() -> None:
    """unet1d against the conditional U-Net of LeRobot's diffusion policy: the same weights, the same batch."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d

    seen = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    config = DiffusionConfig(
        horizon=16,
        n_action_steps=8,
        down_dims=(128, 256, 512),
        kernel_size=3,
        diffusion_step_embed_dim=128,
        input_features=seen,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
    other = DiffusionConditionalUnet1d(config, global_cond_dim=256)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train", ["head.channels=[128,256,512]"]).head, resolve=True)
    mine = build(node, "head", nn.Module)(action_size=4, horizon=16, context_width=256)
    renamed = dict(other.state_dict())
    for theirs, ours in RENAMED.items():
        renamed = {re.sub(theirs, ours, name): value for name, value in renamed.items()}
    for name in [name for name in renamed if name.endswith("condition.bias")]:
        scale, shift = renamed[name].chunk(2)
        renamed[name] = torch.cat([scale - 1, shift])  # LeRobot's scales by what provla adds to 1
    mine.load_state_dict(renamed)
    actions, noise, condition = torch.randn(32, 16, 4), torch.randn(32, 16, 4), torch.randn(32, 256)
    times, context = torch.randint(0, 100, (32,)), Tokens.full(condition.unsqueeze(1))
    calls = lambda: mine(actions, times, context), lambda: other(actions, times, global_cond=condition)
    torch.testing.assert_close(calls[0](), calls[1](), atol=1e-5, rtol=1e-5)

    def stepper(module: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            (call() - noise).square().mean().backward()
            optimizer.step()

        return step

    step, theirs = stepper(mine, calls[0]), stepper(other, calls[1])
    in_turns("U-Net training step", "LeRobot's U-Net", as_in_a_run(step), theirs, rounds=20)
    in_turns("U-Net training step, bf16", "LeRobot's U-Net", as_in_a_run(step, bf16=True), theirs, rounds=20)


if __name__ == "__main__":
    chosen({"lora": lora, "frozen": frozen, "chunk": chunk, "head": head})
