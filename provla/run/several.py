"""Several policies judged in one process: two at a time, in turns, in the worlds of one suite.

While the worlds of one policy step and draw in their processes, the other computes its actions. Each sees the batches
that it would see alone, so that its outcomes are the same to the last bit.
"""

from __future__ import annotations

import json
import os
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from provla.core.build import build
from provla.core.errors import NoResult
from provla.core.files import csv_text, in_words, write_text
from provla.core.machine import find_device
from provla.core.progress import console, progress_bars
from provla.core.result import Result
from provla.core.types import Spec
from provla.env.perturb import WORDS
from provla.env.rollout import Player, check_fit
from provla.env.suite import check_suite, plays
from provla.env.worlds import NoWorlds, Worlds, rehearse
from provla.policy.folder import find_policy, read_spec
from provla.run.evaluate import (
    Changes,
    as_asked,
    as_trained,
    evaluate,
    evaluate_steps,
    open_case,
    read_config,
    with_steps,
)
from provla.run.setting import execution_of
from provla.run.survival import factors, survive, with_factor

AT_ONCE = 2  # policies that play in turns: one computes, the worlds of the other work
FILE = "runs.csv"


@dataclass(frozen=True, eq=False)
class Asked:
    """A judgement that is asked for. changes: see `evaluate`. folder: where it goes. name: for people. optional: it may
    be that there is none.
    """

    checkpoint: Path
    changes: Changes
    folder: Path
    name: str
    optional: bool = False


@dataclass(frozen=True, eq=False)
class _Ready:
    """A judgement whose configuration was read. suite: its worlds, with nothing made."""

    asked: Asked
    config: Mapping[str, Any]
    spec: Spec
    suite: Any

    @property
    def kind(self) -> str:
        """What judgements must share to share worlds, and the state of the process."""
        spec, config = self.spec, self.config
        looks = spec.cameras, spec.image_size, spec.state_size, spec.action_size, spec.n_obs_steps, spec.n_past_actions
        computes = config.get("threads"), config["trainer"].get("deterministic")
        return json.dumps([config["env"], *looks, *computes], sort_keys=True)


class Judged:
    """What came of judgements, by their folders: a result, or the error that each alone would have ended with."""

    def __init__(self, device: str, bases: Mapping[str, str] | None, trust: Sequence[str]) -> None:
        self.device_name, self.bases, self.trust = device, bases, trust
        self.device: torch.device = find_device(device)
        self.found: dict[Path, Result | Exception] = {}
        self._told: set[tuple[Path, str]] = set()

    def __call__(self, checkpoint: Path, device: str, changes: Changes, folder: Path, *rest: Any, **how: Any) -> Result:
        """As `evaluate`, of what `play` has judged already."""
        found = self.found[folder]
        if isinstance(found, Exception):
            raise found
        return found

    def play(self, asked: Iterable[Asked]) -> None:
        """Judges all; each result is written as soon as it is there. An error is said, and costs its own alone."""
        groups: dict[str, list[_Ready]] = {}
        for one in asked:
            try:
                config = read_config(one.checkpoint, one.changes, self.trust)
                spec = as_asked(read_spec(find_policy(one.checkpoint)), config)
                ready = _Ready(one, config, spec, build(config["env"], "env"))
                groups.setdefault(ready.kind, []).append(ready)
            except Exception as error:
                self.failed(one, error)
        for group in groups.values():
            self._play(group)

    def _play(self, group: Sequence[_Ready]) -> None:
        """Those of one kind."""
        suite, spec = group[0].suite, group[0].spec
        try:
            if not plays(suite):
                for one in group:
                    self._alone(one.asked)
                return
            check_suite(suite, asked=False)
            check_fit(suite, spec)
            with as_trained(group[0].config, self.device):
                rehearse(suite, spec, check=True)
                self._in_turns(suite, spec, deque(group))
        except Exception as error:
            for one in group:
                self.failed(one.asked, error)

    def _alone(self, one: Asked) -> None:
        """On held-out demonstrations."""
        try:
            asked = one.checkpoint, self.device_name, one.changes, one.folder, self.bases, self.trust
            self.found[one.folder] = evaluate(*asked, quiet=True)
        except Exception as error:
            self.failed(one, error)

    def _in_turns(self, suite: Any, spec: Spec, waiting: deque[_Ready]) -> None:
        while waiting:
            playing: dict[int, tuple[Asked, Iterator[Result | None]]] = {}
            try:
                with Worlds(suite, spec, seats=min(AT_ONCE, len(waiting))) as worlds, progress_bars() as bars:
                    while waiting or playing:
                        for number, seat in enumerate(worlds.seats):
                            if number not in playing and waiting:
                                one = waiting.popleft()
                                playing[number] = one.asked, self._judge(one, suite, worlds, seat, bars)
                            if number in playing and not self._turn(*playing[number]):
                                worlds.leave(seat)
                                del playing[number]
            except NoWorlds as error:  # the next get others
                for lost in [one for one, _ in playing.values()] or [waiting.popleft().asked]:
                    self.failed(lost, error)

    def _turn(self, one: Asked, judging: Iterator[Result | None]) -> bool:
        """Whether there is another."""
        try:
            for result in judging:
                if result is None:
                    return True
                self.found[one.folder] = result
        except NoWorlds:
            raise
        except Exception as error:
            self.failed(one, error)
        return False

    def _judge(self, one: _Ready, suite: Any, worlds: Worlds, seat: range, bars: Progress) -> Iterator[Result | None]:
        """Of one policy, as `evaluate` does it; None whenever another can have its turn. It is timed while no world is
        at work.
        """
        asked = one.asked
        case = open_case(one.config, asked.checkpoint, self.device, asked.changes, asked.folder, self.bases, self.trust)
        check_fit(suite, case.spec)
        how = execution_of(case.config)
        how.check(case.spec)
        worlds.wait()
        how = case.judged.settle(case.policy, case.spec, self.device, how)
        player = Player(case.policy, suite, worlds, seat, case.spec, case.config["seed"], self.device, how)
        bar = bars.add_task(escape(asked.name), total=len(suite.episodes), note="")
        try:
            for _ in player.play():
                bars.update(bar, completed=len(player.finished), note=player.note)
                yield None
        finally:
            bars.remove_task(bar)
        case.judged.take(player.outcomes(asked.name), suite, case.spec, asked.folder)
        worlds.wait()
        result = case.conclude()
        console.print(f"{escape(asked.name)}: {player.note} of {len(suite.episodes)}")
        yield result

    def failed(self, one: Asked, error: Exception) -> None:
        if one.folder in self.found:
            return
        self.found[one.folder] = error
        if one.optional or (told := (one.checkpoint, _said(error))) in self._told:
            return
        self._told.add(told)
        console.print(f"{escape(one.name)} failed: {escape(told[1])}", soft_wrap=True)
        if not isinstance(error, ValueError | OSError):
            console.print(escape("".join(traceback.format_exception(error))), soft_wrap=True)


def evaluate_several(
    checkpoints: Sequence[Path],
    device: str,
    changes: Changes,
    folder: Path,
    bases: Mapping[str, str] | None,
    trust: Sequence[str],
    steps: Sequence[int] = (),
    perturb: str | Sequence[str] | Mapping[str, int] | None = None,
) -> None:
    """`evaluate` for several runs, each into a folder of its own in `folder`; steps: `evaluate_steps`; perturb:
    `survive`. A table over all, and runs.csv. `NoResult` at the end where some have none.
    """
    judged, places = Judged(device, bases, trust), name_runs(checkpoints)
    asked, levels = list[Asked](), dict[str, dict[str, int]]()
    for name, run in places.items():
        place = folder / name
        try:
            levels[name] = factors(run, changes, trust, perturb) if perturb else {}
        except Exception as error:
            judged.failed(Asked(run, changes, place, name), error)
            continue
        if steps:
            asked += [Asked(run, *with_steps(changes, place, count), f"{name}, {count} steps") for count in steps]
            continue
        asked.append(Asked(run, changes, place, name))
        for factor, level in levels[name].items():
            under = with_factor(changes, place, factor, level)
            asked.append(Asked(run, *under, f"{name}, {factor} {level}", optional=factor in WORDS))
    judged.play(asked)
    rows = []
    for name, run in places.items():
        place, wrong = folder / name, ""
        alike = run, device, changes, place, bases, trust
        try:
            result = evaluate_steps(*alike, steps=steps, judge=judged) if steps else judged(*alike)
            if levels.get(name):
                result.perturb = survive(*alike, levels=levels[name], judge=judged)
                result.write(place)
        except Exception as error:
            result, wrong = Result("failed"), _said(error)
        rows.append(_row(name, run, result, wrong))
    write_text(folder / FILE, csv_text(rows, list(rows[0])))
    _show(rows)
    console.print(f"written to {folder}")
    if lost := [row["run"] for row in rows if row["error"]]:
        raise NoResult(
            f"{len(lost)} of {len(rows)} runs have no result: {', '.join(lost)}; why stands in {folder / FILE}"
        )


def name_runs(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """What tells their folders apart → the folder. `ValueError` for one that is named twice."""
    full = [one.resolve() for one in checkpoints]
    if twice := [str(one) for one, place in zip(checkpoints, full, strict=True) if full.count(place) > 1]:
        raise ValueError(f"checkpoint names {twice[0]!r} twice; give each run once")
    shared = Path(os.path.commonpath(full))
    if shared in full:
        shared = shared.parent
    return {str(place.relative_to(shared)): one for one, place in zip(checkpoints, full, strict=True)}


def _said(error: Exception) -> str:
    told = str(in_words(error)) if isinstance(error, ValueError | OSError) else ""
    return told or f"{type(error).__name__}: {error}"


def _row(name: str, run: Path, result: Result, error: str) -> dict[str, Any]:
    cell, objective = result.success.get("success_rate", {}), result.objective
    return {
        "run": name,
        "checkpoint": str(run),
        "objective": objective.name if objective else "",
        "value": objective.value if objective else "",
        **{key: cell.get(key, "") for key in ("low", "high", "episodes", "successes")},
        "faults": "" if result.faults is None else result.faults,
        "ms_per_chunk": "" if result.ms_per_chunk is None else result.ms_per_chunk,
        "error": error,
    }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=f"{len(rows)} runs", title_justify="left")
    for column in ("run", "objective", "value", "95 % Wilson interval", "episodes", "ms per chunk"):
        table.add_column(column, justify="left" if column in ("run", "objective") else "right", overflow="fold")
    for row in rows:
        if row["error"]:
            table.add_row(escape(row["run"]), "failed")
            continue
        rate = row["low"] != ""
        table.add_row(
            escape(row["run"]),
            row["objective"],
            "" if row["value"] is None else f"{row['value']:.0%}" if rate else f"{row['value']:.4f}",
            f"{row['low']:.0%} – {row['high']:.0%}" if rate else "",
            str(row["episodes"]),
            "" if row["ms_per_chunk"] == "" else f"{row['ms_per_chunk']:.0f}",
        )
    console.print(table)
