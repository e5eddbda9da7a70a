"""A run's policy judged again, from its folder alone: as it was, with other episodes, or with several numbers of
sampler steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from provla.core.build import build
from provla.core.checks import check_values
from provla.core.files import csv_text, write_text
from provla.core.identity import PLAIN, Root, identity
from provla.core.machine import environment, find_device, reproducible
from provla.core.precision import describe_precision
from provla.core.progress import console
from provla.core.result import Objective, Result
from provla.core.trust import check_stored
from provla.core.types import Spec
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import sampler_of
from provla.env.rollout import check_fit
from provla.env.suite import check_suite, plays
from provla.env.worlds import rehearsing
from provla.policy.folder import find_policy, load_policy, read_spec
from provla.run.judging import Judgement
from provla.run.setting import execution_of
from provla.run.show import show
from provla.trainer.validation import validate

LOOK = 20.0  # seconds of judging after which a policy is timed for one, as after a training of so many

Changes = Mapping[str, Mapping[str, Any]]
Judge = Callable[..., Result]  # as `evaluate` is called


def check_data(data: Demonstrations, spec: Spec) -> None:
    """`ValueError` where a policy's sizes or cameras are not those of a data set."""
    if missing := [camera for camera in spec.cameras if camera not in data.frames]:
        raise ValueError(
            f"the policy looks through the camera {missing[0]!r}, which the data set {data.source} does not have; it "
            f"has: {', '.join(data.frames)}; choose the data set it was trained on"
        )
    for what, has, needs in (
        ("action size", spec.action_size, data.actions.shape[1]),
        ("state size", spec.state_size, data.state.shape[1]),
        ("cameras", list(spec.cameras), list(data.frames)),
        ("image size", spec.image_size, data.image_size),
    ):
        if has != needs:
            raise ValueError(
                f"the policy's {what} is {has}, that of the data set {data.source} is {needs}; choose the data set it "
                "was trained on"
            )


@dataclass
class Case:
    """A policy that is judged, as the run `config` of which it is would have been. folder: where what is found goes."""

    config: Mapping[str, Any]
    policy: Any
    spec: Spec
    device: torch.device
    folder: Path
    result: Result
    judged: Judgement = field(default_factory=Judgement)
    started: float = field(default_factory=time.monotonic)

    def conclude(self) -> Result:
        """What was found, into result.json. Chunks are timed: nothing else may compute meanwhile."""
        spent = max(time.monotonic() - self.started, LOOK)
        self.judged.conclude(self.result, self.config["objective"], self.policy, self.spec, self.device, spent)
        self.result.wall_seconds = time.monotonic() - self.started
        self.result.status, self.result.made = "completed", environment(self.device)
        self.result.write(self.folder)
        return self.result


def open_case(
    config: Mapping[str, Any],
    checkpoint: Path,
    device: torch.device,
    changes: Changes,
    folder: Path,
    bases: Mapping[str, str] | None,
    trust: Sequence[str],
    loaded: tuple[Any, Spec] | None = None,
) -> Case:
    """Loads the policy of a run whose configuration was read. Arguments and errors: see `evaluate`."""
    policy, spec = loaded or load_judged(checkpoint, device, changes, bases, trust)
    spec = policy.spec = as_asked(spec, config)
    result = Result(config_hash=identity(config), checkpoint=str(checkpoint), precision=describe_precision(policy))
    return Case(config, policy, spec, device, folder, result)


def as_asked(spec: Spec, config: Mapping[str, Any]) -> Spec:
    """A stored policy's, as it is to be judged."""
    return replace(spec.driving(config.get("source")), n_action_steps=config["n_action_steps"])


def as_trained(config: Mapping[str, Any], device: torch.device) -> AbstractContextManager[None]:
    """Inside, a policy computes as the run that trained it did."""
    threads = config.get("threads", torch.get_num_threads())  # older runs took what the process had
    return reproducible(threads, device, config["trainer"].get("deterministic", False))


def evaluate(
    checkpoint: Path,
    device_name: str,
    changes: Changes,
    folder: Path,
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    quiet: bool = False,
    loaded: tuple[Any, Spec] | None = None,
) -> Result:
    """Judges the policy of a run folder again, in closed loop, or on held-out demonstrations where the run had no
    simulation.

    changes: keys to change, of `env`, `execution`, `scheduler`, and `root`: n_action_steps, eval_episodes, source.
    bases, trust: see `load_policy`. Writes into `folder` and leaves the run's own folder alone. quiet: without the
    table. loaded: what `load_judged` gave for these arguments, where a policy is judged several times.
    """
    device = find_device(device_name)
    config = read_config(checkpoint, changes, trust)
    suite = build(config["env"], "env")
    with as_trained(config, device):
        with _rehearsed(suite, config, checkpoint):
            case = open_case(config, checkpoint, device, changes, folder, bases, trust, loaded)
        _judge(case, suite)
        result = case.conclude()
    if not quiet:
        show(result, folder)
    return result


def load_judged(
    checkpoint: Path, device: torch.device, changes: Changes, bases: Mapping[str, str] | None, trust: Sequence[str]
) -> tuple[Any, Spec]:
    """The policy that `evaluate` judges, and its sizes."""
    stored = find_policy(checkpoint)  # a run's own, or that which was named: policy/, or an export beside it
    scheduler = {f"scheduler.{key}": value for key, value in changes["scheduler"].items()}
    return load_policy(stored, device, scheduler, bases, trust)


def read_config(checkpoint: Path, changes: Changes, trust: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run whose policy is judged, with the changes; `ValueError` where it holds none, or one
    that may not be trusted.
    """
    file = find_policy(checkpoint).parent / "config.json"
    if not file.is_file():
        raise ValueError(f"checkpoint={str(checkpoint)!r} is not the folder of a run: it has no config.json")
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: its config.json is damaged ({error})") from error
    if config.get("type") == "provla":
        raise ValueError(f"checkpoint={str(checkpoint)!r} is an export for LeRobot; give the folder of the run itself")
    check_stored(config, file, trust)
    _change(config, changes)
    return config


def _rehearsed(suite: Any, config: Mapping[str, Any], checkpoint: Path) -> AbstractContextManager[None]:
    """A rehearsal of the worlds that a policy is judged in, beside its loading."""
    if not plays(suite):
        return nullcontext()
    spec = as_asked(read_spec(find_policy(checkpoint)), config)
    check_suite(suite, asked=False)
    try:
        check_fit(suite, spec)
    except ValueError:  # raised again before the episodes: the loading may know something deeper
        return nullcontext()
    execution_of(config).check(spec)
    return rehearsing(suite, spec, check=True)


def _judge(case: Case, suite: Any) -> None:
    config, policy, spec, device, judged = case.config, case.policy, case.spec, case.device, case.judged
    if plays(suite):
        judged.play(policy, suite, spec, config["seed"], device, case.folder, execution_of(config))
    else:
        source = build(config["dataset"], "dataset")
        data = source.load()
        check_data(data, spec)
        held = data.split(source.val_fraction, source.split_seed)[1]
        if not len(held):
            raise ValueError(
                "this run has nothing to be judged by: it was trained without a simulation (env=none) and without "
                "held-out episodes"
            )
        sizes = spec.cameras, spec.horizon, spec.n_obs_steps, spec.n_past_actions
        val, trainer = sampler_of(data)(data, held, *sizes), config["trainer"]
        judged.metrics = validate(policy, val, trainer["val_samples"], trainer["batch_size"], config["seed"], device)


def _change(config: dict[str, Any], changes: Changes) -> None:
    """Makes a stored configuration that of the run which would have been judged so from the start. `ValueError` for
    what nothing reads.
    """
    env, root = dict(changes["env"]), changes.get("root", {})
    for key, value in root.items():
        check_values(Root, {key: value}, "")
        if "episodes_per_task" not in config["env"]:
            raise ValueError(
                f"{key}={value}: only closed-loop episodes read it, and this run has no simulation "
                f"(env={config['env'].get('_target_')})"
            )
        config[key] = value
    if "eval_episodes" in root:
        env.setdefault("episodes_per_task", root["eval_episodes"])
    config["env"] = {**config["env"], **env}
    how = changes.get("execution") or {}
    config["execution"] = dict(how) if "_target_" in how else {**config.get("execution", PLAIN), **how}
    for node in (config, config["policy"]):
        if isinstance(node.get("scheduler"), Mapping):
            node["scheduler"] = {**node["scheduler"], **changes["scheduler"]}


def with_steps(changes: Changes, folder: Path, count: int) -> tuple[Changes, Path]:
    """What `evaluate` is asked for a number of sampler steps: changes, and where to."""
    return {**changes, "scheduler": {**changes["scheduler"], "num_inference_steps": count}}, folder / f"steps_{count}"


def evaluate_steps(
    checkpoint: Path,
    device_name: str,
    changes: Changes,
    folder: Path,
    bases: Mapping[str, str] | None,
    trust: Sequence[str],
    steps: Sequence[int],
    judge: Judge = evaluate,
) -> Result:
    """`evaluate` for several numbers of sampler steps: quality and time against steps, as steps.csv, a table and a
    picture. judge: does it, or has done it.
    """
    from provla.run.plots import plot_steps

    rows = []
    for count in steps:
        console.print(f"num_inference_steps={count}")
        found = judge(checkpoint, device_name, *with_steps(changes, folder, count), bases, trust)
        row = {"num_inference_steps": count, "ms_per_chunk": found.ms_per_chunk}
        cell = found.success.get("success_rate", {})
        rows.append(
            row
            | {key: cell[key] for key in ("rate", "low", "high") if cell}
            | {k: v for k, v in found.metrics.items() if "/" not in k}
        )
    write_text(folder / "steps.csv", csv_text(rows, list(rows[0])))
    quality = "success_rate" if "success_rate" in rows[0] else "trajectory_mse"
    plot_steps(rows, quality, folder / "plots" / "steps.png")
    table = Table(title="quality against sampler steps", title_justify="left")
    for column in ("steps", quality, "ms per chunk"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(f"{row['num_inference_steps']}", f"{row[quality]:.4f}", f"{row['ms_per_chunk']:.0f}")
    console.print(table)
    best = (max if quality == "success_rate" else min)(rows, key=lambda row: row[quality])
    result = Result(
        "completed",
        objective=Objective(quality, best[quality]),
        checkpoint=str(checkpoint),
        steps=rows,
        made=environment(find_device(device_name)),
    )
    result.write(folder)
    console.print(f"written to {folder}")
    return result
