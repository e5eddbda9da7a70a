"""Every option of every group composes, builds, trains and samples."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import FAKE, ROOT, compose, local

from provla.core.build import build
from provla.core.identity import check_keys
from provla.core.types import Spec, fake_batch, fake_observation
from provla.dataset.fake import FakeSource
from provla.dataset.lerobot import LeRobotSource
from provla.dataset.metaworld import MetaworldSource
from provla.dataset.mix import MixSource
from provla.trainer.options import Trainer

OPTIONS = [(f.parent.name, f.stem) for f in sorted((ROOT / "conf").glob("*/*.yaml")) if f.parent.name != "backbone"]
WORLD = ["env=world", "env.world={_target_: walks.Idle}", "env.tasks={go: Go there}"]
NEEDS = {  # what an option leaves to its user
    ("dataset", "lerobot"): ["dataset.root=x"],
    ("dataset", "mix"): ["dataset.sources={a:{root:x},b:{root:y}}"],
    ("dataset", "recorded"): WORLD,
    ("env", "world"): WORLD,
    ("env", "ogbench_scene"): ["dataset=ogbench_scene"],  # its tasks
    ("env", "aloha_sim"): ["dataset=aloha_sim"],
    ("env", "gym"): ["env.id=CartPole-v1", "env.instruction=Balance the pole"],
}
POLICY_GROUPS = ("augmentation", "vision", "text", "adapter", "quant", "fusion", "head", "scheduler", "policy")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
def test_every_option_builds_trains_and_samples(
    group: str, option: str, spec: Spec, backbones: Path, tmp_path: Path
) -> None:
    fake = [o for o in FAKE if not o.startswith(group)]
    if group in ("dataset", "env", "trainer", "logger"):
        fake = NEEDS.get((group, option), [])
    if option == "last_k":  # needs layers to count
        fake = [o for o in fake if not o.startswith("vision")] + ["vision=siglip_tiny"]
    config = compose(*fake, f"{group}={option}", *local(option, backbones))
    check_keys(config)
    if group in POLICY_GROUPS:
        torch.manual_seed(0)
        spec = replace(spec, n_obs_steps=1) if option == "act" else spec  # LeRobot's ACT sees one
        policy = build(config["policy"], "policy", torch.nn.Module, spec=spec, device=torch.device("cpu"))
        policy.train()
        policy.loss(fake_batch(spec, 4))["loss"].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
        policy.eval()
        chunk = policy.act(fake_observation(spec, 2), torch.Generator().manual_seed(0))
        assert chunk.shape == (2, 8, 4)
        assert chunk.isfinite().all()
    elif group == "dataset":
        assert isinstance(
            build(config["dataset"], "dataset"),
            {"fake": FakeSource, "metaworld": MetaworldSource, "mix": MixSource}.get(option, LeRobotSource),
        )
    elif group == "trainer":
        assert isinstance(build(config["trainer"], "trainer"), Trainer)
    else:
        build(config[group], group)


def test_quant_chooses_lora_and_refuses_full() -> None:
    assert compose("quant=4bit")["adapter"]["mode"] == "lora"
    assert compose("quant=8bit", "adapter=frozen")["adapter"]["mode"] == "frozen"


def test_data_sets_without_simulation_choose_env_none() -> None:
    assert compose("dataset=lerobot", "dataset.root=x")["env"]["_target_"] == "provla.env.NoSuite"
    assert compose()["env"]["_target_"] == "provla.env.TwinsSuite"
    assert compose("dataset=metaworld_five")["env"]["_target_"] == "provla.env.MetaworldSuite"


def test_keys_that_nothing_reads_are_errors(spec: Spec) -> None:
    with pytest.raises(ValueError, match=r"nothing reads fusion\.colour='red'.*takes: .*width, hidden"):
        build(compose("+fusion.colour=red")["policy"], "policy", torch.nn.Module, spec=spec, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="nothing reads the key 'speed'"):
        check_keys(compose("+speed=3"))


def test_the_tree_of_the_readme_is_the_tree_on_disk() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree\n```\n")[2].partition("```")[0]
    listed = [line.strip() for line in tree.partition("provla/\n")[2].splitlines() if line.startswith(" ")]
    named = {name.rstrip("/") for line in listed for name in re.split("  +", line)[0].split()}
    there = {path.name for path in (ROOT / "provla").iterdir() if not path.name.startswith("__")}
    assert named == there


def test_the_picture_of_the_house_is_what_the_imports_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import_module("house").main(tmp_path / "house.svg")
    assert (tmp_path / "house.svg").read_text() == (ROOT / "docs" / "house.svg").read_text(), "run python docs/house.py"


def test_a_group_has_a_room_of_its_name_and_an_option_a_class_that_the_room_exports() -> None:
    for folder in (ROOT / "conf").iterdir():
        if folder.is_dir():
            assert (ROOT / "provla" / folder.name).is_dir() or (ROOT / "provla" / f"{folder.name}.py").is_file()
        for file in folder.glob("*.yaml") if folder.is_dir() else ():
            for target in re.findall(r"_target_: (provla\S+)", file.read_text()):
                room, _, name = target.removeprefix("provla.").partition(".")
                assert room == folder.name or folder.name == "backbone", target
                assert re.fullmatch(r"[A-Z]\w+", name)


def test_a_room_exports_what_it_lists() -> None:
    for init in (ROOT / "provla").glob("*/__init__.py"):
        package = import_module(f"provla.{init.parent.name}")
        for name in re.findall(r"^([A-Z]\w+): ", (package.__doc__ or "").partition("\n\n")[2], flags=re.M):
            assert getattr(package, name).__module__.startswith(package.__name__)
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            _ = package.Nothing


def test_no_file_and_no_function_outgrows_a_reader() -> None:
    for file in [*(ROOT / "provla").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        source = file.read_text()
        assert source.count("\n") <= 400, file
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 50, f"{file}: {node.name}"
