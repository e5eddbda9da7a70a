"""Worlds that keep their contract, and worlds that break it. Every world's process imports this file."""

from __future__ import annotations

from typing import Any

import numpy as np

from provla.core.world import Embodiment, Vector


class Walk:
    """A walk on a line, towards 1."""

    embodiment = Embodiment({"top": (16, 24)}, Vector(["x", "v"], -9, 9), Vector(["push"], -1, 1), 10)

    def reset(self, seed: int) -> None:
        self.x, self.v = float(np.random.default_rng(seed).uniform(-1, 0)), 0.0

    def step(self, action: Any) -> None:
        self.v = float(action[0])
        self.x += 0.2 * self.v

    def state(self) -> Any:
        return np.array([self.x, self.v])

    def images(self) -> Any:
        return {"top": np.full((16, 24, 3), int(np.clip(100 + 50 * self.x, 0, 255)), np.uint8)}

    def success(self) -> bool:
        return self.x > 1


class TwoEyed(Walk):
    """Its cameras differ in size, and joints are those of `conftest.write_lerobot`."""

    embodiment = Embodiment(
        {"front": (48, 64), "wrist": (24, 32)},
        Vector(["shoulder", "elbow", "gripper"], -9, 9),
        Vector(["shoulder", "elbow", "gripper"], -1, 1),
        10,
    )

    def state(self) -> Any:
        return np.array([self.x, self.v, 0])

    def images(self) -> Any:
        level = int(np.clip(100 + 50 * self.x, 0, 255))
        cameras = enumerate(self.embodiment.cameras.items())
        return {camera: np.full((*size, 3), level + 20 * i, np.uint8) for i, (camera, size) in cameras}


class Scored(Walk):
    """It says how far it is, and gives up where it has gone too far back."""

    success = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name == "success":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def score(self) -> float:
        return self.x

    def over(self) -> bool:
        return self.x < -2


class Blind(Walk):
    images = property()  # type: ignore[assignment]


class Square(Walk):
    def images(self) -> Any:
        return {"top": np.zeros((16, 16, 3), np.uint8)}


class Nameless(Walk):
    def images(self) -> Any:
        return {"front": np.zeros((16, 24, 3), np.uint8)}


class Lost(Walk):
    def state(self) -> Any:
        return np.array([self.x, np.nan])


class Long(Walk):
    def state(self) -> Any:
        return np.zeros(3)


class Forgetful(Walk):
    """Its episodes depend on those before."""

    before = 0

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.x += 0.1 * self.before
        self.before += 1


class Shy(Walk):
    """Looking moves it."""

    def images(self) -> Any:
        self.x += 0.01
        return super().images()


class Same(Walk):
    def reset(self, seed: int) -> None:
        super().reset(0)


class Wild(Walk):
    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.x += float(np.random.default_rng().uniform())


class Far(Walk):
    embodiment = Embodiment({"top": (16, 24)}, Vector(["x", "v"], -0.01, 0.01), Vector(["push"], -1, 1), 10)


class Vague(Walk):
    def success(self) -> Any:
        return 0.3


class Idle(Walk):
    """Its expert never succeeds."""

    def expert(self) -> Any:
        return np.zeros(1)


class Silent(Walk):
    embodiment = "top"  # type: ignore[assignment]
