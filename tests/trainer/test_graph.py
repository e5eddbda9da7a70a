"""A step as a graph: its logic, with a stand-in for CUDA that runs again what it would have replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_feed import looped
from test_trainer import CPU, fit

import provla.trainer.graph as graphs
from provla.core.errors import NotFinite
from provla.trainer.graph import WARM, Graph, Watch, reason
from provla.trainer.loop import Loop

ON = ["trainer.graph=on", "trainer.max_steps=8", "trainer.val_every=4"]


class Again:
    """Captures nothing and computes nothing while it captures, as CUDA."""

    def __init__(self, device: torch.device, breaks: str = "") -> None:
        self.breaks, self.captured, self.replayed = breaks, 0, 0

    def aside(self, run: Callable[[], None]) -> None:
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        if self.breaks:
            raise RuntimeError(self.breaks)

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> list[Again]:
    """Every graph is one of the stand-in's, and the CPU is no reason against it."""
    made: list[Again] = []

    def cuda(device: torch.device) -> Again:
        made.append(Again(device))
        return made[-1]

    monkeypatch.setattr(graphs, "Cuda", cuda)
    monkeypatch.setattr(graphs, "reason", lambda loop: "")
    return made


def deferring(loop: Loop) -> None:
    loop.asks = False


def test_a_graph_trains_as_the_steps_it_stands_for(pretending: list[Again], tmp_path: Path) -> None:
    def telling(loop: Loop) -> None:  # all sentences at every step, as a graph is told them
        loop.feed.always(loop.policy.spec.instructions)

    # Numbers that float32 holds, because a graph's are such.
    exact = ["trainer.lr=0.0009765625", "trainer.lr_schedule=constant", "trainer.warmup_steps=0"]
    exact += ["trainer.max_steps=8", "trainer.val_every=4", "trainer.ema_decay=0.0625"]
    plain, other = looped(tmp_path / "plain", telling, *exact)
    expected, weights = plain.run(), other.state_dict()
    loop, policy = looped(tmp_path / "graph", deferring, *exact, "trainer.graph=on")
    found = loop.run()
    (cuda,) = pretending
    assert (cuda.captured, cuda.replayed) == (1, 8 - WARM)
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    assert all(torch.equal(value, plain.average[name]) for name, value in loop.average.items())  # after the last swap
    times = "train/steps_per_second"
    rows = [[{k: v for k, v in row.items() if k != times} for row in one.history] for one in (found, expected)]
    assert rows[0] == rows[1]


def test_a_graph_reads_the_same_memory_at_every_step(pretending: list[Again], tmp_path: Path) -> None:
    """What a step reads lies where it lay, and its gradients, average and gauge where they were written."""
    loop, _ = looped(tmp_path, deferring, *ON)
    seen: list[list[int]] = []
    update = loop.update

    def watched(weight: Any) -> None:
        update(weight)
        assert loop.graph is not None
        batch = loop.graph._batch
        assert batch is not None
        tensors = [batch.observation.images, batch.actions, batch.time, batch.observation.which, weight]
        tensors += [loop.gauge.bad, loop.gauge.sums, *loop.average.values(), *loop.named.values()]
        tensors += [slot for slots in loop.optimizer.state.values() for slot in slots.values()]
        seen.append([one.data_ptr() for one in tensors])

    loop.update = watched  # type: ignore[method-assign]
    loop.run()
    assert len(seen) == 8
    assert all(one == seen[0] for one in seen)  # over two validations, which exchange weights and average


def test_a_bad_step_of_a_graph_is_found_where_it_is_read(pretending: list[Again], tmp_path: Path) -> None:
    loop, _ = looped(tmp_path, deferring, *ON, "trainer.log_every=8", "trainer.val_every=8")
    rows = loop.train.rows_at(0, 5, 8)
    loop.train.data.state[rows[3]] = 3e38
    before: list[dict[str, Any]] = []
    step = loop._step

    def kept(lr: float) -> None:
        before.append({name: p.detach().clone() for name, p in loop.named.items()})
        step(lr)

    loop._step = kept  # type: ignore[method-assign]
    with pytest.raises(
        NotFinite, match=r"step 6: the loss \((nan|inf)\) is not finite; its batch: .*step_0000006.json"
    ):
        loop.run()
    assert all(torch.equal(before[7][name], before[5][name]) for name in loop.named)  # nothing moved since
    assert any(not torch.equal(before[5][name], before[4][name]) for name in loop.named)


def test_a_step_that_asks_the_host_is_not_captured(
    pretending: list[Again], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, policy = looped(tmp_path, deferring, *ON)
    inner = policy.head.forward

    def forward(*given: Any) -> Any:
        out = inner(*given)
        return out if float(out.detach().sum()) < math.inf else out * 0

    policy.head.forward = forward
    found = loop.run()
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("trainer.graph=on: the steps are no graph: aten._local_scalar_dense") == 1
    assert (pretending[0].captured, pretending[0].replayed) == (0, 0)
    assert found.step == 8
    assert all(group["capturable"] is False and isinstance(group["lr"], float) for group in loop.optimizer.param_groups)


def test_what_cannot_be_captured_goes_on_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "Cuda", lambda device: Again(device, "operation not permitted\nwhen capturing"))
    monkeypatch.setattr(graphs, "reason", lambda loop: "")
    expected, _ = fit(tmp_path / "plain", "trainer.max_steps=8", "trainer.val_every=4")
    loop, _ = looped(tmp_path / "graph", deferring, *ON)
    found = loop.run()
    assert loop.graph is None
    losses = [[row["train/loss"] for row in one.history if "train/loss" in row] for one in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) == 8


def test_what_asks_the_host_only_while_it_is_captured_is_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Runs(Again):
        def capture(self, run: Callable[[], None]) -> Callable[[], None]:
            float(torch.ones(()))
            return super().capture(run)

    monkeypatch.setattr(graphs, "Cuda", Runs)
    monkeypatch.setattr(graphs, "reason", lambda loop: "")
    loop, _ = looped(tmp_path, deferring, *ON)
    assert loop.run().step == 8
    assert "are no graph: aten._local_scalar_dense" in capsys.readouterr().out.replace("\n", " ")


def test_why_steps_are_no_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop, _ = looped(tmp_path, lambda loop: None, *ON)
    assert "captured on a GPU, and this runs on cpu" in reason(loop)
    loop.run()
    assert "trainer.graph=on: the steps are no graph: they are captured on a GPU" in capsys.readouterr().out
    loop.device = torch.device("cuda:0")
    assert reason(loop) == ""
    for change, said in (
        ({"grad_accumulation": 2}, "trainer.grad_accumulation=2"),
        ({"on_nan": "skip"}, "on_nan=skip looks at every step"),
        ({"profile": True}, "trainer.profile=true"),
    ):
        whole = vars(loop.o).copy()
        loop.o.__dict__.update(change)
        assert said in reason(loop)
        loop.o.__dict__.update(whole)
    loop.policy.compiled = "default"
    assert "policy.compile" in reason(loop)
    loop.policy.compiled = ""
    loop.policy = torch.nn.Linear(1, 1)
    assert "Linear may read the host" in reason(loop)


def test_what_a_graph_reads_and_did_not_make_is_held() -> None:
    kept, other = torch.ones(3), torch.ones(3)
    with Watch(CPU) as watch:
        made = kept * 2
        (made + kept.view(3, 1)).sum()
    assert [one.data_ptr() for one in watch.found.values()] == [kept.data_ptr()]
    assert other.data_ptr() not in [one.data_ptr() for one in watch.found.values()]


def test_the_optimisers_rate_is_a_tensor_only_while_there_is_a_graph() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    graph = Graph(lambda batch, step, by: None, optimizer.param_groups, CPU, Again(CPU))  # type: ignore[arg-type]
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    graph.give_up()
    assert optimizer.param_groups[0]["capturable"] is False
