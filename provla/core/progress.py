"""One look for every long piece of work: what, how far, how fast, how long still."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from provla.core.secrets import hide


class _Console(Console):
    """Shows no secrets."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(hide(one) if isinstance(one, str) else one for one in objects), **options)


# Where nobody's terminal says how wide it is (a file, CI), tables get room.
console = _Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class _Speed(ProgressColumn):
    """Finished pieces per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


def progress_bars() -> Progress:
    """A `rich` progress display; `fields[note]` of a task is free text such as the loss."""
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
        speed_estimate_period=20.0,
    )
