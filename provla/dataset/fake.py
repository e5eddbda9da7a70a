"""Random pixels and smooth motions."""

from __future__ import annotations

import numpy as np

from provla.core.checks import Edge, Fraction, Names, Seed, Steps, Width
from provla.core.types import JointGroups, joint_groups_of
from provla.dataset.demonstrations import Demonstrations


class FakeSource:
    """`dataset=fake`: random pixels and smooth random motions that depend on the instruction, in memory; for tests."""

    def __init__(
        self,
        val_fraction: Fraction,
        split_seed: Seed,
        episodes: Steps,
        length: Steps,
        image_size: Edge,
        cameras: Names,
        state_size: Width,
        action_size: Width,
        seed: Seed,
        joint_groups: JointGroups = None,
    ) -> None:
        self.val_fraction, self.split_seed, self._groups = val_fraction, split_seed, joint_groups
        self._shape = episodes, length, image_size, list(cameras), state_size, action_size, seed

    def load(self) -> Demonstrations:
        episodes, length, size, cameras, state_size, action_size, seed = self._shape
        rng = np.random.default_rng(seed)
        instructions = ["Reach left", "Reach right"]
        task = np.arange(episodes) % 2
        time = np.linspace(0, np.pi, length)[:, None]
        phase = rng.uniform(0, 1, (episodes, 1, action_size)) + task[:, None, None]
        actions = np.sin(time + phase).reshape(-1, action_size).astype(np.float32)
        names = [f"joint{i}" for i in range(action_size)]
        return Demonstrations(
            frames={
                camera: rng.integers(0, 256, (episodes * length, 3, size, size), dtype=np.uint8) for camera in cameras
            },
            state=np.resize(np.cos(time + phase), (episodes, length, state_size))
            .reshape(-1, state_size)
            .astype(np.float32),
            actions=actions,
            starts=np.arange(episodes + 1) * length,
            task=task,
            instructions=instructions,
            joint_names=names,
            joint_groups=joint_groups_of(names, self._groups),
            fps=10.0,
            source="fake",
            state_names=[f"state{i}" for i in range(state_size)],
        )
