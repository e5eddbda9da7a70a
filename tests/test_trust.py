"""What somebody hands in stays data: stored configurations, model folders, weights. And what the tree itself never does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, ROOT, compose
from torch import nn

from provla.build import build
from provla.manifest import MANIFEST, write_manifest
from provla.policy_folder import load_policy, save_policy
from provla.trust import check_stored, modules, targets
from provla.types import Spec

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, spec: Spec) -> Path:
    """The folder of a run with its policy, as a training leaves it."""
    folder = tmp_path / "run"
    config = compose(*FAKE)
    sizes = replace(spec, cameras=("front",), n_obs_steps=1, action_size=3, joint_groups={"arm": [0, 1, 2]})
    save_policy(folder / "policy", build(config["policy"], "policy", nn.Module, spec=sizes, device=CPU), config["policy"], sizes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change(file: Path, path: str, value: Any) -> None:
    """Sets a dotted key of a JSON file, as somebody would who writes the manifest as well."""
    config = json.loads(file.read_text())
    node, (*above, last) = config, path.split(".")
    for key in above:
        node = node[key]
    node[last] = value
    file.write_text(json.dumps(config))
    if (file.parent / MANIFEST).exists():
        write_manifest(file.parent)


ATTACKS = [
    ("config.json", "env", {"_target_": "os.system", "command": "touch {canary}"}),
    ("config.json", "dataset", {"_target_": "subprocess.Popen", "args": ["touch", "{canary}"]}),
    ("config.json", "trainer", {"_target_": "shutil.rmtree", "path": "{victim}"}),
    ("config.json", "logger", {"_target_": "evil_idea.Thing"}),
    ("config.json", "policy.head", {"_target_": "evil_idea.Thing", "_partial_": True}),
    ("config.json", "unknown", [{"deep": [{"_target_": "evil_idea.Thing"}]}]),
    ("policy/config.json", "policy", {"_target_": "evil_idea.Thing"}),
    ("policy/config.json", "policy.fusion", {"_target_": "evil_idea.Thing", "_partial_": True}),
    ("policy/config.json", "policy.vision", {"_target_": "provla.vision.SideBySide", "_partial_": True, "towers": {"a": {"_target_": "evil_idea.Thing"}}}),
    ("policy/config.json", "policy.vision.adapter", {"_target_": "evil_idea.Thing"}),
    ("policy/config.json", "policy.quant", {"_target_": "evil_idea.Thing"}),
    ("policy/config.json", "policy.normalization", {"state": "min_max", "action": {"_target_": "evil_idea.Thing"}}),
]


@pytest.mark.parametrize(("file", "key", "node"), ATTACKS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_stored_configuration_runs_and_imports_nothing(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, file: str, key: str, node: Any
) -> None:
    canary, victim = tmp_path / "canary", tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "evil_idea.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    filled = json.loads(json.dumps(node).replace("{canary}", str(canary)).replace("{victim}", str(victim)))
    change(run / file, key, filled)
    code, _, err = command("evaluate", f"checkpoint={run}", "device=cpu", f"hydra.run.dir={tmp_path / 'out'}")
    assert code == 2
    target = [one.name for one in targets(filled)][-1]
    assert f"_target_={target!r} in {run / file}: a stored configuration may name provla's own parts alone" in err
    assert f"trust=[{target.rpartition('.')[0]}]" in err
    if file.startswith("policy"):
        with pytest.raises(ValueError, match="own parts alone"):
            load_policy(run / "policy", CPU)
        assert command("export", f"checkpoint={run}")[0] == 2
    assert not canary.exists()
    assert victim.exists()
    assert "evil_idea" not in sys.modules


@pytest.mark.parametrize(
    ("group", "target", "message"),
    [
        ("env", "provla.fusion.FiLM", r"here: provla\.env\.<Class>"),  # another group's
        ("fusion", "provla.fusion.FiLM.__init__", "own parts alone"),
        ("fusion", "provla.fusion._Hidden", "own parts alone"),
        ("fusion", "provla.fusion", "own parts alone"),
        ("fusion", "fusion.FiLM", "own parts alone"),
        ("fusion", "provla.fusion.os.system", "cannot be imported"),
        ("env", "provla.env.os.system", "cannot be imported"),
        ("dataset", "provla.dataset.Path", "is a class of pathlib"),  # imported there, written elsewhere
        ("env", "provla.env.np", "no class but a module"),
        ("env", "provla.env.require_opengl", "no class but a function"),
        ("env", "provla.env.MetaworldExpert", "is nothing that env can use: it has no episodes or make"),
        ("fusion", "provla.fusion.Nothing", "cannot be imported"),
        ("fusion", 7, "own parts alone"),
        ("fusion", {"_target_": "os.system"}, "own parts alone"),
        ("fusion", "", "own parts alone"),
        ("fusion", "provla.fusion.FiLM\n", "own parts alone"),
    ],
)
def test_what_a_group_may_name(group: str, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stored({group: {"_target_": target}}, "x.json")


def test_every_option_of_conf_may_be_stored() -> None:
    """The rule knows no list: whatever the options of conf/ name passes, also that of an arm that is added tomorrow."""
    groups = {"image": "vision", "text": "text"}  # of backbone/
    named = [(file, name) for file in (ROOT / "conf").glob("*/*.yaml") for name in re.findall(r"_target_: (\S+)", file.read_text())]
    assert len(named) > 40
    for file, name in named:
        check_stored({groups[file.stem] if file.parent.name == "backbone" else file.parent.name: {"_target_": name}}, file)


def test_other_modules_run_when_their_names_are_given(run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_ideas.py").write_text("from subprocess import Popen\nfrom provla.fusion import ConcatMLP\nclass Mine(ConcatMLP): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, key in (("config.json", "fusion._target_"), ("config.json", "policy.fusion._target_"), ("policy/config.json", "policy.fusion._target_")):
        change(run / file, key, "our_ideas.Mine")
    assert command("evaluate", f"checkpoint={run}", "device=cpu")[0] == 2
    code, _, err = command("evaluate", f"checkpoint={run}", "device=cpu", "trust=[our_ideas]", f"hydra.run.dir={tmp_path / 'out'}")
    assert "nothing was imported" not in err
    assert code == 0, err
    import provla

    assert type(provla.load(run, device="cpu", trust=["our_ideas"]).fusion).__name__ == "Mine"
    assert modules({"fusion": {"_target_": "our_ideas.Mine"}}) == ["our_ideas"]
    with pytest.raises(ValueError, match=r"trust='our_ideas': expected a list of modules"):
        provla.load(run, device="cpu", trust="our_ideas")
    # The module's own classes, and not what it imported.
    change(run / "policy/config.json", "policy.fusion._target_", "our_ideas.Popen")
    with pytest.raises(ValueError, match="is a class of subprocess"):
        provla.load(run, device="cpu", trust=["our_ideas"])
