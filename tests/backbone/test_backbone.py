"""Pretrained towers: what is loaded equals the reference, from a folder, from a Hub, and from a policy folder later."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, ROOT, compose, local
from safetensors.torch import load_file, save_file
from test_policy import SMALL
from torch import nn

from provla.backbone import fingerprints
from provla.backbone.tower import Source, Tower, towers
from provla.core.build import build
from provla.core.files import write_json
from provla.core.types import Batch, Spec, fake_batch, fake_observation
from provla.policy.folder import export_policy, load_policy, save_policy
from provla.policy.weights import own_state
from provla.quant import linear_layers

sys.path.insert(0, str(ROOT / "benchmarks"))

CPU = torch.device("cpu")
VISION = ("siglip_base", "siglip2_base", "siglip_so400m", "dinov2_small", "clip_base")
TEXT = ("qwen2_5_0_5b", "tinyllama_1_1b", "minilm", "clip_text", "t5_small")


def make(spec: Spec, *overrides: str) -> Any:
    torch.manual_seed(0)
    small = [o for o in SMALL if not (o.startswith("vision") and any(x.startswith("vision=") for x in overrides))]
    return build(compose(*small, *overrides)["policy"], "policy", nn.Module, spec=spec, device=CPU)


def part(group: str, option: str, backbones: Path, *overrides: str) -> Any:
    node = {
        k: v
        for k, v in compose(f"{group}={option}", *local(option, backbones), *overrides)[group].items()
        if k not in ("adapter", "quant")
    }
    sizes: dict[str, Any] = {"num_images": 1, "image_size": (40, 40)} if group == "vision" else {"instructions": ["a"]}
    return build(node, group, nn.Module)(**sizes).eval()


@pytest.mark.parametrize("option", VISION)
def test_vision_equals_the_whole_model_on_the_processor_s_pixels(option: str, backbones: Path) -> None:
    folder = backbones / FAMILIES[option]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    edge = (processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)["height"]
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8))
    resize = {"do_center_crop": False, "size": {"height": edge, "width": edge}}  # the whole image, nothing cropped
    pixels = processor(image, return_tensors="pt", **resize)["pixel_values"]
    tower = part("vision", option, backbones)
    torch.testing.assert_close(tower._pixels(image[None]), pixels)
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    inside = whole.vision_model if hasattr(whole, "vision_model") else whole
    expected = inside(pixel_values=tower._pixels(image[None])).last_hidden_state
    patches = (edge // tower.model.config.patch_size) ** 2
    found = tower(image[None, None, None])
    torch.testing.assert_close(found.features, expected[:, -patches:])
    assert sum(p.numel() for p in tower.model.parameters()) < sum(p.numel() for p in whole.parameters()) + (
        0 if hasattr(whole, "text_model") else 1
    )


@pytest.mark.parametrize("option", TEXT)
def test_text_equals_the_whole_model(option: str, backbones: Path) -> None:
    folder = backbones / FAMILIES[option]
    tower = part("text", option, backbones, "text.pool=tokens")
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    inside = whole.text_model if hasattr(whole, "text_model") else whole.encoder if option == "t5_small" else whole
    ids = torch.tensor([[b + 3 for b in b"Open"] + [1]])
    expected = inside(input_ids=ids).last_hidden_state
    alone = tower(["Open"])
    torch.testing.assert_close(alone.features, expected)
    beside = tower(["Open", "Close it now"])  # padding changes nothing
    assert beside.mask[0].sum() == 5
    torch.testing.assert_close(beside.features[:1, :5], expected, atol=1e-5, rtol=1e-4)
    names = [name for name, _ in tower.model.named_parameters()]
    assert not any("lm_head" in name or "vision" in name or "pooler" in name or "decoder" in name for name in names)


def test_pools(backbones: Path) -> None:
    tokens = part("text", "qwen2_5_0_5b", backbones)(["Open", "Close it now"])
    mean = part("text", "qwen2_5_0_5b", backbones, "text.pool=mean")(["Open", "Close it now"])
    torch.testing.assert_close(mean.features[:, 0], tokens.mean())
    last = part("text", "qwen2_5_0_5b", backbones, "text.pool=last")(["Open", "Close it now"])
    torch.testing.assert_close(last.features[0, 0], tokens.features[0, 4])
    clip = transformers.CLIPTextModel.from_pretrained(backbones / "clip").eval()
    end = part("text", "clip_text", backbones)(["Open"])  # what CLIP calls its text features
    ids = torch.tensor([[b + 3 for b in b"Open"] + [1]])
    torch.testing.assert_close(end.features[:, 0], clip(input_ids=ids).pooler_output)
    images = fake_observation(_spec((40, 40)), 1).images
    pooled = part("vision", "siglip_base", backbones, "vision.pool=pooler")
    whole = transformers.SiglipModel.from_pretrained(backbones / "siglip").eval()
    expected = whole.vision_model(pixel_values=pooled._pixels(images.flatten(0, 2))).pooler_output
    torch.testing.assert_close(pooled(images).features[:, 0], expected)
    patches = part("vision", "siglip_base", backbones)(images)
    torch.testing.assert_close(
        part("vision", "siglip_base", backbones, "vision.pool=mean")(images).features[:, 0], patches.mean()
    )


@pytest.mark.parametrize(
    ("option", "norm"),
    [("qwen2_5_0_5b", "norm"), ("clip_text", "text_model.final_layer_norm"), ("t5_small", "encoder.final_layer_norm")],
)
def test_an_earlier_layer_is_its_hidden_state_through_the_final_norm(option: str, norm: str, backbones: Path) -> None:
    whole, early = (
        part("text", option, backbones, "text.pool=tokens", f"text.layer={layer}") for layer in ("null", "-2")
    )
    ids = whole._processor(["Open it"], return_tensors="pt")
    hidden = whole.model(**ids, output_hidden_states=True).hidden_states[2]  # of 3 layers
    torch.testing.assert_close(early(["Open it"]).features, whole.model.get_submodule(norm)(hidden))
    assert sum(p.numel() for p in early.parameters()) < sum(p.numel() for p in whole.parameters())
    with pytest.raises(ValueError, match=r"text\.layer=9: the model has 3 layers; valid: 1 to 3, or -1 \(all\) to -3"):
        part("text", option, backbones, "text.layer=9")


def test_two_towers_side_by_side(backbones: Path) -> None:
    images = fake_observation(_spec((40, 40)), 2).images
    both = part("vision", "dino_siglip", backbones)
    features = both(images).features
    assert features.shape == (2, 16, 64)  # 4 × 4 patches of each
    dino = part("vision", "dinov2_small", backbones, "vision.input_size=[56,56]")
    torch.testing.assert_close(features[..., :32], dino(images).features)
    torch.testing.assert_close(features[..., 32:], part("vision", "siglip_base", backbones)(images).features)
    uneven = part("vision", "dino_siglip", backbones, "vision.towers.dinov2.input_size=[70,70]")
    with pytest.raises(
        ValueError, match=r"different numbers of tokens, \{'dinov2': 25, 'siglip': 16\}; change an input_size"
    ):
        uneven(images)


def test_imagenet_resnet_keeps_its_statistics(backbones: Path) -> None:
    tower = part("vision", "resnet18", backbones, "vision.pretrained=true", f"vision.name={backbones}/resnet")
    whole = transformers.ResNetModel.from_pretrained(backbones / "resnet").eval()
    images = fake_observation(_spec((40, 40)), 2).images
    tower.train()
    tower(images).features.sum().backward()
    for mine, theirs in zip(tower.model.buffers(), whole.buffers(), strict=True):
        assert torch.equal(mine, theirs)  # nothing was learned about the batch
    expected = whole(pixel_values=tower._pixels(images.flatten(0, 2))).last_hidden_state
    torch.testing.assert_close(
        tower.model(pixel_values=tower._pixels(images.flatten(0, 2))).last_hidden_state, expected
    )
    assert any(isinstance(m, nn.GroupNorm) for m in part("vision", "resnet18", backbones).model.modules())


# Parameters of the real models: Hugging Face's model cards and papers. Built without memory.
SIZES = {
    "text=qwen2_5_0_5b": 494_032_768,
    "text=tinyllama_1_1b": 1_100_048_384 - 32_000 * 2048,  # without the language-model head
    "text=minilm": 22_713_216 - (384 * 384 + 384),  # without BERT's pooler
    "text=clip_text": 63_165_952,
    "text=t5_small": 35_330_816,  # the encoder of 60.5 M
    "vision=dinov2_small": 22_056_576,
    "vision=siglip_base": 85_798_656 - 2 * 768,  # ViT-B/16 without a class token and its position
    "vision=resnet18": 11_176_512,
}


@pytest.mark.parametrize(("option", "size"), list(SIZES.items()))
def test_sizes_without_pretrained_weights_are_the_real_ones(option: str, size: int) -> None:
    group = option.split("=")[0]
    node = compose(option, f"{group}.pretrained=false")[group]
    architecture = node.get("architecture", "ResNetModel")
    with torch.device("meta"):
        source = Source(architecture, node["name"], None, node["config"], False, None, "float32", False, None, group)
        model = source.load(**({"vision_use_head": False} if architecture.startswith("Siglip") else {}))
    assert sum(p.numel() for p in model.parameters()) == size


def test_half_precision_and_gradient_checkpointing(spec: Spec, backbones: Path) -> None:
    options = [
        "vision=siglip_base",
        *local("siglip_base", backbones),
        "text=qwen2_5_0_5b",
        *local("qwen2_5_0_5b", backbones),
        "adapter=lora",
    ]
    batch = fake_batch(spec, 4)
    kept: dict[bool, int] = {}
    gradients = {}
    for checkpointing in (False, True):
        more = [f"{group}.gradient_checkpointing={str(checkpointing).lower()}" for group in ("vision", "text")]
        policy = make(spec, *options, "adapter.dropout=0", *more)
        sizes: list[int] = []
        policy.train()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):  # type: ignore[misc]
            loss = policy.loss(batch)["loss"]
        torch.manual_seed(0)
        loss.backward()
        kept[checkpointing] = sum(sizes)
        gradients[checkpointing] = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert kept[True] < 0.7 * kept[False]
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient)
    half = make(spec, *options, "vision.dtype=bfloat16", "text.dtype=bfloat16")
    assert half.vision.model.dtype == torch.bfloat16
    assert {p.dtype for name, p in half.named_parameters() if p.requires_grad} == {torch.float32}  # updates stay exact
    assert half.loss(batch)["loss"].item() == pytest.approx(make(spec, *options).loss(batch)["loss"].item(), rel=0.05)


@pytest.mark.parametrize("quant", ["none", "8bit", "4bit"])
def test_policy_folders_store_adapters_and_name_their_bases(
    quant: str, spec: Spec, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = shutil.copytree(backbones, tmp_path / "hub")
    node, policy = _trained(spec, copies, quant)
    save_policy(tmp_path / "policy", policy, node, spec)
    stored = set(own_state(policy))
    backbone = {name for name in stored if name.startswith(("vision.model", "text.model"))}
    assert backbone
    assert all("lora_" in name for name in backbone)
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert {path: base["name"] for path, base in config["bases"].items()} == {
        "vision": f"{copies}/siglip",
        "text": f"{copies}/qwen2",
    }
    assert (tmp_path / "policy" / "text" / "tokenizer_config.json").is_file()
    assert (tmp_path / "policy" / "vision" / "preprocessor_config.json").is_file()

    torch.manual_seed(5)
    loaded, _ = load_policy(tmp_path / "policy", CPU)
    assert torch.equal(_act(loaded, spec), _act(policy, spec))
    if quant != "none":
        for report in policy.quant_report.values():
            assert report.layers > 0
            assert 0 < report.error < (0.02 if quant == "8bit" else 0.25)

    (copies / "siglip").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError,
        match=r"needs its frozen bases \(vision: .*siglip, text: .*qwen2\).*could not be loaded: vision\.name=.*no "
        r"such folder[\s\S]*bases=",
    ):
        load_policy(tmp_path / "policy", CPU)
    moved, _ = load_policy(tmp_path / "policy", CPU, bases={"vision": str(tmp_path / "elsewhere")})
    assert torch.equal(_act(moved, spec), _act(policy, spec))
    with pytest.raises(ValueError, match=r"bases names 'eyes'; this policy needs bases for: vision, text"):
        load_policy(tmp_path / "policy", CPU, bases={"eyes": "x"})
    _change_matrices(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"the base of vision, .* is not the one this policy was trained on"):
        load_policy(tmp_path / "policy", CPU, bases={"vision": str(tmp_path / "elsewhere")})
    config["bases"]["vision"]["fingerprint"] = policy.vision.vectors  # as an earlier version stored it
    write_json(tmp_path / "policy" / "config.json", config)
    (tmp_path / "policy" / "manifest.json").unlink()
    load_policy(tmp_path / "policy", CPU, bases={"vision": str(tmp_path / "elsewhere")})
    said = " ".join(capsys.readouterr().out.split())
    assert "has no manifest.json (an earlier provla wrote it)" in said
    assert "of the base of vision only norms and biases could be compared" in said
    other = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_small(32), vision_use_head=False))
    _replace(other, copies / "siglip", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"the base of vision, .* is not the one this policy was trained on"):
        load_policy(tmp_path / "policy", CPU)
    wide = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_small(64), vision_use_head=False))
    _replace(wide, copies / "siglip", tmp_path / "elsewhere")
    with pytest.raises(
        ValueError,
        match=r"the base of vision, .* is not the one this policy was trained on; its weights or their sizes differ",
    ):
        load_policy(tmp_path / "policy", CPU)


def test_a_base_is_hashed_once_per_set_of_files(
    backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(backbones / "siglip", tmp_path / "siglip")
    hashed: list[bool] = []
    real = fingerprints.content
    monkeypatch.setattr(
        fingerprints, "content", lambda model, whole=True: (hashed.append(whole), real(model, whole))[1]
    )

    def base(*overrides: str) -> str:
        hashed.clear()
        found = part("vision", "siglip_base", backbones, f"vision.name={folder}", *overrides).base
        return str(found.fingerprint)

    first = base()
    assert (hashed.count(True), first[:7]) == (1, "sha256:")
    assert (base(), hashed.count(True)) == (first, 0)
    assert (base("vision.layer=2") != first, hashed.count(True)) == (True, 1)
    assert (base(), hashed.count(True)) == (first, 0)
    model = transformers.SiglipModel.from_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="20KB")  # other files, the same weights
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (base(), hashed.count(True)) == (first, 1)
    _change_matrices(folder)
    assert (base() != first, hashed.count(True)) == (True, 1)


@pytest.mark.parametrize("quant", ["none", "8bit", "4bit"])
def test_export_merges_everything_into_one_folder(quant: str, spec: Spec, backbones: Path, tmp_path: Path) -> None:
    copies = shutil.copytree(backbones, tmp_path / "hub")
    node, policy = _trained(spec, copies, quant, "adapter.use_dora=true")
    save_policy(tmp_path / "policy", policy, node, spec)
    merged = export_policy(tmp_path / "policy", tmp_path / "full", CPU)
    assert merged == {"vision": 18, "text": 21}  # six layers in each of SigLIP's blocks, seven in Qwen2's
    shutil.rmtree(copies)
    whole, _ = load_policy(tmp_path / "full", CPU)
    assert not any("lora_" in name for name in whole.state_dict())
    found = json.loads((tmp_path / "full" / "config.json").read_text())["export"]
    assert found["observations"] == 16
    assert found["max_difference"] >= found["mean_difference"] >= 0
    # LLM.int8 rounds activations too, which a merged weight does not.
    assert (found["max_difference"] > 2e-4) == (quant == "8bit")
    torch.testing.assert_close(
        _act(whole, spec),
        _act(policy, spec),
        **({"atol": 0.05, "rtol": 0.05} if quant == "8bit" else {"atol": 1e-4, "rtol": 1e-3}),
    )


def test_a_backbone_that_trains_whole_is_stored_whole(spec: Spec, backbones: Path, tmp_path: Path) -> None:
    copies = shutil.copytree(backbones, tmp_path / "hub")
    for adapter, needs in (("full", []), ("last_k", ["text", "vision"]), ("frozen", ["text", "vision"])):
        node, policy = _trained(spec, copies, "none", f"adapter={adapter}", lora=False)
        save_policy(tmp_path / adapter, policy, node, spec)
        assert sorted(json.loads((tmp_path / adapter / "config.json").read_text())["bases"]) == needs
        assert torch.equal(_act(load_policy(tmp_path / adapter, CPU)[0], spec), _act(policy, spec))
    shutil.rmtree(copies)
    load_policy(tmp_path / "full", CPU)


def test_load_in_three_lines_without_hydra(spec: Spec, backbones: Path, tmp_path: Path) -> None:
    node, policy = _trained(spec, backbones, "4bit")
    save_policy(tmp_path / "run" / "policy", policy, node, spec)
    torch.save(_act(policy, spec), tmp_path / "expected.pt")
    program = f"""
import sys, torch
import provla
policy = provla.load({str(tmp_path / "run")!r}, device="cpu")
from provla.core.types import fake_observation
found = policy.act(fake_observation(policy.spec, 2), torch.Generator().manual_seed(0))
expected = torch.load({str(tmp_path / "expected.pt")!r})
torch.testing.assert_close(found, expected)
assert provla.Observation is type(fake_observation(policy.spec, 1))
assert not {{"hydra", "omegaconf"}} & set(sys.modules), "Hydra was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_trains_in_each_part(spec: Spec, backbones: Path) -> None:
    both = [
        "vision=siglip_base",
        *local("siglip_base", backbones),
        "text=qwen2_5_0_5b",
        *local("qwen2_5_0_5b", backbones),
    ]

    def trains(*overrides: str) -> dict[str, set[str]]:
        policy = make(spec, *both, *overrides)
        return {
            key: {n for n, p in getattr(policy, key).model.named_parameters() if p.requires_grad}
            for key in ("vision", "text")
        }

    last = trains("adapter=last_k", "adapter.k=1")
    assert {n.split(".layers.")[-1].split(".")[0] for n in last["vision"] if "layers" in n} == {"2"}
    assert {n for n in last["vision"] if "layers" not in n} == {
        "vision_model.post_layernorm.weight",
        "vision_model.post_layernorm.bias",
    }
    assert {n for n in last["text"] if "layers" not in n} == {"norm.weight"}
    mixed = trains("adapter=frozen", "vision.adapter=full")
    assert mixed["vision"]
    assert not mixed["text"]
    own = trains("adapter=lora", "adapter.target_modules=[q_proj,v_proj]", "text.adapter={r: 2}")
    assert len(own["vision"]) == len(own["text"]) == 2 * 2 * 3
    policy = make(spec, *both, "adapter=lora", "adapter.target_modules=[q_proj,v_proj]", "text.adapter={r: 2}")
    assert policy.vision.model.vision_model.encoder.layers[0].self_attn.q_proj.lora_A["default"].weight.shape == (
        16,
        32,
    )
    assert policy.text.model.layers[0].self_attn.q_proj.lora_A["default"].weight.shape == (2, 32)
    policy = make(
        spec,
        *both,
        "adapter=lora",
        "adapter.use_dora=true",
        "adapter.use_rslora=true",
        "+adapter.peft.init_lora_weights=gaussian",
    )
    layer = policy.vision.model.vision_model.encoder.layers[0].self_attn.q_proj
    assert layer.lora_magnitude_vector["default"].weight.requires_grad
    assert layer.scaling["default"] == pytest.approx(32 / 16**0.5)
    assert policy.vision.view.requires_grad  # which camera is which is nothing a pretrained tower knows
    frozen = make(spec, *both, "adapter=frozen").train()
    assert not frozen.vision.model.training


def test_attention_pooling_is_not_quantised(spec: Spec, backbones: Path) -> None:
    policy = make(spec, "vision=siglip_base", *local("siglip_base", backbones), "vision.pool=pooler", "quant=4bit")
    pooling = policy.vision.model.vision_model.head.attention
    assert isinstance(pooling, nn.MultiheadAttention)
    assert type(pooling.out_proj).__name__ == "NonDynamicallyQuantizableLinear"
    assert pooling.out_proj.weight.dtype == torch.float32
    assert policy.quant_report["vision"].layers == 18 + 2  # the pooling's MLP is linear
    assert policy.quant_report["vision"].error < 0.4
    assert not [name for name in linear_layers(policy.vision.model) if "lora_" not in name]


def test_minilm_s_weights_are_those_that_were_looked_at(tmp_path: Path) -> None:
    """Another hash, a missing file, or code beside them: the tests that use them are skipped with the reason."""
    from words import MINILM, minilm

    with pytest.raises(ValueError, match="are not here"):
        minilm(tmp_path / "nowhere")
    try:
        weights = minilm()
    except ValueError as error:
        pytest.skip(str(error))
    for name in MINILM:
        (tmp_path / name).symlink_to(weights / name)
    assert minilm(tmp_path) == tmp_path
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="neither code nor a pickle"):
        minilm(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.txt").write_bytes((weights / "vocab.txt").read_bytes() + b"x")
    with pytest.raises(
        ValueError, match=r"vocab\.txt has the sha256 .*, expected 07eced.*not the weights that were looked at"
    ):
        minilm(tmp_path)


WORDINGS = {
    "Open a drawer": ["Pull the drawer open", "Slide the drawer out", "Get the drawer to open"],
    "Push and close a drawer": ["Shut the drawer", "Slide the drawer back in", "Close that drawer with a push"],
    "Press a button from the top": [
        "Push the button down from above",
        "Hit the button on its top",
        "Press down on the button",
    ],
    "Push and open a window": ["Slide the window open", "Open up the window with a push", "Get the window to open"],
    "Push and close a window": ["Shut the window", "Slide the window closed", "Close that window with a push"],
}


def test_minilm_s_real_weights_understand_other_words(spec: Spec) -> None:
    """Five actions learned from five sentences are found again from sentences that no training has shown."""
    from words import minilm

    said = list(WORDINGS)
    sizes = replace(spec, cameras=("front",), instructions=tuple(said), n_obs_steps=1)
    try:
        weights = minilm()
    except ValueError as error:
        pytest.skip(str(error))
    policy = make(sizes, "text=minilm", f"text.name={weights}", "text.adapter=frozen", "augmentation=none")
    wanted = torch.eye(5)[:, :4] * 2 - 1  # an action per sentence
    observation = fake_observation(sizes, 5)
    batch = Batch(
        observation,
        wanted[:, None].expand(5, spec.horizon, 4).contiguous(),
        torch.zeros(5, spec.horizon, dtype=torch.bool),
    )
    policy.fit_normalization(observation.state.flatten(0, 1), wanted)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    policy.train()
    for _ in range(150):
        shuffled = replace(
            batch,
            observation=replace(
                observation, images=observation.images[torch.randperm(5)], state=observation.state[torch.randperm(5)]
            ),
        )
        optimizer.zero_grad()
        policy.loss(shuffled)["loss"].backward()
        optimizer.step()
    policy.eval()

    def understood(sentences: list[str]) -> list[int]:
        blind = replace(
            observation,
            images=observation.images[:1].expand(5, *observation.images.shape[1:]),
            state=observation.state[:1].expand(5, -1, -1),
        )
        chunk = policy.act(replace(blind, instruction=sentences), torch.Generator().manual_seed(0)).mean(1)  # (5, 4)
        return [int(i) for i in torch.cdist(chunk, wanted).argmin(1)]

    assert understood(said) == list(range(5))
    hits = sum(found == i for k in range(3) for i, found in enumerate(understood([w[k] for w in WORDINGS.values()])))
    assert hits >= 11, hits  # of 15; by chance three, and so many once in 80,000 times
    lookup = make(sizes, "text=task_embedding")
    with pytest.raises(ValueError, match="does not know the instruction 'Pull the drawer open'"):
        lookup.act(replace(observation, instruction=["Pull the drawer open"] * 5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vision=siglip_base", "vision.name={b}/qwen2"], r"vision\.name=.*qwen2'"),
        (
            ["vision=siglip_base", "vision.name={b}/dinov2"],
            r"vision\.name=.*is no SiglipVisionModel: \d+ of its weights are missing",
        ),
        (["text=qwen2_5_0_5b", "text.name={b}"], r"text\.name=.*the folder does not hold what is needed"),
        (
            ["text=qwen2_5_0_5b", "text.name={b}/nopad"],
            r"text\.name=.*its tokenizer has no padding token; name one of its tokens, such as text\.pad_token='</s>'",
        ),
        (["text=qwen2_5_0_5b", "text.name={b}/qwen2", "text.pad_token=zz"], r"text\.pad_token='zz' is no token of"),
        (
            ["text=qwen2_5_0_5b", "text.name={b}/pickled"],
            r"text\.name=.*the folder does not hold what is needed: .*safetensors",
        ),
        (["text=qwen_tiny", "text.architecture=os"], r"text\.architecture='os' is no model class of transformers"),
        (["text=qwen_tiny", "+text.config.hidden_act=loud"], r"text\.config cannot be built as a Qwen2Model"),
        (["text=qwen_tiny", "text.dtype=int8"], r"text\.dtype='int8': expected one of: float32, bfloat16, float16"),
        (["text=qwen_tiny", "text.pool=max"], r"text\.pool='max': expected one of: tokens, mean, last"),
        (
            ["text=task_embedding", "quant=4bit"],
            r"quant\.bits=4: text has no linear layers to quantise; set text\.quant=none",
        ),
        (["text=qwen_tiny", "text.quant=3bit"], r"text\.quant='3bit': expected one of: none, 8bit, 4bit"),
        (
            ["text=qwen_tiny", "text.quant=4bit"],
            r"quant\.bits=4 freezes the linear layers, which adapter=full wants to train",
        ),
        (["text=qwen_tiny", "text.adapter=half"], r"text\.adapter='half': expected one of: full, lora, last_k, frozen"),
        (
            ["text=qwen_tiny", "adapter=lora", "+adapter.peft.rank=3"],
            r"adapter\.peft\.rank is no setting of peft's LoraConfig; it has: .*use_dora",
        ),
        (["text=qwen_tiny", "adapter=lora", "adapter.r=0"], r"adapter\.r=0: expected a whole number from 1 to"),
        (["text=qwen_tiny", "text.adapter={mode: last_k, k: 5}"], r"adapter\.k=5: text has 2 layers"),
        (["adapter=last_k"], r"adapter=last_k: vision is no stack of layers"),
    ],
)
def test_bad_input(overrides: list[str], message: str, spec: Spec, backbones: Path, tmp_path: Path) -> None:
    for family in ("siglip", "dinov2", "qwen2"):
        (tmp_path / family).symlink_to(backbones / family)
    shutil.copytree(backbones / "qwen2", tmp_path / "nopad")
    tokenizer = json.loads((tmp_path / "nopad" / "tokenizer_config.json").read_text())
    (tmp_path / "nopad" / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"pad_token": None, "tokenizer_class": "GPT2TokenizerFast"})
    )
    _byte_level_tokenizer().save_pretrained(tmp_path / "nopad")
    shutil.copytree(backbones / "qwen2", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        make(spec, *(o.format(b=tmp_path) if o.startswith(("vision.name", "text.name")) else o for o in overrides))


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hub as `from_pretrained` asks for: a public model, a gated one, and nothing else."""

    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        error = None
        if "gated" in parts:
            error = (403, "GatedRepo")
        elif "models" not in parts[:2] and parts[:2] != ["acme", "tiny"]:
            error = (404, "RepoNotFound")
        elif len(parts) > 3 and parts[2] == "resolve" and parts[3] != "c0ffee0000000000000000000000000000000000":
            error = (404, "RevisionNotFound")
        file = self.root / parts[-1]
        if error is None and not file.is_file():
            error = (404, "EntryNotFound")
        if error is not None:
            self.send_response(error[0])
            self.send_header("X-Error-Code", error[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = file.read_bytes()
        self.send_response(200)
        for key, value in {
            "X-Repo-Commit": parts[3],
            "ETag": f'"{file.name}"',
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(backbones: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"root": backbones / "qwen2"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_hub_is_read_at_the_pinned_revision_and_its_refusals_are_explained(hub: str, tmp_path: Path) -> None:
    program = """
from provla.text.text_tower import TextTower
pinned = "c0ffee0000000000000000000000000000000000"
def build(name, revision=pinned):
    return TextTower(["a"], "Qwen2Model", {}, 16, name=name, revision=revision)
print(build("acme/tiny").base)
for name, revision in (("acme/gated", pinned), ("acme/nothing", pinned), ("acme/tiny", "0" * 40)):
    try:
        build(name, revision)
    except ValueError as error:
        print(error)
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout
    assert "Base(name='acme/tiny', revision='c0ffee0000000000000000000000000000000000'" in lines
    assert (
        "text.name='acme/gated' is gated: ask for access at https://huggingface.co/acme/gated, then set HF_TOKEN"
        in lines
    )
    assert "text.name='acme/nothing' does not exist on the Hugging Face Hub, or is private" in lines
    assert (
        "text.name='acme/tiny' exists on the Hugging Face Hub, but not in the revision asked for; change text.revision"
        in lines
    )


@pytest.mark.parametrize(("option", "key"), [("vision=siglip_base", "vision.name"), ("text=qwen2_5_0_5b", "text.name")])
def test_an_unreachable_hub_is_one_clear_message(option: str, key: str, spec: Spec) -> None:
    with pytest.raises(
        ValueError, match=rf"{key}=.*could not be fetched from the Hugging Face Hub[\s\S]*set {key}=<folder>"
    ):
        make(spec, option)


def _spec(size: tuple[int, int]) -> Spec:
    return Spec(
        ("front",), size, 3, 4, 8, 1, 4, ("Open the drawer", "Close the window gently"), {"arm": [0, 1, 2, 3]}, 10.0
    )


def _small(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }


def _replace(model: Any, folder: Path, like: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    shutil.copy(like / "preprocessor_config.json", folder)


def _change_matrices(folder: Path) -> None:
    """Other weights in files of the same sizes, but for vectors (norms, biases)."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        save_file(
            {name: w + 0.1 * torch.randn_like(w) if w.ndim > 1 else w for name, w in weights.items()},
            file,
            {"format": "pt"},
        )


def _trained(spec: Spec, backbones: Path, quant: str, *overrides: str, lora: bool = True) -> tuple[dict[str, Any], Any]:
    """The node and the policy after three steps, with both backbones pretrained."""
    options = [
        "vision=siglip_base",
        *local("siglip_base", backbones),
        "text=qwen2_5_0_5b",
        *local("qwen2_5_0_5b", backbones),
        f"quant={quant}",
    ]
    options += [
        *(["adapter=lora"] if lora else []),
        "fusion.width=32",
        "head.channels=[16,32]",
        "head.time_width=16",
        *overrides,
    ]
    node = compose(*options)["policy"]
    torch.manual_seed(1)
    policy = build(node, "policy", nn.Module, spec=spec, device=CPU)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    batch = fake_batch(spec, 4)
    for _ in range(3):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        optimizer.step()
    assert all(isinstance(tower, Tower) for _, tower in towers(policy))
    return node, policy.eval()


def _act(policy: Any, spec: Spec) -> torch.Tensor:
    found: torch.Tensor = policy.act(fake_observation(spec, 2), torch.Generator().manual_seed(0))
    return found


def _byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    vocabulary = {"</s>": 0, "a": 1, "b": 2}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="</s>"
    )
