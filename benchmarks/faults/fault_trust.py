"""Files that bite: configurations, models and weights that would run code where they are loaded. A canary file tells
whether any did.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import torch
from safetensors.torch import load_file
from small import FAKE, compose, config, hushed, train

from provla.core.identity import NODES
from provla.core.manifest import read_manifest, write_manifest

PARTS = ("vision", "text", "fusion", "head", "scheduler", "augmentation", "adapter", "quant")


def _attacks(place: Path) -> Iterator[dict[str, Any]]:
    """Nodes that touch `place`/canary, or delete `place`/victim, where they are built; some where their module is
    imported.
    """
    yield {"_target_": "os.system", "command": f"touch {place}/canary"}
    yield {"_target_": "subprocess.Popen", "args": ["touch", f"{place}/canary"]}
    yield {"_target_": "shutil.rmtree", "path": f"{place}/victim"}
    yield {"_target_": "evil_idea.Thing"}
    yield {"_target_": "builtins.exec", "source": f"open({str(place / 'canary')!r}, 'w')"}


def _trap(place: Path) -> Path:
    """A victim, a module in the working folder that bites when it is imported, and the folder of a finished run."""
    (place / "victim").mkdir()
    (place / "evil_idea.py").write_text(f"open({str(place / 'canary')!r}, 'w')\nclass Thing: pass\n")
    error, _ = train(place / "run", config("trainer.max_steps=1"))
    if error:
        raise RuntimeError(error)
    return place / "run"


def _bitten(place: Path) -> bool:
    return (place / "canary").exists() or not (place / "victim").is_dir() or "evil_idea" in sys.modules


def _loaded(run: Path, out: Path, policy: bool = True) -> list[str]:
    """What those say that refuse a run: evaluating it and, where its policy is what bites, loading and
    exporting that.
    """
    import provla
    from provla.policy.folder import export_policy
    from provla.run.evaluate import evaluate

    cpu, said = torch.device("cpu"), []
    ways = (
        lambda: evaluate(run, "cpu", {"env": {}, "scheduler": {}, "root": {}}, out),
        lambda: provla.load(run, device="cpu"),
        lambda: export_policy(run / "policy", out / "policy", cpu),
    )
    for load in ways if policy else ways[:1]:
        try:
            load()
        except ValueError as error:
            said.append(str(error))
    return said


def _sign(folder: Path) -> None:
    """Hashes that fit again, as whoever tampers with a folder would write them; they keep out accidents, not intent."""
    facts = {key: value for key, value in read_manifest(folder).items() if key not in ("version", "files")}
    write_manifest(folder, **facts)


def _nested(node: dict[str, Any], depth: int) -> Any:
    return node if depth == 0 else [{"towers": {"a": _nested(node, depth - 1)}}]


def fault_stored_configurations(place: Path) -> tuple[int, int, str]:
    """a stored config.json whose nodes run code (os.system, Popen, rmtree, exec, a module in the working folder), in
    every group and depth
    """
    run, here = _trap(place), Path.cwd()
    tried = survived = 0
    os.chdir(place)
    sys.path.insert(0, str(place))
    try:
        with hushed():
            for file, keys in (("config.json", NODES), ("policy/config.json", ("", *PARTS))):
                whole = (run / file).read_text()
                for key in keys:
                    for number, attack in enumerate(_attacks(place)):
                        stored = json.loads(whole)
                        node = stored["policy"] if file.startswith("policy") else stored
                        evil = attack if number % 2 == 0 else {**attack, "_partial_": True}
                        if key == "":
                            stored["policy"] = evil
                        else:
                            node[key] = evil if number < 4 else {**node[key], "more": _nested(evil, 3)}
                        (run / file).write_text(json.dumps(stored))
                        _sign(run / "policy")
                        said = _loaded(run, place / "out", file.startswith("policy"))
                        tried += 1
                        refused = sum("own parts alone" in text for text in said)
                        survived += refused == (3 if file.startswith("policy") else 1) and not _bitten(place)
                (run / file).write_text(whole)
    finally:
        os.chdir(here)
        sys.path.remove(str(place))
    return tried, survived, "each refused by name before anything was imported"


def _model(folder: Path) -> Path:
    """A small BERT with its tokenizer, in the form that the Hub has them."""
    import transformers as t

    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    t.BertModel(t.BertConfig(**small)).save_pretrained(folder)
    t.ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _say_yes() -> None:
    """Puts `y` after `y` on this process's stdin."""
    answers, question = os.pipe()
    os.write(question, b"y\n" * 100)
    os.dup2(answers, 0)


def _run(place: Path, name: str, model: Path) -> tuple[int, str]:
    """Trains with a model folder as text encoder, in a process that says yes to everything."""
    small = [o for o in processes.SMALL if not o.startswith("logger")]
    arguments = [
        *small,
        "logger=none",
        "trainer.max_steps=1",
        "text=minilm",
        f"text.name={model}",
        f"hydra.run.dir={place / name}",
    ]
    code = processes.wait(processes.start(arguments, place / f"{name}-log", prepare=_say_yes), 120)
    return code, (place / f"{name}-log" / "log.txt").read_text()


def fault_code_beside_a_model(place: Path) -> tuple[int, int, str]:
    """model folders with code of their own (auto_map in configuration, tokenizer, both), and a y on stdin"""
    survived = 0
    cases = {
        "config": ("config.json",),
        "tokenizer": ("tokenizer_config.json",),
        "both": ("config.json", "tokenizer_config.json"),
    }
    for name, files in cases.items():
        model = _model(place / name)
        (model / "evil.py").write_text(f"open({str(place / 'canary')!r}, 'w')\nclass Evil: pass\n")
        if "config.json" in files:
            _change(model / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
        if "tokenizer_config.json" in files:
            _change(
                model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil"
            )
        code, log = _run(place, f"run-{name}", model)
        right = code == 2 and "provla never runs that" in log if "tokenizer_config.json" in files else code == 0
        survived += right and not (place / "canary").exists() and "[y/N]" not in log and "Traceback" not in log
    return len(cases), survived, "refused in words; where transformers itself knows the model, its own class reads it"


class _Bomb:
    """A pickle that touches a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def fault_pickled_weights(place: Path) -> tuple[int, int, str]:
    """pickled weights with code in them: a model's .bin, a run's weights, a checkpoint, torchvision's cache"""
    canary, survived = place / "canary", 0
    model = _model(place / "model")
    (model / "model.safetensors").unlink()
    torch.save({"a": _Bomb(canary)}, model / "pytorch_model.bin")
    code, log = _run(place, "run-bin", model)
    survived += code == 2 and "safetensors" in log and not canary.exists()

    error, _ = train(place / "run", config("trainer.max_steps=2"))
    if error:
        raise RuntimeError(error)
    torch.save({"a": _Bomb(canary)}, place / "run" / "policy" / "weights.safetensors")
    _sign(place / "run" / "policy")
    with hushed():
        survived += len(_loaded(place / "run", place / "out")) == 3 and not canary.exists()

    shutil.rmtree(place / "run" / "policy")
    (place / "run" / "result.json").unlink()
    for file in (place / "run" / "checkpoints").glob("step_*/*.safetensors"):
        assert load_file(file)
        torch.save({"a": _Bomb(canary)}, file)
        _sign(file.parent)
    error, _ = train(place / "run", config("trainer.max_steps=2"))
    survived += error.startswith("ValueError") and not canary.exists()

    cache = place / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"a": _Bomb(canary)}, cache / "resnet18-f37072fd.pth")
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(place / "torch")
    try:
        act = [
            o
            for o in FAKE
            if o.partition("=")[0].partition(".")[0] in ("dataset", "horizon", "n_action_steps", "trainer", "device")
        ]
        asked = compose(
            *act,
            "logger=none",
            "policy=act",
            "policy.options.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1",
        )
        error, _ = train(place / "act", asked)
    finally:
        os.environ.pop("TORCH_HOME")
        if before is not None:
            os.environ["TORCH_HOME"] = before
    survived += "holds more than tensors" in error and not canary.exists()
    return 4, survived, "each refused; nothing in them ran"
