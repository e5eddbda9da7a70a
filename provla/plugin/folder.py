"""An export for LeRobot: its own files around `policy/`, which stays as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from provla.core.cameras import in_words
from provla.core.files import atomic
from provla.core.progress import console
from provla.core.types import Spec
from provla.policy.folder import load_policy, run_beside


def export_lerobot(
    source: Path,
    target: Path,
    device: torch.device,
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    driving: str | None = None,
) -> None:
    """`target`: LeRobot's config.json, policy_preprocessor.json and policy_postprocessor.json, and `policy/`, a copy of
    `source`, file by file. driving: whose robot, see `Spec.source`. `ValueError` for a policy that does not load here;
    what it lacks is said.
    """
    from provla.plugin.processor_provla import make_provla_pre_post_processors

    _, spec = load_policy(source, device, bases=bases, trust=trust, driving=driving)
    spec.check_driving()
    config = _configuration(spec, device, source)
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    with atomic(target, size) as partial:
        partial.mkdir()
        shutil.copytree(source, partial / "policy")
        config._save_pretrained(partial)
        for pipeline in make_provla_pre_post_processors(config):
            pipeline.save_pretrained(partial)
    for line in _limits(spec, source):
        console.print(line)


def _configuration(spec: Spec, device: torch.device, source: Path) -> Any:
    from lerobot.configs import FeatureType, PolicyFeature

    from provla.plugin.configuration_provla import ProvlaConfig
    from provla.plugin.robot import feature, sizes

    pictures = {
        feature(camera): PolicyFeature(type=FeatureType.VISUAL, shape=(3, *sizes(spec, camera)[0]))
        for camera in spec.cameras
    }
    return ProvlaConfig(
        n_obs_steps=spec.n_obs_steps,
        n_action_steps=spec.n_action_steps,
        horizon=spec.horizon,
        fps=spec.fps,
        threads=run_beside(source).get("threads"),
        input_features={
            **pictures,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(spec.state_size,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(spec.action_size,))},
        action_feature_names=list(spec.action_names) or None,
        state_feature_names=list(spec.state_names) or None,
        provla_version=version("provla"),
        source=spec.source,
        device=str(device),
    )


def _limits(spec: Spec, source: Path) -> list[str]:
    """What whoever drives a robot with it should know."""
    said = []
    if not spec.action_names:
        said.append(
            "the policy was stored before provla kept the names of joints and the size of recorded pictures: whether a "
            "robot has its joints in the same order cannot be checked, and pictures are expected at "
            f"{in_words(spec.sizes)}; export a policy that was trained since, to be sure"
        )
    how = run_beside(source).get("execution", {}).get("_target_", "provla.execution.Chunk")
    if how != "provla.execution.Chunk":
        said.append(
            f"the run executes chunks by {how.rpartition('.')[2]}; under LeRobot the policy executes "
            f"n_action_steps={spec.n_action_steps} of each (--policy.n_action_steps), or what --inference.type=rtc does"
        )
    return said


def check_version(stored: str, folder: Path) -> None:
    """`ValueError` for an export of a later provla than this one, whose policies it may not understand."""
    here = version("provla")
    if _number(stored) > _number(here):
        raise ValueError(
            f"{folder} was written by provla {stored or '(no version)'}, and this is provla {here}: install that "
            "version, or export the run again with this one"
        )
    if not stored:
        raise ValueError(f"{folder}/config.json names no provla_version: export the run again")
    if _number(stored) < _number(here):
        console.print(f"{folder} was written by provla {stored}; this is {here}, which reads what earlier ones stored")


def check_word(folder: Path) -> None:
    """`ValueError` for an export that says itself whom to trust."""
    file = folder / "config.json"
    if file.is_file() and json.loads(file.read_text()).get("trust"):
        raise ValueError(
            f"{folder}/config.json names modules that may run (trust): that is its reader's word, given by "
            "--policy.trust"
        )


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
