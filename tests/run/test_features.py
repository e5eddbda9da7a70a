"""What frozen encoders make of frames and sentences is computed once, and changes nothing; then they may rest."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, compose, local
from safetensors.torch import load_file

from provla.backbone import tower
from provla.core.build import build
from provla.core.types import Spec, fake_batch, fake_observation
from provla.dataset.features import feature_cache
from provla.dataset.rows import read_rows
from provla.run.features import _facts, remember
from provla.run.follow import make_policy
from provla.run.rehearsal import rehearse_policy
from provla.run.sentences import remember_sentences
from provla.run.setting import load_data, make_parts

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
    vision: str,
    options: list[str],
    command: Command,
    backbones: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    # Another run of the same encoder on the same frames: nothing is encoded or read again, and the text's weights are
    # not even loaded; the vision's are, for the milliseconds per chunk.
    loaded, load = [], tower.load_weights
    monkeypatch.setattr(tower, "load_weights", lambda cls, *a, **o: loaded.append(cls.__name__) or load(cls, *a, **o))
    code, out, _ = command("train", *asked, f"hydra.run.dir={tmp_path / 'other'}")
    assert code == 0
    assert "encoding" not in out
    assert "has seen every frame" in out
    assert "Qwen2Model" not in loaded
    assert "SiglipVisionModel" in loaded
    (again, others), result = trained(tmp_path / "other"), json.loads((tmp_path / "other" / "result.json").read_text())
    assert again == rows
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for key in ("config_hash", "metrics", "flops_per_sample", "parameters"):
        assert result[key] == results[0][key] == results[1][key]
    policies = [tmp_path / name / "policy" for name in ("with", "other")]
    for file in (file for file in policies[0].rglob("*") if file.is_file()):
        assert (policies[1] / file.relative_to(policies[0])).read_bytes() == file.read_bytes()
    code, _, err = command("evaluate", f"checkpoint={tmp_path / 'other'}", f"hydra.run.dir={tmp_path / 'judged'}")
    assert code == 0, err


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("adapter=lora", "some of its weights train (vision.adapter=frozen"),
        ("augmentation=crop", "its pictures are changed at random (augmentation=none"),
        ("augmentation=camera", "its pictures are changed at random (augmentation=none"),
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


def test_sentences_are_kept_and_read_anew_where_they_are_not_what_was_written(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = compose("text=qwen2_5_0_5b", *local("qwen2_5_0_5b", backbones), "adapter=frozen")
    config["policy"]["vision"]["adapter"] = "full"  # trains from scratch
    read: list[list[str]] = []

    def remembering(*sentences: str) -> Any:
        torch.manual_seed(0)
        policy: Any = build(config["policy"], "policy", torch.nn.Module, spec=SPEC, device=torch.device("cpu"))
        policy.text.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        rehearse_policy(policy, SPEC, torch.device("cpu"))
        read.clear()
        remember_sentences(config, policy, sentences, tmp_path)
        return policy.eval()

    def act(policy: Any) -> torch.Tensor:
        return policy.act(fake_observation(SPEC, 4), torch.Generator().manual_seed(0))

    plain: Any = build(config["policy"], "policy", torch.nn.Module, spec=SPEC, device=torch.device("cpu")).eval()
    first = remembering(*SPEC.instructions)
    assert read == [[sentence] for sentence in SPEC.instructions]
    assert first.text.resting
    plain.load_state_dict({k: v for k, v in first.state_dict().items() if not v.is_meta}, strict=False)
    expected = act(plain)
    read.clear()
    assert torch.equal(act(first), expected)
    second = remembering(*SPEC.instructions)
    assert torch.equal(act(second), expected)
    assert not read
    assert second.text.resting
    with torch.autocast("cpu", torch.bfloat16):  # what is kept serves every precision
        act(second)
    assert second.text.resting
    (file,) = tmp_path.glob("sentences_*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert torch.equal(act(remembering(*SPEC.instructions)), expected)
    assert read == [[sentence] for sentence in SPEC.instructions]
    read.clear()
    third = remembering("open the drawer")  # other sentences, another file
    assert read == [["open the drawer"]]
    assert torch.equal(act(third), expected)  # with one that nobody has read
    assert not third.text.resting
    torch.set_num_threads(2)  # sums are rounded by their number
    try:
        remembering(*SPEC.instructions)
    finally:
        torch.set_num_threads(1)
    assert len([*tmp_path.glob("sentences_*.safetensors")]) == 3
    monkeypatch.setattr("provla.run.sentences.write_bytes", lambda *_: _no_room(tmp_path, 1, "it"))
    file.unlink()
    assert torch.equal(act(remembering(*SPEC.instructions)), expected)


def test_a_reader_that_fails_is_named_before_the_training(
    command: Command, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = small(backbones, f"data_dir={tmp_path / 'data'}")
    assert command("train", *asked, f"hydra.run.dir={tmp_path / 'first'}")[0] == 0
    for path in (tmp_path / "data" / "features").glob("*.safetensors"):
        path.unlink()
    load = tower.load_weights

    def wrong(cls: Any, *given: Any, **options: Any) -> Any:  # as a kernel that this machine lacks
        model, found = load(cls, *given, **options)
        if cls.__name__ == "Qwen2Model":
            model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
        return model, found

    monkeypatch.setattr(tower, "load_weights", wrong)
    code, out, err = command("train", *asked, f"hydra.run.dir={tmp_path / 'second'}")
    assert code != 0
    assert "text does not work as configured, on 'Reach left': division by zero" in " ".join((out + err).split())
    assert "s per step" not in out
    assert not (tmp_path / "second" / "metrics.csv").exists()


def test_with_several_ranks_nobody_rests(backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP sends frozen weights around too."""
    config = compose(*small(backbones), f"data_dir={tmp_path}")
    setting, device = load_data(config, make_parts(config)), torch.device("cpu")
    rest = []
    for ranks in (1, 1, 2):
        monkeypatch.setattr("provla.run.follow.joined", lambda ranks=ranks: SimpleNamespace(size=ranks))
        policy = make_policy(config, setting, device)
        before = policy.text.resting
        remember(config, policy, setting, device)
        rest.append((before, policy.text.resting, policy.vision.resting))
    assert rest == [(False, True, True), (True, True, True), (False, False, False)]


def test_quantised_weights_have_features_of_their_own(backbones: Path) -> None:
    """What an encoder makes of a frame depends on its bits, whoever names them."""
    config: Any = compose("vision=siglip_base", *local("siglip_base", backbones), "adapter=frozen")
    policy: Any = build(config["policy"], "policy", torch.nn.Module, spec=SPEC, device=torch.device("cpu"))
    whole = _facts(config, policy, torch.device("cpu"))
    config["policy"]["quant"]["bits"] = 8
    assert _facts(config, policy, torch.device("cpu")) != whole


def test_rows_are_read_without_the_mapping(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (9, 2, 3), dtype=np.uint16)
    np.save(tmp_path / "a.npy", array)
    mapped, rows = np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False), np.array([[8, 0], [3, 3], [-1, -9]])
    for one in (array, mapped):
        assert np.array_equal(read_rows(one, rows), array[rows])
        with pytest.raises(IndexError):
            read_rows(one, np.array([9]))
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    assert np.array_equal(read_rows(mapped, rows), array[rows])
    (tmp_path / "b.npy").rename(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(OSError, match="ends within row 8"):
        read_rows(mapped, np.array([8]))


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
