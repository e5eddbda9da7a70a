"""Which parts become an ONNX graph, and how near are its actions? python benchmarks/graphs.py

The default policy with one part changed at a time, at its full size with random weights, exported by
`provla.export`'s own function, which compares ONNX Runtime's actions with policy.act's. Schedulers take their own
number of steps, but ddpm, which takes ten; other parts are tried with scheduler=mip, which takes two. Pretrained models
have random weights of the same sizes. Writes benchmarks/graphs.csv, or the rows of the arms that are named
(python benchmarks/graphs.py "fusion=film scheduler=mip"). Takes three minutes.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from provla.command.entry import ROOT
from provla.core.build import build
from provla.core.files import csv_text, write_text
from provla.core.types import Spec
from provla.policy.folder import save_policy
from provla.policy.onnx import export_onnx

SPEC = Spec(("corner2",), (64, 64), 4, 4, 16, 1, 8, ("Open the drawer", "Close it"), {}, 10.0)
VISION = ("siglip_tiny", "resnet18")
PRETRAINED = (
    ("vision", ("siglip_base", "dinov2_small", "clip_base")),
    ("text", ("minilm", "clip_text", "t5_small")),
)


def arms() -> list[list[str]]:
    """One part changed at a time, and a head that reads tokens."""
    found = [
        [f"{group}={file.stem}"]
        for group in ("scheduler", "head", "fusion")
        for file in sorted((Path(ROOT) / "conf" / group).glob("*.yaml"))
    ]
    tokens = ["head=dit", "head.conditioning=tokens", "fusion=perceiver", "scheduler=mip"]
    others = *(f"vision={vision}" for vision in VISION), "text=task_embedding", "text=none", "adapter=lora"
    named = [[f"{group}={name}", f"{group}.pretrained=false"] for group, names in PRETRAINED for name in names]
    found = [arm if arm[0].startswith("scheduler") else [*arm, "scheduler=mip"] for arm in found]
    return [*found, tokens, *([*other, "scheduler=mip"] for other in (*([one] for one in others), *named))]


def measure(overrides: list[str]) -> dict[str, object]:
    with initialize_config_dir(str(Path(ROOT) / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=["env=none", *overrides]), resolve=True)
    assert isinstance(config, dict)
    torch.manual_seed(0)
    policy = build(config["policy"], "policy", nn.Module, spec=SPEC, device=torch.device("cpu"))
    for weight in policy.parameters():  # layers that begin as nothing would hide what they do
        if weight.is_floating_point() and not weight.abs().sum():
            nn.init.normal_(weight, std=0.02)
    steps = 10 if "scheduler=ddpm" in overrides else None  # of a hundred
    row: dict[str, object] = {"arm": " ".join(overrides), "exports": "yes"}
    with tempfile.TemporaryDirectory() as place:
        save_policy(Path(place) / "policy", policy, config["policy"], SPEC)
        begun = time.monotonic()
        try:
            found = export_onnx(Path(place) / "policy", Path(place) / "graph", steps=steps)
        except ValueError as error:
            return row | {"exports": str(error).partition("\n")[0]}
        size = sum(file.stat().st_size for file in (Path(place) / "graph").iterdir())
    return row | {
        "max_difference": f"{found.difference:.2g}",
        "largest_action": f"{found.largest:.2g}",
        "export_seconds": f"{time.monotonic() - begun:.0f}",
        "megabytes": f"{size / 1e6:.1f}",
    }


def main(wanted: list[str]) -> None:
    columns = ("arm", "exports", "max_difference", "largest_action", "export_seconds", "megabytes")
    file = Path(__file__).with_suffix(".csv")
    with file.open() as before:
        rows: dict[str, dict[str, object]] = {row["arm"]: dict(row) for row in csv.DictReader(before)}
    names = [" ".join(arm) for arm in arms()]
    for name, arm in zip(names, arms(), strict=True):
        if name in wanted or not wanted:
            rows[name] = measure(arm)
    text = csv_text([{column: rows[name].get(column, "") for column in columns} for name in names if name in rows])
    print(text)
    write_text(file, text)


if __name__ == "__main__":
    main(sys.argv[1:])
