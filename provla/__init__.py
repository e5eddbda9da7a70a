"""provla: find out what matters in a vision-language-action robot policy. `provla.load(path)` gives a trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provla.core.lazy import lazy

if TYPE_CHECKING:
    from provla.core.types import Observation as Observation
    from provla.core.types import Tokens as Tokens

__all__ = ["Observation", "Tokens", "load"]


def load(
    path: str | Path,
    device: str = "auto",
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    source: str | None = None,
) -> Any:
    """The policy of a run folder, or of its policy/ folder, ready for `act(observation)`; needs no Hydra.

    observation: an `Observation` of images (B,T,C,3,h,w) uint8 (of cameras that differ in size a tuple), state (B,T,S)
    in the robot's units and B instructions. `act` returns (B,H,A) actions in the robot's units. device: auto, cpu,
    cuda, cuda:<n>. bases: `vision` or `text` → a folder or Hub id with its frozen weights, where they are no longer
    where the training found them. trust: modules whose classes the policy may use besides provla's own, such as
    `["my_ideas"]`; their code runs. source: of a policy that was trained on a mix with dataset.normalize=per_source,
    whose robot it drives. Errors: `ValueError`.
    """
    from provla.core.machine import find_device
    from provla.policy.folder import find_policy, load_policy

    folder = find_policy(Path(path).expanduser())
    policy, _ = load_policy(folder, find_device(device), bases=bases, trust=trust, driving=source)
    return policy


__getattr__ = lazy(__name__, {"Observation": "core.types", "Tokens": "core.types"})
