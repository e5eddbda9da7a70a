"""Sharded weights: the same training as one process and the same files, and a word for what shards cannot do.

torchrun starts this file for the two ranks, which go through `CASES` and `TROUBLES` in one go.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, ROOT, compose, made_once
from safetensors.torch import save_file
from test_trainer import BASES, CPU, setup
from torch import Tensor, nn

from provla.backbone.tower import blocks
from provla.core.build import build
from provla.core.errors import Interrupted, NotFinite
from provla.core.identity import identity, training_identity
from provla.core.ranks import join, part
from provla.core.signals import listening
from provla.policy.folder import load_policy
from provla.policy.weights import load_tensors
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.fit import Fit
from provla.trainer.loop import Loop

STEADY = ["trainer.lr_schedule=constant", "trainer.warmup_steps=0", "trainer.lr=2e-4", "trainer.shard=true"]
TOWERS = ["vision=siglip_tiny", "text=qwen_tiny", "head.channels=[16,32]", "trainer.val_samples=4"]
SHORT = "trainer.max_steps=2"
CASES = {
    "plain": ["augmentation=crop_color", "trainer.grad_accumulation=2", "trainer.batch_size=4"],
    "towers": [*TOWERS, "adapter=full", "text.gradient_checkpointing=true", SHORT],
    "half": [
        *[*TOWERS, "adapter=last_k", "adapter.k=1", "text.adapter=frozen", "trainer.precision=bf16", SHORT],
        *["trainer.ema_decay=0", "trainer.keep=best", "trainer.profile=true"],
    ],
    "lora": [*BASES, "adapter.dropout=0", "vision.dtype=bfloat16", "text.dtype=bfloat16", SHORT],
}
NEAR = {"plain": 1e-5, "towers": 1e-5, "half": 2e-2, "lora": 1e-2}  # what bfloat16 rounds grows
TIMES = ("train/steps_per_second", "train/waiting")


def loop(folder: Path, words: list[str], log: Callable[[int, Any], None] = lambda step, row: None) -> tuple[Loop, Any]:
    policy, trainer, train, val = setup(*STEADY, *words)
    checkpoints = Checkpoints(folder / "checkpoints")
    return Loop(trainer, policy, train, val, checkpoints, 0, CPU, log, lambda *_: False), policy


def words_of(case: str, backbones: Path) -> list[str]:
    return [word.format(b=backbones) for word in CASES[case]]


def rows(fit: Fit) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in fit.history]


def sizes(found: Loop) -> list[int]:
    """How many numbers of weights, average and optimiser are here."""
    slots = [slot for slots in found.optimizer.state.values() for slot in slots.values()]
    return [sum(t.numel() for t in group) for group in (found.named.values(), found.average.values(), slots)]


def rank(folder: Path, backbones: Path) -> None:
    """What each of the two does. `<case>/rows.json` and policy.safetensors are rank 0's, said_….json both's."""
    torch.set_num_threads(1)
    ranks, said = join(), {}
    for case in CASES:
        found, policy = loop(folder / case, words_of(case, backbones))
        fit = found.run()
        said[case] = sizes(found)
        if ranks.leads:
            (folder / case / "rows.json").write_text(json.dumps(rows(fit)))
            save_file({k: v.clone() for k, v in policy.state_dict().items()}, folder / case / "policy.safetensors")
    said["up"] = rows(loop(folder / "up", CASES["plain"])[0].run())
    said |= {name: trouble(folder / name, ranks.rank) for name, trouble in TROUBLES.items()}
    (folder / f"said_{ranks.rank}.json").write_text(json.dumps(said))
    part()


def bad_batch(folder: Path, rank: int) -> str:
    found, _ = loop(folder, ["trainer.on_nan=skip", SHORT])
    found.train.data.state[found.train.rows_at(0, 1, 8)[3]] = 3e38
    found.run()
    return json.dumps([found.fit.skipped, found.fit.step])


def bad_weight(folder: Path, rank: int) -> str:
    """Among one rank's rows alone."""
    found, _ = loop(folder, [])
    if rank == 1:
        list(found.named.values())[-1].data[-1] = math.nan
    try:
        found.run()
    except NotFinite as error:
        return str(error)
    return ""


def asked_to_end(folder: Path, rank: int) -> str:
    def log(step: int, row: dict[str, float]) -> None:
        if step == 1 and rank == 1:
            os.kill(os.getpid(), 15)

    with listening():
        try:
            loop(folder, [*CASES["plain"], SHORT], log)[0].run()
        except Interrupted as error:
            return str(error)
    return ""


def asked_in_a_validation(folder: Path, rank: int) -> str:
    found, _ = loop(folder, [*CASES["plain"], SHORT])
    measure = found._measure

    def asked(bars: Any) -> dict[str, float]:
        if found.fit.step == 2:
            os.kill(os.getpid(), 15)
        return measure(bars)

    found._measure = asked  # type: ignore[method-assign]
    with listening():
        try:
            found.run()
        except (Interrupted, SystemExit) as error:
            return type(error).__name__
    return ""


class Routed(nn.Module):
    """A policy of which a rank reaches only a part."""

    def __init__(self, policy: Any, rank: int) -> None:
        super().__init__()
        self.policy, self.rank, self.spec = policy, rank, policy.spec
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, batch: Any) -> Any:
        found = self.policy(batch)
        return {"loss": found["loss"] + self.experts[self.rank](torch.ones(4)).sum()}


def routed(folder: Path, rank: int) -> str:
    policy, trainer, train, val = setup(*STEADY)
    checkpoints = Checkpoints(folder / "checkpoints")
    found = Loop(
        trainer, Routed(policy, rank), train, val, checkpoints, 0, CPU, lambda step, row: None, lambda *_: False
    )
    try:
        found.run()
    except ValueError as error:
        return str(error)
    return ""


TROUBLES = {
    "bad_batch": bad_batch,
    "bad_weight": bad_weight,
    "asked_to_end": asked_to_end,
    "asked_in_a_validation": asked_in_a_validation,
    "routed": routed,
}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, backbones: Path) -> Path:
    """The folder of both ranks' work."""
    return made_once(tmp_path_factory, "shard", lambda folder: work(folder, backbones))


def work(folder: Path, backbones: Path) -> None:
    loop(folder / "up", [*CASES["plain"], SHORT])[0].run()  # which they take up
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    places = [ROOT, ROOT / "tests", ROOT / "tests" / "trainer"]
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, places)), "PROVLA_DATA": str(folder / "data")}
    done = subprocess.run(
        [*words, folder, backbones], env=environment, timeout=300, text=True, stdout=subprocess.PIPE, stderr=-2
    )
    assert done.returncode == 0, done.stdout


def both(folder: Path, name: str) -> list[Any]:
    return [json.loads((folder / f"said_{rank}.json").read_text())[name] for rank in (0, 1)]


def check_near(found: list[dict[str, float]], expected: list[dict[str, float]], rel: float) -> None:
    assert [list(row) for row in found] == [list(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=rel, abs=1e-8), row["step"]


def stored(folder: Path) -> dict[str, Tensor]:
    (last,) = [max((folder / "checkpoints").glob("step_*"))]
    files = sorted(last.glob("*.safetensors"))
    assert [file.stem for file in files] == ["average", "optimizer", "weights"]
    return {f"{file.stem}/{name}": t for file in files for name, t in load_tensors(file).items()}


@pytest.mark.parametrize("case", CASES)
def test_shards_train_what_one_process_does_and_leave_its_files(
    ranked: Path, case: str, tmp_path: Path, backbones: Path
) -> None:
    one, policy = loop(tmp_path, words_of(case, backbones))
    check_near(json.loads((ranked / case / "rows.json").read_text()), rows(one.run()), NEAR[case])
    mine, theirs = stored(tmp_path), stored(ranked / case)
    assert list(theirs) == list(mine)
    for found, expected in ((theirs, mine), (load_tensors(ranked / case / "policy.safetensors"), policy.state_dict())):
        for name, tensor in expected.items():
            assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
            if NEAR[case] <= 1e-5:  # AdamW makes steps of one size of gradients that are all but zero
                torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)
    for held, other, whole in zip(*both(ranked, case), sizes(one), strict=True):
        assert held + other == pytest.approx(whole, rel=0.01)
        assert max(held, other) <= 0.53 * whole  # of what has an odd number of rows the first has one more


def test_a_run_goes_on_from_one_process_to_two_and_back(ranked: Path, tmp_path: Path) -> None:
    words = [*CASES["plain"], "trainer.max_steps=6"]
    expected = rows(loop(tmp_path / "whole", words)[0].run())
    check_near(both(ranked, "up")[0], expected[: len(both(ranked, "up")[0])], 1e-5)
    shutil.copytree(ranked / "plain", tmp_path / "down", ignore=shutil.ignore_patterns("*.pt"))
    check_near(rows(loop(tmp_path / "down", words)[0].run()), expected, 1e-5)


def test_what_is_not_finite_is_found_on_every_rank(ranked: Path) -> None:
    assert both(ranked, "bad_batch") == [json.dumps([[2], 2])] * 2
    for said in both(ranked, "bad_weight"):
        assert said.startswith("step 1: the weight head.")


def test_a_signal_leaves_a_whole_checkpoint(ranked: Path, tmp_path: Path) -> None:
    """Whichever rank it comes to, and whatever that does."""
    assert both(ranked, "asked_to_end") == ["ended by SIGTERM"] * 2
    assert both(ranked, "asked_in_a_validation") == ["Interrupted", "SystemExit"]
    expected = rows(loop(tmp_path / "whole", CASES["plain"])[0].run())
    for name, step in (("asked_to_end", 1), ("asked_in_a_validation", 2)):
        assert max((ranked / name / "checkpoints").glob("step_*")).name == f"step_{step:07d}"
        shutil.copytree(ranked / name, tmp_path / name)
        check_near(rows(loop(tmp_path / name, CASES["plain"])[0].run()), expected, 1e-5)


def test_gradients_that_only_one_rank_has_are_said(ranked: Path) -> None:
    for said in both(ranked, "routed"):
        assert "the weights that got a gradient (trainer.shard=true) differ between the ranks" in said
        assert "trainer.shard=false can do that" in said


def test_a_sharded_run_is_judged_and_leaves_a_whole_policy(tmp_path: Path, command: Any) -> None:
    words = [*FAKE, *STEADY, "trainer.max_steps=2", "logger=csv"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "provla.train"]
    folder, alone = tmp_path / "two", tmp_path / "one"
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *words, f"hydra.run.dir={folder}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    code, out, err = command("train", *words, f"hydra.run.dir={alone}")
    assert code == 0, err
    assert "trainer.shard=true: one process holds everything" in out.replace("\n", " ")
    results = [json.loads((place / "result.json").read_text()) for place in (folder, alone)]
    assert results[0]["config_hash"] == results[1]["config_hash"]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-4)
    files = [{str(path.relative_to(place)) for path in place.rglob("*")} for place in (folder, alone)]
    assert files[0] == files[1]
    policies = [load_policy(place / "policy", CPU)[0].state_dict() for place in (folder, alone)]
    for name, tensor in policies[1].items():
        torch.testing.assert_close(policies[0][name], tensor, rtol=1e-3, atol=2e-4)


def test_what_shards_cannot_do_is_refused(backbones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word, message in (
        ("trainer.graph=on", "trainer.shard=true with trainer.graph=on: what .* set trainer.graph=auto, or"),
        ("trainer.precision=fp16", "with trainer.precision=fp16: .* set trainer.precision=bf16 or none, or"),
    ):
        with pytest.raises(ValueError, match=message):
            build(compose(*FAKE, "trainer.shard=true", word)["trainer"], "trainer")
    monkeypatch.setattr("provla.trainer.options.launched", lambda: type("Two", (), {"size": 2}))
    half = ["vision=siglip_tiny", "vision.dtype=bfloat16", "adapter=lora"]
    for words, message in (
        (["policy.compile=default"], "policy.compile=default: .* set policy.compile=false or"),
        ([*BASES, "quant=8bit"], r"\.weight is quantised \(int8\), .*; set quant=none or trainer.shard=false"),
        ([*BASES, "quant=4bit"], r"\.weight is quantised \(uint8\)"),
        (half, "is bfloat16 and .*lora_A.* is float32, .* set the backbone's dtype=float32"),
    ):
        policy, trainer, _, _ = setup("trainer.shard=true", *(word.format(b=backbones) for word in words))
        with pytest.raises(ValueError, match=message):
            trainer.check_policy(policy)
    policy, trainer, _, _ = setup("trainer.shard=true", "vision=siglip_tiny", "adapter=full")
    stack: Any = blocks(policy.vision.model)
    stack[0].mlp.fc1.weight = stack[1].mlp.fc1.weight
    with pytest.raises(ValueError, match="are one weight, which shards would tear apart"):
        trainer.check_policy(policy)


def test_shards_make_no_other_run() -> None:
    one, other = compose(), compose("trainer.shard=true")
    assert identity(one) == identity(other)
    assert training_identity(one) == training_identity(other)


if __name__ == "__main__":
    rank(Path(sys.argv[1]), Path(sys.argv[2]))
