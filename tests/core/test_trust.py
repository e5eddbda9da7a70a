"""What somebody hands in stays data: stored configurations, model folders, weights. And what the tree itself never
does.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, ROOT, compose
from safetensors.torch import load_file
from torch import nn

from provla.core.build import build
from provla.core.manifest import MANIFEST, write_manifest
from provla.core.trust import check_stored, modules, targets
from provla.core.types import Spec
from provla.policy.folder import load_policy, save_policy

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, spec: Spec) -> Path:
    """The folder of a run with its policy, as a training leaves it."""
    folder = tmp_path / "run"
    config = compose(*FAKE)
    sizes = replace(spec, cameras=("front",), n_obs_steps=1, action_size=3, joint_groups={"arm": [0, 1, 2]})
    save_policy(
        folder / "policy", build(config["policy"], "policy", nn.Module, spec=sizes, device=CPU), config["policy"], sizes
    )
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
    (
        "policy/config.json",
        "policy.vision",
        {"_target_": "provla.vision.SideBySide", "_partial_": True, "towers": {"a": {"_target_": "evil_idea.Thing"}}},
    ),
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
    (tmp_path / "evil_idea.py").write_text(
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Thing: pass\n"
    )
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
        ("dataset", "provla.dataset.lerobot.Path", "is a class of pathlib"),  # imported there, written elsewhere
        ("env", "provla.env.metaworld.np", "no class but a module"),
        ("env", "provla.env.mujoco.require_opengl", "no class but a function"),
        ("env", "provla.env.metaworld.MetaworldTask", "is nothing that env can use: it has no episodes or make"),
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
    named = [
        (file, name)
        for file in (ROOT / "conf").glob("*/*.yaml")
        for name in re.findall(r"_target_: (\S+)", file.read_text())
    ]
    assert len(named) > 40
    for file, name in named:
        check_stored(
            {groups[file.stem] if file.parent.name == "backbone" else file.parent.name: {"_target_": name}}, file
        )


def test_other_modules_run_when_their_names_are_given(
    run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our_ideas.py").write_text(
        "from subprocess import Popen\nfrom provla.fusion import ConcatMLP\nclass Mine(ConcatMLP): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, key in (
        ("config.json", "fusion._target_"),
        ("config.json", "policy.fusion._target_"),
        ("policy/config.json", "policy.fusion._target_"),
    ):
        change(run / file, key, "our_ideas.Mine")
    assert command("evaluate", f"checkpoint={run}", "device=cpu")[0] == 2
    code, _, err = command(
        "evaluate", f"checkpoint={run}", "device=cpu", "trust=[our_ideas]", f"hydra.run.dir={tmp_path / 'out'}"
    )
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


def part(group: str, *overrides: str, **sizes: Any) -> Any:
    """A vision or text encoder, built from its node alone."""
    return build(
        {k: v for k, v in compose(*overrides)[group].items() if k not in ("adapter", "quant")}, group, nn.Module
    )(**sizes)


def planted(canary: Path) -> str:
    return f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"


@pytest.mark.parametrize("place", ["tokenizer", "model", "processor"])
def test_code_beside_a_model_neither_runs_nor_asks(
    tmp_path: Path, backbones: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """`auto_map`: transformers would ask on stdin, and a y would run it."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append("") or "y")
    canary = tmp_path / "canary"
    model = shutil.copytree(backbones / ("siglip" if place == "processor" else "bert"), tmp_path / "model")
    (model / "evil.py").write_text(planted(canary) + "class Evil: pass\n")
    if place == "tokenizer":
        change(model / "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Evil", None]})
        change(model / "tokenizer_config.json", "tokenizer_class", "Evil")
    elif place == "processor":
        change(model / "preprocessor_config.json", "auto_map", {"AutoImageProcessor": "evil.Evil"})
        change(model / "preprocessor_config.json", "image_processor_type", "Evil")
    else:
        change(model / "config.json", "auto_map", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    group, option = ("vision", "siglip_base") if place == "processor" else ("text", "minilm")
    node = compose(*[o for o in FAKE if not o.startswith(group)], f"{group}={option}", f"{group}.name={model}")[
        "policy"
    ]
    if place == "model":  # transformers' own class is asked for by name and reads it without that code
        build(node, "policy", nn.Module, spec=spec, device=CPU)
    else:
        with pytest.raises(
            ValueError,
            match=r"cannot be loaded without running Python code that lies beside it \(auto_map\), and provla never "
            r"runs that",
        ):
            build(node, "policy", nn.Module, spec=spec, device=CPU)
    assert not asked
    assert not canary.exists()


class Bomb:
    """A pickle that touches a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def test_pickled_weights(tmp_path: Path, backbones: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder never; of the Hub at a pinned commit where there is nothing else, and then its tensors alone."""
    from huggingface_hub import constants

    commit, canary = "1f" * 20, tmp_path / "canary"
    hub = tmp_path / "hub" / "models--some--clip"
    weights = load_file(backbones / "clip" / "model.safetensors")
    for what in ("tensors", "bomb"):
        folder = shutil.copytree(backbones / "clip", tmp_path / what / "clip")
        (folder / "model.safetensors").unlink()
        torch.save(weights if what == "tensors" else {"a": Bomb(canary)}, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="the folder does not hold what is needed: .*safetensors"):
            part("vision", "vision=clip_base", f"vision.name={folder}", num_images=1, image_size=(32, 32))
        shutil.rmtree(hub, ignore_errors=True)
        shutil.copytree(folder, hub / "snapshots" / commit)
        for name in ("model.safetensors", "model.safetensors.index.json", "adapter_config.json"):
            (hub / ".no_exist" / commit / name).parent.mkdir(parents=True, exist_ok=True)
            (hub / ".no_exist" / commit / name).touch()
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text(commit)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

        def read(revision: str) -> Any:
            return part(
                "vision",
                "vision=clip_base",
                "vision.name=some/clip",
                f"vision.revision={revision}",
                num_images=1,
                image_size=(32, 32),
            )

        with pytest.raises(
            ValueError,
            match=r"has no safetensors file on the Hugging Face Hub, only a pickle .*set vision\.revision to the "
            r"commit",
        ):
            read("main")
        if what == "tensors":
            found = read(commit).model.state_dict()
            assert all(torch.equal(found[name], weights[name]) for name in found if name in weights)
            assert any(name in weights for name in found)
        else:
            with pytest.raises(ValueError, match="vision.name='some/clip'"):
                read(commit)
    assert not canary.exists()


def test_a_baselines_pretrained_weights_are_tensors(
    tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision unpickles what lies in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"a": Bomb(tmp_path / "canary")}, cache / "resnet18-f37072fd.pth")
    node = compose(*FAKE, "policy=act", "policy.options.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1")[
        "policy"
    ]
    with pytest.raises(ValueError, match="holds more than tensors, and nothing of it was run"):
        build(node, "policy", nn.Module, spec=replace(spec, n_obs_steps=1), device=CPU)
    assert not (tmp_path / "canary").exists()


def test_an_attention_kernel_from_the_hub_is_refused(tmp_path: Path, backbones: Path) -> None:
    model = shutil.copytree(backbones / "bert", tmp_path / "model")
    change(model / "config.json", "attn_implementation", "kernels-community/evil")
    for named in (f"text.name={model}", "+text.config.attn_implementation=a/b"):
        overrides = [named, "text.pretrained=false"] if "config" in named else [named]
        with pytest.raises(ValueError, match="which is code from the Hub"):
            part("text", "text=minilm", *overrides, instructions=("a",))


FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "dill.load",
    "dill.loads",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
    "pd.read_pickle",
    "runpy.run_path",
}
OPTIONS = {
    "weights_only": False,
    "trust_remote_code": True,
    "allow_pickle": True,
    "shell": True,
    "use_safetensors": False,
}
# use_safetensors=False: a pinned commit's tensors, see `load_weights`.
EXCEPTIONS = {
    # What LeRobot's own asynchronous server answers, as its client reads it.
    ("tests/serving/test_serve.py", "pickle.loads"),
    ("provla/core/hub.py", "use_safetensors=False"),
    # LeRobot's configurations: JSON, read into the types of a dataclass.
    ("provla/plugin/modeling_provla.py", "ProvlaConfig.from_pretrained that does not say trust_remote_code=False"),
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def forbidden(source: str) -> Iterator[str]:
    """Calls that run what they read, and switches that allow it; words in strings and comments are none."""
    tree = ast.parse(source)
    named = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node)
            if named.get(name, name) in FORBIDDEN:
                yield named.get(name, name)
        if (
            isinstance(node, ast.keyword)
            and node.arg in OPTIONS
            and isinstance(node.value, ast.Constant)
            and node.value.value is OPTIONS[node.arg]
        ):
            yield f"{node.arg}={node.value.value}"
        if (
            isinstance(node, ast.Call)
            and dotted(node.func) in ("np.load", "numpy.load")
            and not any(k.arg == "allow_pickle" for k in node.keywords)
        ):
            yield f"{dotted(node.func)} that does not say allow_pickle=False"
        if (
            isinstance(node, ast.Call)
            and dotted(node.func).endswith(".from_pretrained")
            and not any(k.arg == "trust_remote_code" for k in node.keywords)
        ):
            yield f"{dotted(node.func)} that does not say trust_remote_code=False"


def test_the_tree_loads_no_code() -> None:
    tracked = [f for part in ("provla", "hydra_plugins", "benchmarks", "tests") for f in (ROOT / part).rglob("*.py")]
    assert len(tracked) > 60
    found = [(str(file.relative_to(ROOT)), what) for file in tracked for what in forbidden(file.read_text())]
    # Those load what they wrote.
    ours = [(file, what) for file, what in found if not (file.startswith("tests/") and "from_pretrained" in what)]
    assert set(ours) == EXCEPTIONS


def test_the_search_for_such_calls_finds_them() -> None:
    for line in (
        "import pickle; pickle.loads(b'')",
        "from pickle import loads as read; read(b'')",
        "torch.load('x')",
        "f = eval",
        "np.load('x')",
        "subprocess.run('x', shell=True)",
        "AutoModel.from_pretrained('x')",
        "f(trust_remote_code=True)",
        "yaml.load(x, Loader=l)",
        "os.system('x')",
    ):
        assert list(forbidden(line)), line
    for line in (
        "'torch.load(x)'",
        "# eval(x)",
        "policy.eval()",
        "yaml.safe_load(x)",
        "f(shell=False)",
        "np.load(x, allow_pickle=False)",
        "re.compile('x')",
    ):
        assert not list(forbidden(line)), line
