"""Does a thread that gathers batches ahead pay where the CPU trains? python benchmarks/ahead.py

Training steps of the default policy on made-up pictures, with batches that are gathered when they are asked for and
ahead, in turns, and the gathering alone. Prints a line of JSON; medians over rounds, and of the rounds' ratios.
"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.ranks import ALONE
from provla.dataset.sampler import Sampler
from provla.run.setting import make_spec
from provla.trainer.feed import Feed
from provla.trainer.fit import make_optimizer

ROUNDS, STEPS, SIZE, CPU = 7, 8, 64, torch.device("cpu")


def made() -> tuple[Any, Sampler]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        asked = ["dataset=fake", "dataset.image_size=64", "dataset.episodes=40"]
        config: Any = OmegaConf.to_container(compose("train", asked), resolve=True)
    source = build(config["dataset"], "dataset")
    data = source.load()
    spec = make_spec(config, data)
    learn, _ = data.split(source.val_fraction, source.split_seed)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    return policy, Sampler(data, learn, spec.cameras, spec.horizon, spec.n_obs_steps)


def main() -> None:
    torch.set_num_threads(2)
    policy, train = made()
    weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    optimizer, step = make_optimizer(weights, 1e-3, (0.9, 0.99), 1e-4), 0

    def round_of(feed: Feed) -> float:
        """Seconds of a step."""
        nonlocal step
        begun = time.perf_counter()
        for _ in range(STEPS):
            policy.loss(feed.at(step)[0].batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        return (time.perf_counter() - begun) / STEPS

    plain, ahead = (Feed(train, 0, SIZE, 1, ALONE, CPU) for _ in range(2))
    ahead.ahead = True
    with plain, ahead:
        for feed in (plain, ahead):
            round_of(feed)
        times = [(round_of(plain), round_of(ahead)) for _ in range(ROUNDS)]
    begun = time.perf_counter()
    for number in range(100):
        train.step(0, number, SIZE)
    gathering = (time.perf_counter() - begun) / 100
    print(
        json.dumps(
            {
                "ms_per_step": round(1000 * median(a for a, _ in times), 1),
                "ms_per_step_ahead": round(1000 * median(b for _, b in times), 1),
                "ratio": round(median(b / a for a, b in times), 3),
                "ratios": [round(b / a, 3) for a, b in times],
                "ms_of_gathering": round(1000 * gathering, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
