"""What makes two runs the same run: which keys there are, and which of them can change a result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from provla.core.checks import Depth, Name, Natural, Seed, Steps, check_values, did_you_mean, shown, value_in
from provla.core.files import fingerprint
from provla.core.renamed import as_first_named
from provla.core.secrets import hide_in

NODES = (
    "dataset",
    "augmentation",
    "vision",
    "text",
    "adapter",
    "quant",
    "fusion",
    "head",
    "scheduler",
    "policy",
    "execution",
    "env",
    "trainer",
    "logger",
    "pruner",
)


@dataclass(frozen=True)
class Root:
    """The values at the root of a run's configuration; conf/train.yaml says what they do."""

    resume: Name | None
    rerun: Name | None
    trust: list[Name]
    seed: Seed
    threads: Depth
    study: Name | None
    device: Name
    data_dir: Name
    horizon: Depth
    n_obs_steps: Depth
    n_past_actions: Natural
    source: Name | None
    n_action_steps: Depth
    eval_episodes: Steps
    objective: Name
    feature_cache: Literal["auto", "off"]
    sampler_steps: list[Steps]
    perturb: Name | list[Name] | Mapping[str, Natural] | None
    question: str | None
    arms: Mapping[str, Any] | None
    baseline: Any


VALUES = tuple(Root.__annotations__)
STUDY = ("question", "arms", "baseline")
# Keys that cannot change a result, and so are no part of a run's identity.
NEUTRAL = (
    "resume",
    "rerun",
    "trust",
    "study",
    "device",
    "data_dir",
    "logger",
    "pruner",
    "objective",
    "feature_cache",
    "sampler_steps",
    "perturb",
    *STUDY,
)
NEUTRAL_INSIDE = {
    "dataset": ("data_dir", "workers", "window_gb", "window_workers"),
    "env": ("num_envs", "videos_per_task", "video_size", "video_stride", "timeout", "workers"),
    "trainer": ("on_nan", "max_skipped", "profile", "shard"),
}
WINDOW = ("cache", "window_blocks", "window_frames")  # of a data set: with cache=window alone its order is another
UNTRAINED = ("env", "execution", "eval_episodes", "source")
# How chunks were executed before there was a choice: runs of then are the same runs.
PLAIN = {"_target_": "provla.execution.Chunk", "delay": 0, "smoothing": 0.0}


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a configuration that can change the result, as it is stored: without secrets."""
    kept: dict[str, Any] = {}
    for key, node in as_first_named(hide_in(config)).items():
        if key in NEUTRAL:
            continue
        if (key, node) in (("execution", PLAIN), ("n_past_actions", 0), ("source", None)):  # as before the choice
            continue
        inside = NEUTRAL_INSIDE.get(key, ())
        if key == "env" and isinstance(node, Mapping) and not node.get("perturb"):
            inside = (*inside, "perturb", "paraphrases")
        if key == "trainer" and isinstance(node, Mapping) and node.get("graph") != "on":  # which rounds otherwise
            inside = (*inside, "graph")
        if key == "policy" and isinstance(node, Mapping) and node.get("actions") == "absolute":  # as before the choice
            inside = (*inside, "actions")
        if key == "dataset" and _ours(config, key):
            inside = (*inside, *(() if value_in(node, "cache") == "window" else WINDOW))
            if isinstance(node, Mapping) and isinstance(node.get("sources"), Mapping):
                node = _mix(node, inside)
        kept[key] = {k: v for k, v in node.items() if k not in inside} if isinstance(node, Mapping) else node
    return kept


def _mix(node: Mapping[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    """A mix's node without what changes no result, in its sources too; of classes of one's own less is known."""
    sources = {}
    for name, one in node["sources"].items():
        ours = isinstance(one, Mapping) and str(one.get("_target_", "provla.")).startswith("provla.")
        left = inside if ours else NEUTRAL_INSIDE["dataset"]
        sources[name] = {k: v for k, v in one.items() if k not in left} if isinstance(one, Mapping) else one
    plain = ("normalize",) if node.get("normalize") == "together" else ()  # as before the choice
    return {key: value for key, value in node.items() if key not in plain} | {"sources": sources}


def identity(config: Mapping[str, Any]) -> str:
    """Hash of everything in a configuration that can change the result."""
    return fingerprint(essence(config), 16)


def training_identity(config: Mapping[str, Any]) -> str:
    """Hash of everything in a configuration that can change the trained weights.

    Training never reads `env`, `execution`, `eval_episodes`, `source` and `n_action_steps`. It reads the sampler's
    number of steps (`num_inference_steps`) only where a validation of sampled chunks decides something: which weights
    are kept (`trainer.keep=best`), or when the training ends (`trainer.patience`, a pruner); `trainer.monitor=loss`
    samples nothing. A policy, scheduler or trainer of one's own may read `n_action_steps` and the sampler's steps
    whenever it likes, so there they count.
    """
    kept = {key: node for key, node in essence(config).items() if key not in UNTRAINED}
    if not _ours(config, "policy"):
        return fingerprint(kept, 16)
    kept.pop("n_action_steps", None)
    trainer, pruner = config.get("trainer") or {}, str((config.get("pruner") or {}).get("_target_", ""))
    decides = trainer.get("keep") == "best" or trainer.get("patience") is not None or not pruner.endswith(".NoPruner")
    if _ours(config, "scheduler") and _ours(config, "trainer") and not (decides and trainer.get("monitor") != "loss"):
        for key, node in (("scheduler", kept), ("scheduler", policy := dict(kept.get("policy") or {}))):
            if isinstance(node.get(key), Mapping):
                node[key] = {k: v for k, v in node[key].items() if k != "num_inference_steps"}
        kept["policy"] = policy
    return fingerprint(kept, 16)


def sampler_steps(config: Mapping[str, Any]) -> Any:
    """The number of steps that a configuration's sampler takes; None where it has none to choose."""
    scheduler = (config.get("policy") or {}).get("scheduler")
    return scheduler.get("num_inference_steps") if isinstance(scheduler, Mapping) else None


def _ours(config: Mapping[str, Any], key: str) -> bool:
    node = config.get(key)
    return not isinstance(node, Mapping) or str(node.get("_target_", "provla.")).startswith("provla.")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`key: theirs → mine` for every value that can change the result and is not the same."""
    a, b = _flat(essence(mine)), _flat(essence(theirs))
    return [
        f"{key}: {b.get(key, 'absent')} → {a.get(key, 'absent')}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def check_keys(config: Mapping[str, Any]) -> None:
    """`ValueError` for a root key that nothing reads, or whose value is not what `Root` says."""
    valid = [*VALUES, *NODES]
    unknown = [key for key in config if key not in valid]
    if unknown:
        raise ValueError(
            f"nothing reads the key {unknown[0]!r}{did_you_mean(unknown[0], valid)}; valid: {', '.join(valid)}"
        )
    for key in NODES:
        if key in config and not isinstance(config[key], Mapping):
            raise ValueError(f"{key}={shown(config[key])}: expected a node with a _target_")
    check_study(config.get("study"))
    check_values(Root, config, "")
    # A run of an earlier version has none of these.
    later = ("rerun", "trust", "execution", "perturb", "feature_cache", "n_past_actions", "source")
    missing = [key for key in valid if key not in config and key not in later]
    if missing:
        raise ValueError(f"{missing[0]} is missing; a run needs it")


def check_study(name: Any) -> None:
    """`ValueError` for a study's name that is more than one plain name: it becomes a folder under outputs/, and files
    under experiments/.
    """
    if name is not None and (name == "" or not re.fullmatch(r"\w[\w .,=+-]*", str(name))):
        raise ValueError(
            f"study={name!r}: expected one plain name of letters, digits, spaces and . , = + - _, without slashes, "
            "such as study=fusion; a sweep's folder elsewhere is hydra.sweep.dir=<folder> (train), or "
            "folder=<folder> (report)"
        )
