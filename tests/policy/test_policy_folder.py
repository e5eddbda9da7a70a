"""policy/: nothing of it is used before every file was found to be what was written."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import FAKE, compose
from torch import nn

import provla
from provla.core.build import build
from provla.core.manifest import write_manifest
from provla.core.types import Spec, fake_observation
from provla.policy.folder import load_policy, save_policy

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, spec: Spec) -> Path:
    config = compose(*FAKE)
    sizes = replace(spec, cameras=("front",), n_obs_steps=1, action_size=3, joint_groups={"arm": [0, 1, 2]})
    policy = build(config["policy"], "policy", nn.Module, spec=sizes, device=CPU)
    save_policy(tmp_path / "run" / "policy", policy, config["policy"], sizes, identity="me", step=4)
    return tmp_path / "run"


def test_a_flipped_bit_in_any_file_is_noticed(run: Path) -> None:
    rng, folder = random.Random(0), run / "policy"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 3  # weights, configuration, manifest, a tokenizer
    for file in [file for file in files for _ in range(5)]:
        kept = file.read_bytes()
        data = bytearray(kept)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"policy is damaged: \S*{file.name}"):
            load_policy(folder, CPU)
        file.write_bytes(kept)
    provla.load(run, device="cpu")


def test_missing_and_added_files_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = provla.load(run, device="cpu")
    (run / "policy" / "text" / "added_tokens.json").write_text("{}")
    with pytest.raises(ValueError, match=r"text/added_tokens.json is not named in manifest.json"):
        provla.load(run, device="cpu")
    (run / "policy" / "text" / "added_tokens.json").unlink()
    assert "nobody can say" not in capsys.readouterr().out
    (run / "policy" / "manifest.json").unlink()  # as an earlier version left it
    found = provla.load(run, device="cpu")
    assert "has no manifest.json (an earlier provla wrote it), so nobody can say whether" in " ".join(
        capsys.readouterr().out.split()
    )
    observation = fake_observation(found.spec, 2)
    assert torch.equal(*(policy.act(observation, torch.Generator().manual_seed(0)) for policy in (expected, found)))


def test_a_stored_place_of_a_backbones_files_is_refused(run: Path) -> None:
    stored = json.loads((run / "policy" / "config.json").read_text())
    stored["policy"]["text"]["files"] = "/elsewhere"
    (run / "policy" / "config.json").write_text(json.dumps(stored))
    write_manifest(run / "policy", identity="me", step=4)  # whoever plants it can write a manifest too
    with pytest.raises(
        ValueError, match=r"config.json names files='/elsewhere' for a backbone: a policy keeps them in its own folder"
    ):
        load_policy(run / "policy", CPU)


def test_links_out_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "policy", tmp_path / "elsewhere")
    (run / "policy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"policy is a link that leads out of .*run, to .*elsewhere"):
        provla.load(run, device="cpu")
    (run / "policy").unlink()
    shutil.copytree(tmp_path / "elsewhere", run / "policy")
    (run / "policy" / "weights.safetensors").unlink()
    (run / "policy" / "weights.safetensors").symlink_to(tmp_path / "elsewhere" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights.safetensors is a link that leads out of"):
        provla.load(run, device="cpu")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    provla.load(tmp_path / "link", device="cpu")  # reached through a link, which its reader has named


def test_a_folder_without_a_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no policy \(no config.json\); give the folder of a finished run"):
        provla.load(tmp_path, device="cpu")
