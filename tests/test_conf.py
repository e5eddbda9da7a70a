"""Every option of every group composes, builds, trains and samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAKE, ROOT, compose

from provla.build import build
from provla.dataset import FakeSource, LeRobotSource, MetaworldSource
from provla.run import check_keys
from provla.trainer import Trainer
from provla.types import Spec, fake_batch, fake_observation

OPTIONS = [(f.parent.name, f.stem) for f in sorted((ROOT / "conf").glob("*/*.yaml"))]
POLICY_GROUPS = ("augmentation", "vision", "text", "adapter", "quant", "fusion", "head", "scheduler", "policy")
# The part under test keeps its own defaults, so overrides of that part's keys are left out.
LOCAL = {"siglip_base", "qwen2_5_0_5b"}


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small pretrained folders of the real form, by `save_pretrained`."""
    from transformers import ByT5Tokenizer, Qwen2Config, Qwen2Model, SiglipModel, SiglipTextConfig, SiglipVisionConfig
    from transformers.models.siglip import SiglipConfig

    folder = tmp_path_factory.mktemp("backbones")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # Both towers, as on the Hub: only the vision tower may be read.
    config = SiglipConfig(
        text_config=SiglipTextConfig(**small, vocab_size=64).to_dict(), vision_config=SiglipVisionConfig(**small, image_size=32, patch_size=8).to_dict()
    )
    SiglipModel(config).save_pretrained(folder / "siglip_base")
    tokenizer = ByT5Tokenizer(extra_ids=0)
    Qwen2Model(Qwen2Config(**small, num_key_value_heads=2, vocab_size=len(tokenizer))).save_pretrained(folder / "qwen2_5_0_5b")
    tokenizer.save_pretrained(folder / "qwen2_5_0_5b")
    return {name: folder / name for name in LOCAL}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_builds_trains_and_samples(group: str, option: str, spec: Spec, backbones: dict[str, Path], tmp_path: Path) -> None:
    fake = [o for o in FAKE if not o.startswith(group)]
    if group in ("dataset", "env", "trainer", "logger"):
        fake = ["dataset.root=x"] if option == "lerobot" else []
    extra = [f"{group}.name={backbones[option]}"] if option in LOCAL else []
    config = compose(*fake, f"{group}={option}", *extra)
    check_keys(config)
    if group in POLICY_GROUPS:
        torch.manual_seed(0)
        policy = build(config["policy"], "policy", torch.nn.Module, spec=spec, device=torch.device("cpu"))
        policy.train()
        policy.loss(fake_batch(spec, 4))["loss"].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
        policy.eval()
        chunk = policy.act(fake_observation(spec, 2), torch.Generator().manual_seed(0))
        assert chunk.shape == (2, 8, 4)
        assert chunk.isfinite().all()
    elif group == "dataset":
        assert isinstance(build(config["dataset"], "dataset"), {"fake": FakeSource, "metaworld": MetaworldSource, "lerobot": LeRobotSource}[option])
    elif group == "trainer":
        assert isinstance(build(config["trainer"], "trainer"), Trainer)
    else:
        build(config[group], group)


def test_pretrained_weights_are_those_of_the_folder(backbones: dict[str, Path]) -> None:
    from transformers import Qwen2Model, SiglipModel

    from provla.text import Qwen
    from provla.vision import Siglip

    vision = Siglip(1, (32, 32), name=str(backbones["siglip_base"]))
    images = torch.randint(0, 256, (2, 1, 1, 3, 32, 32), dtype=torch.uint8)
    whole = SiglipModel.from_pretrained(backbones["siglip_base"]).eval()
    expected = whole.vision_model(pixel_values=images[:, 0, 0].float() / 127.5 - 1).last_hidden_state
    torch.testing.assert_close(vision.eval()(images).features, expected)

    text = Qwen(["a"], 64, name=str(backbones["qwen2_5_0_5b"])).eval()
    reference = Qwen2Model.from_pretrained(backbones["qwen2_5_0_5b"]).eval()
    ids = torch.tensor([[b + 3 for b in b"Open"] + [1]])
    torch.testing.assert_close(text(["Open"]).features, reference(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize(("option", "key"), [("vision=siglip_base", "vision.name"), ("text=qwen2_5_0_5b", "text.name")])
def test_unreachable_hub_is_one_clear_message(option: str, key: str, spec: Spec) -> None:
    with pytest.raises(ValueError, match=rf"{key}=.*could not be fetched from the Hugging Face Hub[\s\S]*set {key}=<folder>"):
        build(compose(option)["policy"], "policy", torch.nn.Module, spec=spec, device=torch.device("cpu"))


def test_quant_chooses_lora_and_refuses_full() -> None:
    assert compose("quant=4bit")["adapter"]["mode"] == "lora"
    assert compose("quant=8bit", "adapter=frozen")["adapter"]["mode"] == "frozen"


def test_data_sets_without_simulation_choose_env_none() -> None:
    assert compose("dataset=lerobot", "dataset.root=x")["env"]["_target_"] == "provla.env.NoSuite"
    assert compose()["env"]["_target_"] == "provla.env.MetaworldSuite"


def test_keys_that_nothing_reads_are_errors(spec: Spec) -> None:
    with pytest.raises(ValueError, match=r"nothing reads fusion\.colour='red'.*takes: .*width, hidden"):
        build(compose("+fusion.colour=red")["policy"], "policy", torch.nn.Module, spec=spec, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="nothing reads the key 'speed'"):
        check_keys(compose("+speed=3"))
