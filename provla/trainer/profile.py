"""Where the time of a training goes: stages that are timed, and a trace of a few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from provla.core.errors import NoSpace
from provla.core.files import atomic, write_json

FOLDER, STAGES, TRACE = "profile", "stages.json", "trace.json"  # of a run
FIRST, TRACED = 10, 3  # steps before the trace, and in it
# A policy's part → the stage that its forward pass is; other parts are stages of their own names.
PARTS = {"vision": "encode: vision", "text": "encode: text", "fusion": "fuse", "head": "head"}
FORWARD = "forward"  # what encloses them
NOTHING = nullcontext()


@dataclass
class Stage:
    """inside: how much of the seconds stands in other stages."""

    seconds: float = 0.0
    calls: int = 0
    inside: float = 0.0


class Off:
    """Nobody asked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def stage(self, name: str, device: bool = False) -> AbstractContextManager[Any]:
        return NOTHING

    def stepped(self, left: int) -> None:
        pass

    def read(self) -> None:
        pass


@dataclass
class Profile(Off):
    """Times stages, and leaves `profile/` in a run's folder: stages.json, and trace.json of `TRACED` steps, for
    chrome://tracing or ui.perfetto.dev.

    What a GPU does is timed by events, which it notes in passing, and which are read when the training reads the GPU
    anyway (`read`); what the host does, and all that a CPU does, by its clock. Steps that are traced count nowhere,
    for a trace takes time. A compiled policy's parts are not told apart: looking into them would change what is
    compiled.
    """

    folder: Path
    device: torch.device
    policy: nn.Module
    stages: dict[str, Stage] = field(default_factory=dict)
    steps: int = 0  # that were timed

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self._traced, self._since = 0.0, 0.0
        self._tracer: Any = None
        self._left_to_trace = -1  # not begun
        self._events: list[tuple[str, Any, Any, str]] = []
        self._open: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        if not getattr(self.policy, "compiled", False):
            for name, part in self.policy.named_children():
                self._watch(PARTS.get(name, name), part)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        with nullcontext() if kind is None else suppress(RuntimeError, NoSpace):  # what ended the training says more
            self._write()

    def _write(self) -> None:
        if self._tracer is not None:
            self._end_trace()
        self.read()
        wall = time.perf_counter() - self._begun
        write_json(
            self.folder / FOLDER / STAGES,
            {
                "device": str(self.device),
                "steps": self.steps,
                "wall": wall,
                "trace": self._traced,
                "stages": {name: vars(stage) for name, stage in self.stages.items()},
            },
        )

    @contextmanager
    def stage(self, name: str, device: bool = False) -> Iterator[None]:
        """device: what it does is the device's, else the host's."""
        begun = self._begin(name, device)
        try:
            yield
        finally:
            self._end(name, begun)

    def stepped(self, left: int) -> None:
        """A step is over; so many are left. Begins and ends the trace."""
        if self._tracer is None:
            self.steps += 1
            if self._left_to_trace < 0 and (self.steps == FIRST or left <= TRACED) and left:
                self._begin_trace(min(left, TRACED))
            return
        self._left_to_trace -= 1
        if not self._left_to_trace:
            self._end_trace()

    def read(self) -> None:
        """Takes the events' times; called when the device has done what it was told."""
        if self._events:
            torch.cuda.synchronize(self.device)  # it has, but for what came after
        for name, begin, end, outer in self._events:
            self._count(name, begin.elapsed_time(end) / 1000, outer)
        self._events = []

    def _watch(self, name: str, part: nn.Module) -> None:
        begun: list[Any] = []

        def before(*_: Any) -> None:
            if FORWARD in self._open:  # of a training step
                begun.append(self._begin(name, True))

        def after(*_: Any) -> None:
            if begun:
                self._end(name, begun.pop())

        self._hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after, always_call=True)]

    def _begin(self, name: str, device: bool) -> tuple[Any, Any]:
        """What began it, and its mark in the trace."""
        self._open.append(name)
        mark = None
        if self._tracer is not None:
            mark = torch.profiler.record_function(name)
            mark.__enter__()  # type: ignore[no-untyped-call]
        if device and self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            return event, mark
        return time.perf_counter(), mark

    def _end(self, name: str, begun: tuple[Any, Any]) -> None:
        begin, mark = begun
        self._open.pop()
        if mark is not None:
            mark.__exit__(None, None, None)
        if self._tracer is not None:
            return
        outer = self._open[-1] if self._open else ""
        if isinstance(begin, float):
            self._count(name, time.perf_counter() - begin, outer)
        else:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
            self._events.append((name, begin, event, outer))

    def _count(self, name: str, seconds: float, outer: str) -> None:
        stage = self.stages.setdefault(name, Stage())
        stage.seconds, stage.calls = stage.seconds + seconds, stage.calls + 1
        if outer:
            self.stages.setdefault(outer, Stage()).inside += seconds

    def _begin_trace(self, steps: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.read()
        self._since, self._left_to_trace = time.perf_counter(), steps
        cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        self._tracer = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._tracer.start()

    def _end_trace(self) -> None:
        self._tracer.stop()
        with atomic(self.folder / FOLDER / TRACE) as partial:
            self._tracer.export_chrome_trace(str(partial))
        self._tracer, self._left_to_trace = None, 0
        self._traced = time.perf_counter() - self._since
