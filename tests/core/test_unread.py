"""A part that a policy does not read cannot be chosen in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE, ROOT

from provla.core.unread import check_read

Command = Callable[..., tuple[int, str, str]]


def composed(*overrides: str) -> dict[str, Any]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = OmegaConf.to_container(hydra.compose("train", overrides=list(overrides)), resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=act", "fusion=film"], r"policy=act does not read fusion: fusion=film would change nothing"),
        (
            ["policy=act", "head=dit", "vision.width=32", "seed=1"],
            r"does not read head, vision: head=dit vision\.width=32 would",
        ),
        (["policy=act", "quant=4bit"], r"does not read quant"),
        (["policy=multi_task_dit", "text=minilm"], r"does not read text"),
        (
            ["policy=diffusion", "scheduler.num_inference_steps=5"],
            r"does not read scheduler.*or set policy\.scheduler\.num_inference_steps",
        ),
        (["policy=diffusion", "+scheduler.eta=1"], r"does not read scheduler"),
        (["experiments=reference", "policy=act", "adapter=lora"], r"does not read adapter"),
    ],
)
def test_what_a_policy_does_not_read_is_refused(overrides: list[str], message: str) -> None:
    policy = next(one.partition("=")[2] for one in overrides if one.startswith("policy="))
    with pytest.raises(ValueError, match=message):
        check_read(composed(*overrides), overrides, policy)


@pytest.mark.parametrize(
    "overrides",
    [
        ["policy=act", "seed=3", "trainer.lr=1e-4", "augmentation=crop_color", "dataset=fake"],
        ["policy=act", "augmentation.pad=3", "policy.options.dim_model=32"],
        [
            "fusion=film",
            "head=dit",
            "vision.adapter=frozen",
            "quant=4bit",
            "scheduler.num_inference_steps=4",
            "text=none",
        ],
        ["experiments=reference", "policy=act"],  # a preset's choice is nobody's wish for this policy
    ],
)
def test_what_is_read_or_was_not_asked_for_is_taken(overrides: list[str]) -> None:
    check_read(composed(*overrides), overrides, "any")


def test_a_policy_of_ones_own_reads_what_it_refers_to() -> None:
    config: dict[str, Any] = {
        "policy": {"sizes": ["${oc.select:fusion.width}"], "eye": "${vision}"},
        "fusion": {"width": 3},
        "vision": {"pool": "${head.pool}"},
    }
    config |= {"head": {"pool": "mean"}, "text": {"width": 1}}
    check_read(config, ["fusion=film", "vision.pool=max", "head.pool=mean"], "mine")
    with pytest.raises(ValueError, match="policy=mine does not read text"):
        check_read(config, ["text.width=2"], "mine")


@pytest.mark.parametrize("several", [False, True])
def test_a_command_refuses_it_before_anything_starts(several: bool, command: Command, tmp_path: Path) -> None:
    fake = [o for o in FAKE if not o.startswith(("vision", "fusion", "head"))]
    out = tmp_path / "out"
    how = ["-m", "fusion=film,add", f"hydra.sweep.dir={out}"] if several else ["fusion=film", f"hydra.run.dir={out}"]
    code, _, err = command("train", *how, *fake, "policy=act")
    assert code == 2
    assert "policy=act does not read fusion: fusion=film would change nothing" in err
    assert not list(out.rglob("result.json"))
