"""The loop: resumed = uninterrupted, accumulated = large batch, schedule, early stopping, validation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose
from torch import Tensor, nn

from provla.core.build import build
from provla.core.errors import NotFinite
from provla.dataset.sampler import Sampler
from provla.logger.csv import CsvLogger
from provla.run.setting import make_spec
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.fit import Fit, make_accelerator, seed_everything
from provla.trainer.loop import UNLIMITED
from provla.trainer.options import Trainer

CPU = torch.device("cpu")


def setup(*overrides: str) -> tuple[Any, Trainer, Sampler, Sampler]:
    other_tower = any(override.startswith("vision=") for override in overrides)
    config = compose(*(o for o in FAKE if not (other_tower and o.startswith("vision."))), *overrides)
    source = build(config["dataset"], "dataset")
    data = source.load()
    spec = make_spec(config, data)
    samplers = [
        Sampler(data, e, spec.cameras, spec.horizon, spec.n_obs_steps)
        for e in data.split(source.val_fraction, source.split_seed)
    ]
    seed_everything(config["seed"])
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.fit_normalization(torch.from_numpy(data.state), torch.from_numpy(data.actions))
    return policy, build(config["trainer"], "trainer"), samplers[0], samplers[1]


def fit(folder: Path, *overrides: str) -> tuple[Fit, dict[str, Tensor]]:
    policy, trainer, train, val = setup(*overrides)
    found = trainer.fit(policy, train, val, Checkpoints(folder), 0, CPU, lambda step, row: None)
    return found, policy.state_dict()


BASES = ["vision=siglip_base", "vision.name={b}/siglip", "text=qwen2_5_0_5b", "text.name={b}/qwen2", "adapter=lora"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["quant=4bit"],
        ["quant=8bit"],
        ["trainer.grad_accumulation=2", "trainer.batch_size=4"],
        ["trainer.precision=bf16"],
        # Frozen weights are no part of the checkpoint.
        [
            *BASES,
            "trainer=reference",
            "trainer.warmup_steps=5",
            "trainer.grad_accumulation=2",
        ],
        [*BASES, "quant=4bit"],
        [*BASES, "quant=8bit", "adapter.use_dora=true"],
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, overrides: list[str], backbones: Path
) -> None:
    overrides = ["trainer.max_steps=6", *(o.format(b=backbones) for o in overrides), "trainer.val_every_epochs=null"]
    whole, expected = fit(tmp_path / "whole", *overrides)

    class Killed(Exception):
        pass

    policy, trainer, train, val = setup(*overrides)

    def dies(step: int, row: dict[str, float]) -> None:
        if step == 5:  # a checkpoint was written at 4
            raise Killed

    with pytest.raises(Killed):
        trainer.fit(policy, train, val, Checkpoints(tmp_path / "part"), 0, CPU, dies)
    torch.manual_seed(123)
    np.random.seed(123)
    resumed, found = fit(tmp_path / "part", *overrides)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    def losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if "per_second" not in k} for row in history]

    assert losses(resumed.history) == losses(whole.history)


class Killed(Exception):
    pass


def logged(
    folder: Path, *overrides: str, dies_after_save: int | None = None, dies_after_row: int | None = None
) -> list[dict[str, str]]:
    """A training into `folder` that logs as a run does; the rows of its metrics.csv, without those of time."""
    policy, trainer, train, val = setup(*overrides)

    def saved(path: Path, aliases: list[str]) -> None:
        if path.name == f"step_{dies_after_save or -1:07d}":
            raise Killed

    checkpoints = Checkpoints(folder / "checkpoints", "", saved)
    stored, logger = checkpoints.load(), CsvLogger()
    logger.start(folder, {}, "", None, stored[1]["fit"]["history"] if stored else [])

    def log(step: int, row: dict[str, float]) -> None:
        logger.log(step, row)
        if step == dies_after_row:
            raise Killed

    trainer.fit(policy, train, val, checkpoints, 0, CPU, log)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return [{key: value for key, value in row.items() if "per_second" not in key} for row in rows]


def test_metrics_are_the_same_with_and_without_a_kill(tmp_path: Path) -> None:
    options = [
        "trainer.max_steps=7",
        "trainer.log_every=3",
        "trainer.val_every=5",
        "trainer.save_every=1",
        "trainer.val_samples=4",
    ]
    options += ["trainer.batch_size=2", "trainer.grad_accumulation=2"]
    whole = logged(tmp_path / "whole", *options)
    assert [row["step"] for row in whole] == ["3", "5", "6", "7", "7"]
    for step in (1, 4, 5):
        with pytest.raises(Killed):
            logged(tmp_path / f"{step}", *options, dies_after_save=step)
        assert logged(tmp_path / f"{step}", *options) == whole
    with pytest.raises(Killed):  # a row that no checkpoint knows of is not there twice
        logged(tmp_path / "row", *options, dies_after_row=6)
    assert logged(tmp_path / "row", *options) == whole


def spoiled(*overrides: str, row: int, step: int = 0) -> tuple[Any, Trainer, Sampler, Sampler]:
    """A training in which a step meets a state so large that float32 overflows on the way to the loss."""
    policy, trainer, train, val = setup(*overrides)
    train.data.state[train.rows_at(0, step, 8)[row]] = 3e38
    return policy, trainer, train, val


def test_a_bad_step_is_skipped_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The data of one step are bad: weights, optimiser and average after it are those before it; the batch is kept; a
    resumed run counts the same.
    """
    options = ["trainer.on_nan=skip", "trainer.max_steps=4", "trainer.save_every=1", "trainer.val_every=4"]
    policy, trainer, train, val = spoiled(*options, row=3, step=2)
    held: dict[int, dict[str, dict[str, Tensor]]] = {}

    def saved(path: Path, aliases: list[str]) -> None:
        stored = Checkpoints(tmp_path / "checkpoints").load()
        assert stored is not None
        held[stored[1]["fit"]["step"]] = stored[0]

    found = trainer.fit(
        policy, train, val, Checkpoints(tmp_path / "checkpoints", "", saved), 0, CPU, lambda step, row: None
    )
    assert found.skipped == [3]
    for kind in ("weights", "optimizer", "average"):
        assert all(torch.equal(held[3][kind][name], tensor) for name, tensor in held[2][kind].items())
        assert any(not torch.equal(held[4][kind][name], tensor) for name, tensor in held[3][kind].items())
    assert [row["step"] for row in found.history if "train/loss" in row] == [1, 2, 4]
    assert all(math.isfinite(value) for row in found.history for value in row.values())
    kept = json.loads((tmp_path / "bad_batches" / "step_0000003.json").read_text())
    assert kept["rows"][3] == train.rows_at(0, 2, 8)[3]
    assert train.data.starts[kept["episodes"][3]] + kept["frames"][3] == kept["rows"][3]
    policy, trainer, train, val = spoiled(*options, "trainer.max_skipped=0", row=3, step=2)
    with pytest.raises(
        NotFinite, match=r"step 3: the loss \((nan|inf)\) is not finite; its batch: .*/bad_batches/step_0000003.json"
    ):
        trainer.fit(policy, train, val, Checkpoints(tmp_path / "none" / "checkpoints"), 0, CPU, lambda step, row: None)
    stored = Checkpoints(tmp_path / "none" / "checkpoints").load()
    assert stored is not None
    assert stored[1]["fit"]["step"] == 2  # the good checkpoint stands


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    options = ["trainer.lr=1e38", "trainer.max_steps=1", "trainer.warmup_steps=0"]
    with pytest.raises(NotFinite, match=r"step 1: .* is not finite. Lower trainer.lr=1e\+38"):
        fit(tmp_path / "checkpoints", *options)
    assert Checkpoints(tmp_path / "checkpoints").load() is None
    policy, trainer, train, val = setup()
    name, weight = next(iter((n, p) for n, p in policy.named_parameters() if p.requires_grad and "head" in n))
    weight.data.view(-1)[0] = math.nan
    with pytest.raises(NotFinite, match=rf"step 1: the weight {name} is not finite"):
        trainer.fit(policy, train, val, Checkpoints(tmp_path / "nan"), 0, CPU, lambda step, row: None)
    policy, trainer, train, val = setup()
    weight = dict(policy.named_parameters())[name]
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotFinite, match=rf"step 1: the gradient of {name} is not finite"):
        trainer.fit(policy, train, val, Checkpoints(tmp_path / "grad"), 0, CPU, lambda step, row: None)


def test_accumulated_gradients_equal_those_of_the_large_batch(tmp_path: Path) -> None:
    one = ["trainer.max_steps=1", "augmentation=none"]
    fit(tmp_path / "large", "trainer.batch_size=8", *one)
    fit(tmp_path / "small", "trainer.batch_size=2", "trainer.grad_accumulation=4", *one)
    large, small = (Checkpoints(tmp_path / name).load() for name in ("large", "small"))
    assert large is not None
    assert small is not None
    # After one step the first moment is a tenth of the gradient.
    gradients = [
        {k: v for k, v in stored[0]["optimizer"].items() if k.endswith("exp_avg")} for stored in (large, small)
    ]
    assert len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-7)
    policy, _, train, _ = setup()
    batch = train.step(0, 0, 8)
    assert len({int((~part.is_pad).sum()) for part in batch.split(4)}) > 1  # the parts weigh differently
    policy.train()
    policy.loss(batch)["loss"].backward()
    whole = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    total = (~batch.is_pad).sum()
    for part in batch.split(4):
        (policy.loss(part)["loss"] * (~part.is_pad).sum() / total).backward()
    for name, p in policy.named_parameters():
        if name in whole:
            torch.testing.assert_close(p.grad, whole[name], rtol=1e-3, atol=1e-6)


def test_reported_loss_is_the_true_mean(tmp_path: Path) -> None:
    found, _ = fit(
        tmp_path,
        "trainer.log_every=4",
        "trainer.val_every=4",
        "augmentation=none",
        "trainer.lr=0",
        "trainer.ema_decay=0",
    )
    policy, _, train, _ = setup("augmentation=none")
    policy.train()
    losses = [policy.loss(train.step(0, s, 8))["loss"].item() for s in range(4)]
    assert found.history[0]["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_learning_rate_schedule() -> None:
    trainer = build(compose("trainer.lr=1.0", "trainer.warmup_steps=10")["trainer"], "trainer")
    assert trainer.lr_at(0, 110) == pytest.approx(0.1)
    assert trainer.lr_at(9, 110) == pytest.approx(1.0)
    assert trainer.lr_at(60, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert trainer.lr_at(110, 110) == pytest.approx(0.0)
    fraction = build(
        compose("trainer.lr=1.0", "trainer.warmup_steps=0.1", "trainer.lr_schedule=constant")["trainer"], "trainer"
    )
    assert [fraction.lr_at(s, 100) for s in (0, 9, 50)] == pytest.approx([0.1, 1.0, 1.0])


def test_epochs_and_steps() -> None:
    trainer = build(
        compose(
            "trainer.max_steps=null", "trainer.max_epochs=3", "trainer.batch_size=8", "trainer.grad_accumulation=2"
        )["trainer"],
        "trainer",
    )
    assert trainer.total_steps(100) == 3 * (100 // 16)
    assert trainer.total_steps(5) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.max_steps=100", "trainer.warmup_steps=100"],
            r"warmup_steps=100: the training has 100 steps.*fraction such as 0\.1",
        ),
        (
            ["trainer.max_steps=null", "trainer.max_epochs=1", "trainer.warmup_steps=20"],
            r"warmup_steps=20: the training has 12 steps",
        ),
        (["trainer.max_steps=10", "trainer.warmup_steps=0.99"], r"warmup_steps=0\.99: the training has 10 steps"),
        (
            ["trainer.max_steps=null", "trainer.max_minutes=1", "trainer.warmup_steps=100"],
            r"warmup_steps=100: a training of minutes has no number of steps",
        ),
    ],
)
def test_a_warm_up_that_never_ends_is_refused(overrides: list[str], message: str) -> None:
    trainer = build(compose("trainer.batch_size=8", *overrides)["trainer"], "trainer")
    with pytest.raises(ValueError, match=message):
        trainer.total_steps(100)


def test_any_warm_up_that_ends_is_taken() -> None:
    for overrides in (
        ["trainer.max_steps=0", "trainer.warmup_steps=100"],
        ["trainer.max_steps=1"],
        ["trainer.max_steps=101", "trainer.warmup_steps=100"],
    ):
        build(compose(*overrides)["trainer"], "trainer").total_steps(100)
    assert (
        build(compose("trainer.max_steps=null", "trainer.max_minutes=1")["trainer"], "trainer").total_steps(100)
        == UNLIMITED
    )


def test_early_stopping_with_patience(tmp_path: Path) -> None:
    found, _ = fit(
        tmp_path,
        "trainer.lr=0",
        "trainer.patience=2",
        "trainer.max_steps=40",
        "trainer.val_every=1",
        "trainer.monitor=loss",
        "trainer.ema_decay=0",
    )
    assert found.step == 3  # the first is the best, two more bring nothing
    assert found.stopped.startswith("early: loss has not improved for 2 validations")


def test_keep_best_ends_with_the_weights_of_the_best_step(tmp_path: Path) -> None:
    options = ["trainer.max_steps=8", "trainer.lr=0.05", "trainer.monitor=loss", "trainer.ema_decay=0"]
    found, weights = fit(tmp_path / "best", *options, "trainer.keep=best")
    stored = Checkpoints(tmp_path / "best").load("best")
    assert stored is not None
    assert stored[1]["fit"]["step"] == found.best_step
    assert all(torch.equal(weights[name], tensor) for name, tensor in stored[0]["weights"].items())


def test_average_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    _, averaged = fit(tmp_path / "a", "trainer.ema_decay=0.9")
    _, plain = fit(tmp_path / "b", "trainer.ema_decay=0")
    assert any(not torch.equal(averaged[name], plain[name]) for name in plain)
    stored = Checkpoints(tmp_path / "a").load()
    assert stored is not None
    # The average does not disturb the training.
    assert all(torch.equal(stored[0]["weights"][name], plain[name]) for name in plain)
    assert all(torch.equal(averaged[name], value) for name, value in stored[0]["average"].items())


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = fit(tmp_path / "a", "trainer.keep=best")
    file = tmp_path / "a" / "step_0000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    _, found = fit(tmp_path / "a", "trainer.keep=best")
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoint step_0000004 is damaged: optimizer.safetensors has the right size, but not the content" in said
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "step_0000002",
        "step_0000004",
        "step_0000004.damaged",
        "latest",
        "best",
    }


def test_a_run_that_ends_with_its_best_weights_needs_them(tmp_path: Path) -> None:
    options = ["trainer.lr=0", "trainer.monitor=loss", "trainer.ema_decay=0", "trainer.keep=best"]
    found, _ = fit(tmp_path, *options)
    best = tmp_path / f"step_{found.best_step:07d}"
    assert found.best_step == 2  # the first is the best, the second brings nothing
    best.rename(tmp_path.parent / "elsewhere")
    with pytest.raises(ValueError, match=rf"trainer.keep=best needs the checkpoint of step {found.best_step}"):
        fit(tmp_path, *options)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=0", "trainer.batch_size=0: expected a whole number from 1 to"),
        ("trainer.batch_size=1.5", "trainer.batch_size=1.5"),
        ("trainer.max_steps=null", "trainer.max_steps, trainer.max_epochs and trainer.max_minutes are all null"),
        ("trainer.lr=-1", "trainer.lr=-1: expected a number of at least 0"),
        ("trainer.lr_schedule=step", "expected one of: cosine, constant"),
        ("trainer.precision=fp8", "expected one of: auto, none, bf16, fp16"),
        ("trainer.ema_decay=1", "trainer.ema_decay=1"),
    ],
)
def test_bad_options_are_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(compose(*FAKE, override)["trainer"], "trainer")


def test_precision_follows_the_device() -> None:
    assert make_accelerator("auto", CPU).mixed_precision == "no"
    assert make_accelerator("bf16", CPU).mixed_precision == "bf16"
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        make_accelerator("fp16", CPU)


def test_diverging_loss_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(
        NotFinite,
        match=r"step 2: the loss \((nan|inf)\) is not finite; its batch: .*step_0000002.json. Lower trainer.lr=1e\+30",
    ):
        fit(tmp_path, "trainer.lr=1e30", "trainer.max_steps=20")


def test_deterministic_algorithms(tmp_path: Path) -> None:
    fit(tmp_path, "trainer.deterministic=true")


def test_unknown_monitor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.monitor='score' is not measured; valid: loss, first_step_error"):
        fit(tmp_path, "trainer.monitor=score")
