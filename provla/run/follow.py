"""The other ranks' part of a run: they train beside rank 0, and write, print and judge nothing."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from provla.backbone.tower import towers
from provla.core.build import build
from provla.core.checks import value_in
from provla.core.errors import Interrupted, NotFinite
from provla.core.files import fingerprint
from provla.core.machine import find_device, reproducible
from provla.core.progress import console
from provla.core.ranks import Ranks, join, joined, part
from provla.core.signals import SIGNALS, listening
from provla.dataset.sampler import Sampler
from provla.jobs.sweep import crowded
from provla.run.features import remember
from provla.run.setting import Parts, Setting, load_data, make_parts
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.fit import Fit, seed_everything


def follow() -> None:
    """What every rank but the first does. It ends well where rank 0 ends for a reason that both know, and says it: a
    launcher kills all as soon as one ends badly, and rank 0 may be writing what came of the run.

    Errors: `RankLost` where rank 0 has gone without a word; whatever is wrong on this rank alone.
    """
    for signum in SIGNALS:  # while it waits it has nothing to lose, and Python's handlers would wait too
        signal.signal(signum, signal.SIG_DFL)
    console.quiet = True
    try:
        ranks = join()
        with ranks.together():
            told = ranks.lead(dict[str, Any])
        if told:  # else rank 0 has found that there is nothing to train
            with listening():
                _train(told, ranks)
    except (Interrupted, NotFinite, SystemExit):
        pass
    finally:
        part()


def start_others(config: Mapping[str, Any], setting: Setting, folder: Path) -> None:
    """Rank 0 has looked at everything that can be wrong; now the others load."""
    if crowd := crowded(config["threads"], joined().beside, "ranks"):
        console.print(crowd)
    joined().lead(lambda: {"config": config, "folder": str(folder), "data": _outline(setting)})


def dismiss_others() -> None:
    """There is nothing to train."""
    join().lead(dict[str, Any])
    part()


def make_policy(config: Mapping[str, Any], setting: Setting, device: torch.device) -> Any:
    """The policy of a configuration, normalised to the data."""
    seed_everything(config["seed"])
    policy = build(config["policy"], "policy", torch.nn.Module, spec=setting.spec, device=device)
    if joined().size > 1:  # DDP sends all weights around
        for _, tower in towers(policy):
            tower.stay()
    sources = setting.spec.sources
    if sources and "source" not in signature(policy.fit_normalization).parameters:
        raise ValueError(
            f"dataset.normalize=per_source: fit_normalization of {type(policy).__name__} takes no `source`, so it "
            "knows one normalisation; use dataset.normalize=together"
        )
    for name, (_, learn) in setting.learn.sources().items() if sources else ():
        _normalize(policy, setting, learn, source=sources.index(name))
    if not sources:
        _normalize(policy, setting, setting.learn)
    return policy


def _normalize(policy: Any, setting: Setting, learn: Sampler, **whose: int) -> None:
    """Fits a policy's normalisation to a sampler's rows."""
    data, rows = setting.data, learn.rows
    given: list[Any] = [torch.from_numpy(values[rows]) for values in (data.state, data.actions)]
    if getattr(policy, "relative", None) is not None:  # a policy of one's own may know of no chunks
        steps = learn.chunk_steps()
        given.append((torch.from_numpy(data.state[a]), torch.from_numpy(data.actions[b])) for a, b in steps)
    policy.fit_normalization(*given, **whose)


def _train(told: Mapping[str, Any], ranks: Ranks) -> Fit:
    config, folder = told["config"], Path(told["folder"])
    device = find_device(config["device"])
    with reproducible(config["threads"], device, value_in(config["trainer"], "deterministic") is True):
        parts: Parts = make_parts(config)
        setting = load_data(config, parts)
        if (mine := _outline(setting)) != told["data"]:
            raise ValueError(f"the data of rank {ranks.rank} are not those of rank 0 ({mine}, there {told['data']})")
        policy = make_policy(config, setting, device)
        remember(config, policy, setting, device)
        silent = Checkpoints(folder / "checkpoints")  # rank 0 alone reads and writes them
        return parts.trainer.fit(
            policy, setting.learn, setting.held, silent, config["seed"], device, lambda step, row: None
        )


def _outline(setting: Setting) -> str:
    """What must be the same data on every rank."""
    data = setting.data
    sums = [float(values.sum(dtype="float64")) for values in (data.state, data.actions)]
    return str(fingerprint([vars(setting.spec), len(setting.learn), len(setting.held), data.starts.tolist(), sums]))
