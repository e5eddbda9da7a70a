"""What LeRobot reads of an export: its config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import PreTrainedConfig

NOT_HERE = "provla's policies are trained by provla (python -m provla.train) and brought to LeRobot by provla.export"


@PreTrainedConfig.register_subclass("provla")
@dataclass
class ProvlaConfig(PreTrainedConfig):
    """`--policy.path=<export>`. What can be changed there: n_action_steps, of a chunk, until the policy looks again;
    seed, of the sampler's noise; threads: a CPU computes a chunk with so many, and to the bit as `provla.evaluate` does
    (null: as the process computes anything); device; bases, where frozen weights lie now; trust, modules of other
    people's classes that may run; source, of a policy with statistics of several, whose robot it drives.

    provla_version: that wrote the export. action_feature_names, state_feature_names: null where nobody stored them.
    fps: of the demonstrations, in whose steps a chunk is.
    """

    n_action_steps: int = 8
    horizon: int = 16
    fps: float = 30.0
    seed: int = 0
    threads: int | None = None
    action_feature_names: list[str] | None = None
    state_feature_names: list[str] | None = None
    provla_version: str = ""
    source: str | None = None
    bases: dict[str, str] = field(default_factory=dict)
    trust: list[str] = field(default_factory=list)
    rtc_config: Any = None  # LeRobot's engine leaves its own here

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise ValueError(NOT_HERE)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Nothing: the policy holds them against its own sizes when it is loaded."""
