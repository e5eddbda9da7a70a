"""Batches that come early or from a device are those of the sampler; nothing in a step waits for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose
from test_trainer import CPU, Killed, fit, setup
from torch import Tensor, nn

from provla import augmentation
from provla.core.device import seed_torch
from provla.core.ranks import ALONE, Ranks
from provla.core.types import Batch, Observation
from provla.dataset.features import Features
from provla.dataset.resident import Resident, size_of
from provla.dataset.sampler import Sampler
from provla.text.parts import Spelled
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.feed import AHEAD, Feed
from provla.trainer.finite import Gauge
from provla.trainer.fit import load_optimizer, make_optimizer, optimizer_tensors, seed_everything
from provla.trainer.graph import Watch
from provla.trainer.loop import Loop

TWO = ["dataset.cameras=[front,wrist]", "n_obs_steps=2"]


def same(found: Any, expected: Any) -> bool:
    """Two batches, to the bit, whatever was looked up."""
    for one in fields(expected):
        a, b = getattr(found, one.name), getattr(expected, one.name)
        if isinstance(b, Tensor):
            assert a.dtype == b.dtype, one.name
            assert torch.equal(a, b), one.name
        elif isinstance(b, Observation):
            assert same(a, b)
        elif one.name not in ("sentences", "which"):
            assert a == b, one.name
    return True


def feed_of(train: Sampler, parts: int, ranks: Ranks = ALONE, resident: bool = True) -> Feed:
    """As for a GPU, on the CPU."""
    found = Feed(train, 3, 8, parts, ranks, CPU)
    assert (found.ahead, found.resident) == (False, False)
    found.ahead, found.resident = True, resident
    return found


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("overrides", [[], TWO])
def test_what_was_gathered_ahead_is_what_the_sampler_gathers(overrides: list[str], parts: int, resident: bool) -> None:
    train = setup(*overrides)[2]
    per_epoch = len(train.rows) // 8
    order = [0, 1, 2, 1, 1, 7, 8, 0, per_epoch - 1, per_epoch, per_epoch + 1]  # forward, again, back, into an epoch
    for ranks in (Ranks(), Ranks(1, 2)):
        with feed_of(train, parts, ranks, resident=resident) as feed:
            for step in order:
                whole = train.step(3, step, 8, ranks.rank, ranks.size)
                expected, found = list(whole.split(parts)), feed.at(step)
                assert len(found) == len(expected)
                assert all(same(a.batch, b) for a, b in zip(found, expected, strict=True))
                steps = train.unpadded(train.rows_at(3, step, 8))
                assert [part.share for part in found] == [int((~b.is_pad).sum()) / steps for b in expected]


def test_features_lie_there_too() -> None:
    train = setup(*TWO)[2]
    rows = [np.random.default_rng(k).integers(0, 2**16, (len(train.data.actions), 3), dtype=np.uint16) for k in (0, 1)]
    train.features = [Features(one, torch.bfloat16) for one in rows]
    there = Resident(train, CPU)
    found, expected = there.look(train.step(0, 1, 8, pictures=False)), train.step(0, 1, 8)
    known, seen = expected.observation.features, found.observation.features
    assert known is not None
    assert seen is not None
    assert seen.dtype == torch.bfloat16
    assert torch.equal(seen.view(torch.int16), known.view(torch.int16))  # NaN is equal to itself
    bare = [replace(one, observation=replace(one.observation, features=None)) for one in (found, expected)]
    assert same(*bare)
    assert size_of(train) == sum(one.nbytes for one in (*train.frames, *rows))


def test_sentences_are_looked_up_once(spec: Any) -> None:
    policy, _, train, _ = setup()
    plain = train.step(3, 0, 8)
    with feed_of(train, 1) as feed:
        feed.always(policy.spec.instructions)
        batch = feed.at(0)[0].batch
    seen = batch.observation
    assert seen.sentences == policy.spec.instructions
    assert seen.which is not None
    assert [seen.sentences[i] for i in seen.which.tolist()] == plain.observation.instruction
    policy.eval()
    loss, expected = (policy.loss(one)["loss"] for one in (batch, plain))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # the same sentences in another order


def test_what_goes_wrong_in_the_thread_is_said_by_the_step_that_needs_it() -> None:
    train = setup()[2]
    inner = train.gather

    def gather(rows: Any, pictures: bool = True) -> Batch:
        if np.array_equal(rows, train.rows_at(3, 2, 8)):
            raise OSError("the disk has gone")
        return inner(rows, pictures)

    train.gather = gather  # type: ignore[method-assign]
    with feed_of(train, 1, resident=False) as feed:
        for step in (0, 1):
            feed.at(step)
        with pytest.raises(OSError, match="the disk has gone"):
            feed.at(2)


def looped(folder: Path, change: Callable[[Loop], None], *overrides: str, dies: int = 0) -> tuple[Loop, Any]:
    policy, trainer, train, val = setup(*overrides)

    def log(step: int, row: dict[str, float]) -> None:
        if step == dies:
            raise Killed

    loop = Loop(trainer, policy, train, val, Checkpoints(folder / "checkpoints"), 0, CPU, log, lambda *_: False)
    change(loop)
    return loop, policy


def as_on_a_gpu(loop: Loop) -> None:
    loop.feed.ahead = loop.feed.resident = True
    loop.asks = False


def test_a_training_that_is_fed_ahead_and_asks_nothing_is_the_same_and_resumes(tmp_path: Path) -> None:
    options = ["trainer.max_steps=6", "trainer.val_every=2", "trainer.grad_accumulation=2", "trainer.batch_size=4"]
    expected, weights = fit(tmp_path / "plain" / "checkpoints", *options)
    loop, policy = looped(tmp_path / "fed", as_on_a_gpu, *options)
    found = loop.run()
    assert [row.get("train/loss") for row in found.history] == [row.get("train/loss") for row in expected.history]
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    loop, _ = looped(tmp_path / "killed", as_on_a_gpu, *options, dies=5)
    with pytest.raises(Killed):
        loop.run()
    loop, policy = looped(tmp_path / "killed", as_on_a_gpu, *options)
    loop.run()
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize(
    "overrides", [[], ["trainer.grad_accumulation=2", "trainer.batch_size=4"], ["text=task_embedding"], ["text=none"]]
)
def test_no_step_waits_for_a_number(overrides: list[str], tmp_path: Path) -> None:
    """Operations that would stop a GPU, of the steps of a training that behaves as on one: none but where it logs."""
    options = ["trainer.max_steps=7", "trainer.log_every=3", "trainer.val_every=7", *overrides]
    loop, _ = looped(tmp_path, as_on_a_gpu, *options)
    steps, reads = [], []
    step, read = loop._step, loop._read

    def watched(call: Callable[..., Any], into: list[str], *given: Any) -> Any:
        with Watch(CPU) as watch:
            found = call(*given)
        into.append(watch.asked)
        return found

    loop._step = lambda lr: watched(step, steps, lr)  # type: ignore[method-assign]
    loop._read = lambda: watched(read, reads)  # type: ignore[method-assign]
    loop.run()
    assert steps == [""] * 7
    assert len(reads) == 3
    assert all("_local_scalar_dense" in asked or "is_nonzero" in asked for asked in reads)
    with Watch(CPU) as watch:
        torch.arange(3)[torch.tensor([True, False, True])]
    assert "index" in watch.asked  # its size depends on numbers
    with Watch(CPU) as watch:
        torch.arange(3)[torch.tensor([1, 0])].add(1.0)
    assert not watch.asked


ARMS: list[list[str]] = [
    [],
    ["text=none", "fusion=perceiver", "augmentation=crop_color", "scheduler=flow"],
    ["text=task_embedding", "fusion=moe", "fusion.num_experts=2", "scheduler=l1", "augmentation=camera", *TWO],
    ["fusion=qformer", "head=dit", "head.width=16", "head.depth=1", "head.num_heads=2", "scheduler=mip"],
    ["fusion=film", "head=mlp", "head.width=16", "scheduler=ddpm", "vision=siglip_tiny"],
]


@pytest.mark.parametrize("overrides", ARMS)
def test_a_step_on_a_gpu_touches_nothing_on_the_host(overrides: list[str]) -> None:
    """Up to its loss, and from its gradients on; on tensors that say they lie on a GPU and hold nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    named = {one.partition("=")[0] for one in overrides}
    config = compose(*(one for one in FAKE if one.partition("=")[0].partition(".")[0] not in named), *overrides)
    policy, spec, batch = made(config)
    cuda = torch.device("cuda:0")
    reads = next((one for one in vars(policy.text).values() if isinstance(one, Spelled)), None)
    words = None if reads is None else reads(spec.instructions, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        send(policy, cuda)
        if reads is not None:
            reads._known[cuda, spec.instructions] = on(words, cuda)
        policy.train()
        there = on(batch, cuda)
        policy.loss(there)  # what is sent once
        with Watch(cuda) as watch:
            loss = policy.loss(there)["loss"]
        assert loss.device == cuda
        assert watch.asked == ""
        weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        for weight in weights.values():
            weight.grad = torch.empty_like(weight)
        gauge, optimizer = Gauge(cuda, [0.0] * 3, False), make_optimizer(weights, 1e-3, (0.9, 0.99), 1e-4)
        with Watch(cuda) as watch:
            gauge.add(3, loss.detach(), torch.nn.utils.clip_grad_norm_(weights.values(), 1.0))
            optimizer.found_inf = gauge.bad
            optimizer.step()
        assert watch.asked == ""
        with Watch(cuda) as watch:
            torch.zeros(2, device=cuda) + torch.zeros(2).to(cuda)
        assert watch.asked  # else it could not have told
    for kept in (augmentation._bank, augmentation._turn, augmentation._tables):
        kept.cache_clear()


def made(config: dict[str, Any]) -> tuple[Any, Any, Batch]:
    from provla.core.build import build
    from provla.run.setting import make_spec

    data = build(config["dataset"], "dataset").load()
    spec = make_spec(config, data)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    batch = Sampler(data, np.arange(4), spec.cameras, spec.horizon, spec.n_obs_steps).step(0, 0, 8)
    return policy, spec, replace(batch, observation=batch.observation.look_up(spec.instructions))


def send(policy: nn.Module, device: torch.device) -> None:
    """Its weights and buffers, without what they hold."""
    for module in policy.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                module._parameters[name] = nn.Parameter(empty, weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return torch.empty(batch.shape, dtype=batch.dtype, device=device)
    held = {one.name: getattr(batch, one.name) for one in fields(batch)}
    there = {
        name: on(value, device)
        for name, value in held.items()
        if isinstance(value, (Tensor, Observation)) and name != "key"
    }
    return replace(batch, **there)


def test_seeding_a_step_is_seeding_the_cpu_as_before() -> None:
    def drawn(seed: Callable[[], None]) -> Sequence[float]:
        import random

        seed()
        return [random.random(), float(np.random.random()), *torch.rand(3).tolist()]

    assert drawn(lambda: seed_everything(5, 7, 1, device=CPU)) == drawn(lambda: seed_everything(5, 7, 1))
    assert drawn(lambda: seed_everything(5, 7, 2, device=CPU)) != drawn(lambda: seed_everything(5, 7, 1))


def test_only_the_gpu_of_a_step_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [torch.Generator().manual_seed(0) for _ in range(3)]
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(gpus))
    seed_torch(11, torch.device("cuda:1"))
    assert [one.initial_seed() for one in gpus] == [0, 11, 0]
    assert torch.default_generator.initial_seed() == 11


def test_what_an_optimiser_remembers_comes_back() -> None:
    weights = {name: nn.Parameter(torch.full((2,), float(n))) for n, name in enumerate(("a.b", "c"))}
    first, second = (make_optimizer(weights, 0.1, (0.9, 0.99), 0.0) for _ in range(2))
    for weight in weights.values():
        weight.grad = torch.ones(2)
    first.step()
    kept = optimizer_tensors(first, weights)
    assert {"a.b:step", "a.b:exp_avg", "c:exp_avg_sq"} <= set(kept)
    load_optimizer(second, weights, kept)
    again = optimizer_tensors(second, weights)
    assert all(torch.equal(again[name], value) for name, value in kept.items())


def test_two_threads_may_be_in_two_epochs() -> None:
    from concurrent.futures import ThreadPoolExecutor

    train = setup()[2]
    per_epoch = len(train.rows) // 8
    steps = [0, per_epoch, 2 * per_epoch, 3 * per_epoch]
    expected = {step: Sampler.rows_at(setup()[2], 0, step, 8).tolist() for step in steps}
    with ThreadPoolExecutor(4) as pool:
        asked = steps * 200
        found = list(pool.map(lambda step: train.rows_at(0, step, 8).tolist(), asked))
    assert all(rows == expected[step] for step, rows in zip(asked, found, strict=True))
    assert AHEAD == 2
