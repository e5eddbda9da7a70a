"""What a run is made of, but for its policy: what is cheap and can be wrong is looked at before what is slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from provla.core.build import build, check_nodes
from provla.core.identity import PLAIN
from provla.core.progress import console
from provla.core.types import Spec, check_steps
from provla.core.world import Vector
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import Sampler, sampler_of
from provla.dataset.shares import learner_of
from provla.env.perturb import available, chosen
from provla.env.rollout import check_fit
from provla.env.suite import check_suite, plays
from provla.env.worlds import rehearse
from provla.execution import Execution
from provla.pruner import NoPruner
from provla.trainer.metrics import chunk_metrics, measured
from provla.trainer.options import Trainer


@dataclass(frozen=True)
class Parts:
    """What the groups of a configuration make, without the policy's."""

    trainer: Trainer
    suite: Any
    execution: Execution
    logger: Any
    pruner: NoPruner
    source: Any

    @property
    def simulated(self) -> bool:
        return plays(self.suite)


@dataclass(frozen=True)
class Setting:
    """Demonstrations, the sizes they give a policy, and the samplers of those it learns from and of those held out."""

    data: Demonstrations
    spec: Spec
    learn: Sampler
    held: Sampler

    def about(self) -> dict[str, Any]:
        """What a result says of its data set."""
        episodes = {"episodes": len(self.data.starts) - 1, "held_out": len(self.held.episodes)}
        return {"revision": self.data.revision, **episodes, "frames": len(self.data.actions)}


def make_parts(config: Mapping[str, Any]) -> Parts:
    """Nothing is loaded. `ValueError` for what can be known to be wrong without."""
    check_steps(config["horizon"], config["n_action_steps"])
    check_nodes(config)
    found = {"suite": "env", "source": "dataset", "trainer": "trainer", "logger": "logger", "pruner": "pruner"}
    parts = Parts(**{name: build(config[key], key) for name, key in found.items()}, execution=execution_of(config))
    for name, key, needs in (
        ("source", "dataset", ("load", "val_fraction", "split_seed")),
        ("trainer", "trainer", ("fit", "total_steps", "check_samples")),
        ("logger", "logger", ("start", "log", "finish")),
        ("pruner", "pruner", ("open", "prune", "close")),
    ):
        kind = type(getattr(parts, name)).__name__
        if missing := [member for member in needs if not hasattr(getattr(parts, name), member)]:
            raise ValueError(f"{key}: {kind} has no {', '.join(missing)}; a {key} needs {', '.join(needs)}")
    if parts.simulated:
        check_suite(parts.suite)
    return parts


def execution_of(config: Mapping[str, Any]) -> Execution:
    """Of a run's configuration; that of an earlier version names none."""
    found: Execution = build(config.get("execution", PLAIN), "execution", Execution)
    return found


def load_setting(config: Mapping[str, Any], parts: Parts) -> Setting:
    """The data, held against everything that will use them. `ValueError` for what does not fit."""
    setting = load_data(config, parts)
    spec, held = setting.spec, setting.held
    if parts.simulated:
        check_fit(parts.suite, spec)
        parts.execution.check(spec)
        if config.get("perturb"):
            chosen(config["perturb"], available(parts.suite))
        rehearse(parts.suite, spec)
    check_objective(config["objective"], parts.suite, spec, bool(len(held)), list(held.sources()))
    if config.get("perturb") and not parts.simulated:
        raise ValueError(f"perturb={config['perturb']}: this run has no simulation, so nothing can be perturbed")
    if not len(held):
        check_unvalidated(config, parts.source.val_fraction, parts.simulated)
    parts.trainer.check_samples(len(setting.learn))
    return setting


def load_data(config: Mapping[str, Any], parts: Parts) -> Setting:
    """The data, for a rank that nobody asks what fits them. `ValueError` for what are none."""
    data: Demonstrations = parts.source.load()
    if not isinstance(data, Demonstrations):
        raise ValueError(
            f"dataset: load() of {type(parts.source).__name__} returned a {type(data).__name__}; expected "
            "provla.dataset.Demonstrations"
        )
    data.check()
    spec = make_spec(config, data, parts.suite.embodiment.action if parts.simulated else None)
    if spec.n_past_actions:
        console.print(
            f"n_past_actions={spec.n_past_actions}: a policy that reads what was done may learn to do it again rather "
            "than to look (de Haan et al. 2019, arXiv:1905.11979); hold it against n_past_actions=0 by success, not by "
            "the loss"
        )
    train, val = data.split(parts.source.val_fraction, parts.source.split_seed)
    sizes = spec.cameras, spec.horizon, spec.n_obs_steps, spec.n_past_actions
    return Setting(data, spec, learner_of(data)(data, train, *sizes), sampler_of(data)(data, val, *sizes))


def make_spec(config: Mapping[str, Any], data: Demonstrations, executed: Vector | None = None) -> Spec:
    """The sizes a policy needs, from the data set and the configuration. executed: the actions of the simulation."""
    return Spec(
        cameras=tuple(data.frames),
        image_size=data.image_size,
        state_size=data.state.shape[1],
        action_size=data.actions.shape[1],
        horizon=config["horizon"],
        n_obs_steps=config["n_obs_steps"],
        n_action_steps=config["n_action_steps"],
        instructions=tuple(data.instructions),
        joint_groups=data.joint_groups,
        fps=data.fps,
        state_names=tuple(data.state_names),
        action_names=tuple(data.joint_names),
        recorded=dict(data.recorded),
        n_past_actions=config.get("n_past_actions", 0),
        action_bounds=() if executed is None else executed.bounds,
        sources=tuple(data.parts) if data.per_source else (),
    ).driving(config.get("source"))


def check_objective(name: str, suite: Any, spec: Spec, held_out: bool, sources: Sequence[str] = ()) -> None:
    """`ValueError` before the training rather than after it, for an objective that this run will not measure."""
    blank = torch.zeros(1, spec.horizon, spec.action_size)
    found = measured(chunk_metrics(blank, blank, torch.zeros(1, spec.horizon, dtype=torch.bool), spec.joint_groups))
    every = ["loss", *found]
    offline = [*every, *(f"{key}/{one}" for one in sources for key in every)] if held_out else ["train/loss"]
    tasks = dict.fromkeys(episode.task for episode in suite.episodes)
    valid = ["auto", *(["success_rate", *(f"success_rate/{task}" for task in tasks)] if tasks else []), *offline]
    if name not in valid:
        why = "" if held_out else " (no episode is held out for validation)"
        raise ValueError(f"objective={name!r} is not measured by this run{why}; valid: {', '.join(valid)}")


def check_unvalidated(config: Mapping[str, Any], fraction: float, simulated: bool) -> None:
    """Says that a run goes without validation; `ValueError` for what cannot do without."""
    trainer = config["trainer"]
    why = (
        "dataset.val_fraction=0"
        if not fraction
        else f"dataset.val_fraction={fraction}, and no instruction has two episodes"
    )
    for key, needs in (
        ("trainer.keep=best", trainer.get("keep") == "best"),
        (f"trainer.patience={trainer.get('patience')}", trainer.get("patience") is not None),
        (f"sampler_steps={config['sampler_steps']}", bool(config["sampler_steps"]) and not simulated),
        (f"pruner={config['pruner']['_target_']}", config["pruner"]["_target_"] != "provla.pruner.NoPruner"),
    ):
        if needs:
            raise ValueError(
                f"{key} goes by validation, and no episode is held out ({why}); hold some out, or leave "
                f"{key.partition('=')[0]} as it is by default"
            )
    judged = (
        ""
        if simulated or config["objective"] != "auto"
        else "; the objective is the training loss, which says little of how good the policy is"
    )
    console.print(f"no validation: no episode is held out ({why}){judged}")
