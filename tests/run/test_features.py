"""What a frozen encoder makes of the frames is computed once, and changes nothing; sentences are read once."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose, local
from safetensors.torch import load_file

from provla.core.build import build
from provla.core.types import Spec, fake_batch, fake_observation
from provla.dataset.features import feature_cache

Command = Callable[..., tuple[int, str, str]]
SPEC = Spec(("top",), (32, 32), 4, 4, 16, 1, 8, ("open the drawer", "close"), {}, 10)
FROZEN = ["adapter=frozen", "augmentation=none", "fusion=perceiver", "fusion.width=32", "fusion.num_latents=4"]


def small(backbones: Path, *overrides: str, vision: str = "siglip_base") -> list[str]:
    plain = [option for option in FAKE if not option.startswith(("vision", "text", "fusion", "augmentation"))]
    towers = [f"vision={vision}", *local(vision, backbones), "text=qwen2_5_0_5b", *local("qwen2_5_0_5b", backbones)]
    return [*plain, *towers, *FROZEN, "logger=csv", *overrides]


def trained(folder: Path) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
    """Losses, and the weights that the training ended with."""
    rows = [*csv.DictReader((folder / "metrics.csv").open())]
    kept = [{key: value for key, value in row.items() if "per_second" not in key} for row in rows]
    return kept, load_file(folder / "policy" / "weights.safetensors")


@pytest.mark.parametrize(
    ("vision", "options"),
    [("siglip_base", []), ("siglip_base", ["vision.pool=patches_2x2", "n_obs_steps=2"]), ("dino_siglip", [])],
)
def test_a_run_that_remembers_is_the_run_that_does_not(
    vision: str, options: list[str], command: Command, backbones: Path, tmp_path: Path
) -> None:
    asked = small(backbones, f"data_dir={tmp_path / 'data'}", *options, vision=vision)
    code, out, err = command("train", *asked, f"hydra.run.dir={tmp_path / 'with'}")
    assert code == 0, err
    assert "encoding" in out
    assert "has seen every frame" in out
    code, out, err = command("train", *asked, "feature_cache=off", f"hydra.run.dir={tmp_path / 'without'}")
    assert code == 0, err
    assert "seen every frame" not in out
    (rows, weights), (plain_rows, plain) = trained(tmp_path / "with"), trained(tmp_path / "without")
    assert rows == plain_rows
    assert weights.keys() == plain.keys()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("with", "without")]
    assert results[0]["config_hash"] == results[1]["config_hash"]
    assert results[0]["metrics"] == results[1]["metrics"]
    # Another run of the same encoder on the same frames: nothing is encoded again.
    code, out, _ = command("train", *asked, "head.time_width=64", f"hydra.run.dir={tmp_path / 'other'}")
    assert code == 0
    assert "encoding" not in out
    assert "has seen every frame" in out


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("adapter=lora", "some of its weights train (vision.adapter=frozen"),
        ("augmentation=crop", "its pictures are changed at random (augmentation=none"),
    ],
)
def test_where_it_cannot_be_remembered_the_run_says_why(
    override: str, reason: str, command: Command, backbones: Path, tmp_path: Path
) -> None:
    asked = [option for option in small(backbones) if option.partition("=")[0] != override.partition("=")[0]]
    code, out, err = command("train", *asked, override, f"data_dir={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 0, err
    assert f"the vision encoder runs in every step: {reason}" in " ".join(out.split())
    assert not list(tmp_path.glob("features/*.npy"))


def encode(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float().mean((2, 3))[:, None].to(torch.bfloat16)


def test_the_file_is_made_whole_and_again_where_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (37, 3, 8, 8), dtype=np.uint8)
    path = tmp_path / "features" / "a.npy"
    found = feature_cache(path, "top", frames, encode)
    rows = np.array([[36, 0], [5, 5]])
    expected = encode(torch.from_numpy(frames[rows.flatten()])).view(2, 2, 1, 3)
    assert torch.equal(found[rows], expected)
    before = path.stat().st_mtime_ns
    feature_cache(path, "top", frames, encode)
    assert path.stat().st_mtime_ns == before
    with path.open("r+b") as file:  # one bit
        file.seek(-2, 2)
        last = file.read(1)
        file.seek(-2, 2)
        file.write(bytes([last[0] ^ 1]))
    capsys.readouterr()
    assert torch.equal(feature_cache(path, "top", frames, encode)[rows], expected)
    assert "is damaged (another sha256); it is made again" in " ".join(capsys.readouterr().out.split())
    path.write_bytes(path.read_bytes()[:-3])
    assert torch.equal(feature_cache(path, "top", frames, encode)[rows], expected)

    def dies(pictures: torch.Tensor) -> torch.Tensor:
        if len(pictures) > 1 and not path.exists():
            raise KeyboardInterrupt
        return encode(pictures)

    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        feature_cache(path, "top", frames, dies)
    assert not path.exists()
    assert not list(path.parent.glob("*.partial"))


def test_a_full_disk_costs_the_cache_and_not_the_run(
    command: Command, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provla.dataset.features.check_space", _no_room)
    asked = small(backbones, f"data_dir={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}")
    code, out, err = command("train", *asked)
    assert code == 0, err
    told = " ".join(out.split())
    assert "the vision encoder runs in every step: the feature cache will not fit" in told
    assert "vision.pool=patches_2x2 takes a quarter" in told


def _no_room(folder: Path, needed: int, what: str) -> None:
    from provla.core.errors import NoSpace

    raise NoSpace(f"{what} will not fit into {folder}: {needed} bytes", needed)


@pytest.mark.parametrize("adapter", ["frozen", "lora"])
def test_a_sentence_is_read_once_until_the_weights_change(adapter: str, backbones: Path) -> None:
    node: Any = compose("text=qwen2_5_0_5b", *local("qwen2_5_0_5b", backbones), f"text.adapter={adapter}")["policy"]
    torch.manual_seed(0)
    policy: Any = build(node, "policy", torch.nn.Module, spec=SPEC, device=torch.device("cpu"))
    policy.eval()
    asked, read = fake_observation(SPEC, 4), []
    policy.text.register_forward_hook(lambda _, args, out: read.append(args[0]))

    def act() -> torch.Tensor:
        return policy.act(asked, torch.Generator().manual_seed(0))

    first = act()
    assert read == [[text] for text in dict.fromkeys(asked.instruction)]
    assert torch.equal(act(), first)
    assert len(read) == len(set(asked.instruction))
    weights = [p for p in policy.text.parameters() if p.is_floating_point()]
    optimizer, average = torch.optim.AdamW(weights, lr=0.3, fused=True), [p.detach().clone() for p in weights]
    seen = {first.numpy().tobytes()}
    for _ in range(2):
        if adapter == "lora":  # learned from; a fused kernel then changes weights in place and says so nowhere
            policy.loss(fake_batch(SPEC, 2))["loss"].backward()
            optimizer.step()
        else:
            for p in weights:
                p.detach().add_(torch.randn_like(p))
        read.clear()
        seen.add(act().numpy().tobytes())
        assert len(read) == len(set(asked.instruction))
    assert len(seen) == 3
    for p, mean in zip(weights, average, strict=True):  # as the trainer exchanges them
        p.data = mean
    assert torch.equal(act(), first)
