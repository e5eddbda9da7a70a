"""Did a rebuilding change a result? python benchmarks/equal.py <file.json>: written the first time, compared every
other time.

A dozen small trainings that have every kind of part between them; of each, the sha256 of its weights, its metrics but
for those of time, its episodes, its identity and the keys of its result. Equal bits are promised on one machine alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tiny import TINY

SMALL = [*TINY, "env=none", "logger=csv", "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1"]
BARE = [one for one in SMALL if not one.startswith("head")]
ACT = ["policy=act", "policy.options.dim_model=32", "policy.options.n_heads=2", "policy.options.dim_feedforward=32"]
RECORDED = [
    "dataset=metaworld",
    "dataset.tasks=[drawer-close]",
    "dataset.episodes_per_task=2",
    "dataset.image_size=32",
    "dataset.val_fraction=0.5",
    "env=metaworld",
    "eval_episodes=2",
    "env.max_episode_steps=24",
    "env.videos_per_task=0",
]
CASES = {
    "unet1d": SMALL,
    "unet1d_concat": [*BARE, "head=unet1d_concat", "head.channels=[16,32]", "head.time_width=16"],
    "dit over a perceiver": [
        *BARE,
        "head=dit",
        "fusion=perceiver",
        "head.width=16",
        "head.depth=1",
        "head.num_heads=2",
    ],
    "mlp": [*BARE, "head=mlp", "head.width=16"],
    **{f"scheduler={name}": [*SMALL, f"scheduler={name}"] for name in ("ddpm", "dpm_solver", "flow", "l1", "mip")},
    "LoRA and 4 bits": [*SMALL, "quant=4bit"],
    "two cameras, a history": [*SMALL, "dataset.cameras=[front,wrist]", "n_obs_steps=2", "augmentation=crop_color"],
    "LeRobot's ACT": [
        *[one for one in SMALL if one.partition("=")[0].partition(".")[0] not in ("vision", "fusion", "head")],
        *ACT,
    ],
    "other towers": [
        *(one for one in BARE if not one.startswith("vision")),
        "text=task_embedding",
        "vision=siglip_tiny",
        "vision.config.num_hidden_layers=1",
        "head=mlp",
        "head.width=16",
        "fusion=film",
        "adapter=lora",
    ],
    "closed loop": [*(one for one in SMALL if not one.startswith(("dataset", "env"))), *RECORDED],
}


def main(file: Path) -> int:
    with tempfile.TemporaryDirectory() as place:
        found = {name: outcome(asked, Path(place) / str(number)) for number, (name, asked) in enumerate(CASES.items())}
        found["resumed"] = resumed(Path(place) / "0")
    if not file.exists():
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} results written to {file}")
        return 0
    before = json.loads(file.read_text())
    wrong = [f"{name}: {key}" for name in before for key in before[name] if found[name][key] != before[name][key]]
    print("\n".join(wrong) or f"all {len(before)} results are what they were")
    return int(bool(wrong))


def outcome(asked: list[str], run: Path) -> dict[str, Any]:
    """What must not change of a training that is done now."""
    from hydra.core.global_hydra import GlobalHydra

    import provla.train

    GlobalHydra.instance().clear()
    sys.argv = ["provla.train", *asked, f"hydra.run.dir={run}"]
    try:
        provla.train.main()
    except SystemExit as stop:
        if stop.code:
            raise
    result = json.loads((run / "result.json").read_text())
    with (run / "metrics.csv").open() as rows:
        metrics = [
            {key: value for key, value in row.items() if "per_second" not in key} for row in csv.DictReader(rows)
        ]
    return {
        "weights": hashlib.sha256((run / "policy" / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": hashlib.sha256(json.dumps(metrics).encode()).hexdigest(),
        "episodes": hashlib.sha256((run / "episodes.csv").read_bytes()).hexdigest(),
        "identity": result["config_hash"],
        "judged": result["metrics"],
        "keys": sorted(result),
    }


def resumed(run: Path) -> dict[str, Any]:
    """The first case once more, from the checkpoint in its middle."""
    for name in ("result.json", "training.json"):
        (run / name).unlink(missing_ok=True)
    last = max((run / "checkpoints").glob("step_*"))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    return outcome(CASES["unet1d"], run)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
