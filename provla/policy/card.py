"""README.md of an export, as the Hugging Face Hub reads it: where a policy comes from, what it reached, how it acts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from provla.core.cameras import in_words, sizes_of
from provla.core.files import write_text
from provla.core.manifest import read_manifest
from provla.core.result import Result, read_result
from provla.core.secrets import hide
from provla.policy.folder import run_beside

Kind = Literal["policy", "lerobot", "onnx"]
UNKNOWN = "not known: the policy came without the folder of its run"
USE = {
    "policy": """```python
import provla

policy = provla.load("{folder}"{whose})  # with provla installed; nothing is fetched
# images {images}; state (1,{T},{S}) float32, in the robot's units
actions = policy.act(provla.Observation(images, state, [{instruction!r}]))  # (1,{H},{A}), in the robot's units
```""",
    "lerobot": """```bash
pip install 'provla[lerobot]'
lerobot-eval --policy.path={folder} …
lerobot-rollout --policy.path={folder} …
```
In Python, the same policy without LeRobot: `provla.load("{folder}/policy"{whose})`.""",
    "onnx": """```python
import json
import numpy as np
import onnxruntime

session, about = onnxruntime.InferenceSession("policy.onnx"), json.load(open("policy.json"))
inputs = {{name: np.zeros(i["shape"], i["dtype"]) for name, i in about["inputs"].items()}}  # yours; see policy.json
if "noise" in inputs:
    inputs["noise"] = np.random.standard_normal(inputs["noise"].shape).astype(np.float32)
if "instruction" in inputs:
    inputs["instruction"][0] = about["instructions"].index({instruction!r})
(actions,) = session.run(["actions"], inputs)  # (1,{H},{A}), in the robot's units
```""",
}


def write_card(folder: Path, source: Path, kind: Kind, name: str | None = None, driving: str | None = None) -> None:
    """README.md into the export `folder` of the policy at `source` (a run's `policy/`, or an export beside it). name:
    that the folder will have, where it has another yet. driving: the robot that was named (`Spec.source`).
    """
    write_text(folder / "README.md", hide(card(name or folder.name, source, kind, driving)))


def card(name: str, source: Path, kind: Kind, driving: str | None = None) -> str:
    """The card's text. What a run knows is taken from the folder around `source`, where that is the run of this
    policy; else it is said to be unknown."""
    from huggingface_hub import ModelCardData

    stored = json.loads((source / "config.json").read_text())
    run, result, config = _run(source)
    choices = (result.choices or {}) if result else {}
    repo = _data_id(config)
    tags = ["robotics", "vision-language-action", *(f"{group}={option}" for group, option in sorted(choices.items()))]
    data = ModelCardData(
        library_name="provla",
        pipeline_tag="robotics",
        tags=[tag for tag in tags if not tag.startswith(("logger=", "pruner="))],
        datasets=[repo] if repo else None,
    )
    spec = stored["spec"]
    numbers = {"T": spec["n_obs_steps"], "S": spec["state_size"], "H": spec["horizon"], "A": spec["action_size"]}
    said, sources = driving or spec.get("source"), spec.get("sources")
    told = not sources or (said and kind == "policy")  # there is one, or the export says which
    whose = "" if told else f", source={(said or sources[0])!r}"
    use = USE[kind].format(
        folder=name, images=_images(spec), whose=whose, instruction=spec["instructions"][0], **numbers
    )
    trained = _table(("", ""), list(_trained(stored, config, result, source).items()))
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {run.name if run else name}",
        f"A robot policy of provla: pictures, a state and a sentence in, {spec['horizon']} actions out.",
        "## How it acts",
        use,
        "It knows these sentences: " + "; ".join(f"“{text}”" for text in spec["instructions"]) + ".",
        "## What it was trained on",
        trained,
        "## Results",
        _results(result),
        "## Limits",
        _limits(kind, config),
        f"Published with `hf upload <you>/{name} {name}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _images(spec: Mapping[str, Any]) -> str:
    """What a policy is shown, as its caller writes it."""
    sizes, steps = sizes_of(spec["image_size"], spec["cameras"]), spec["n_obs_steps"]
    if isinstance(spec["image_size"], Mapping):
        each = "; ".join(f"{camera} (1,{steps},3,{h},{w})" for camera, (h, w) in sizes.items())
        return f"a tuple of tensors uint8, one for each camera in this order: {each}"
    h, w = next(iter(sizes.values()))
    return f"(1,{steps},{len(sizes)},3,{h},{w}) uint8, cameras in the order {', '.join(sizes)}"


def _cameras(spec: Mapping[str, Any]) -> str:
    sizes = sizes_of(spec["image_size"], spec["cameras"])
    differ = isinstance(spec["image_size"], Mapping)
    return in_words(sizes) if differ else f"{', '.join(sizes)}, {in_words(sizes)} each"


def _run(source: Path) -> tuple[Path | None, Result | None, Mapping[str, Any]]:
    """The run that trained the policy: its folder, result and configuration; nothing where it is not there or another
    one's."""
    with suppress(ValueError, OSError):
        run, identity = source.resolve().parent, read_manifest(source).get("identity")
        result = read_result(run)
        if identity is not None and result.config_hash == identity and result.status == "completed":
            return run, result, run_beside(source.resolve())
    return None, None, {}


def _data_id(config: Mapping[str, Any]) -> str | None:
    """The Hub's id of what a run learned from."""
    found = (config.get("dataset") or {}).get("repo_id")
    return str(found) if found else None


def _trained(
    stored: Mapping[str, Any], config: Mapping[str, Any], result: Result | None, source: Path
) -> dict[str, str]:
    spec, dataset = stored["spec"], config.get("dataset") or {}
    facts = {
        "cameras": _cameras(spec),
        "state, actions": f"{spec['state_size']} and {spec['action_size']} numbers, in the robot's units",
        "observation steps, actions of a chunk": f"{spec['n_obs_steps']}, {spec['horizon']}",
        "executed": f"{spec['n_action_steps']} actions of a chunk, at {spec['fps']:g} a second",
    }
    if result is None:
        return {"data set": UNKNOWN, **facts, "steps, seed": UNKNOWN}
    data, where = result.data or {}, dataset.get("repo_id") or Path(str(dataset.get("root") or "")).name
    kind = str(dataset.get("_target_", "")).rpartition(".")[2]
    tasks = f": {', '.join(map(str, dataset['tasks']))}" if dataset.get("tasks") else ""
    held = f", {data['held_out']} of them held out" if data.get("held_out") else ""
    return {
        "data set": f"{where} ({kind})" if where else f"{kind}, recorded by scripted experts{tasks}",
        "revision": str(data.get("revision") or dataset.get("revision") or "none"),
        "episodes": f"{data['episodes']} ({data['frames']:,} frames{held})" if data else "not recorded",
        **facts,
        "steps": f"{result.train_steps:,} of {config['trainer'].get('batch_size')}"
        if result.train_steps
        else "not recorded",
        "seeds": f"training {config.get('seed')}, split of the data {dataset.get('split_seed')}",
        "parameters": f"{(result.parameters or {}).get('total', 0):,}",
        "run": f"{result.config_hash}, commit {result.made.get('commit') or 'unknown'}",
    }


def _results(result: Result | None) -> str:
    if result is None:
        return f"Results are unknown ({UNKNOWN})."
    told = []
    if result.success:
        rows = [
            (
                "**all tasks**" if task == "success_rate" else task,
                f"{cell['rate']:.0%}",
                f"{cell['low']:.0%} – {cell['high']:.0%}",
                f"{cell['episodes']:g}",
            )
            for task, cell in sorted(result.success.items(), key=lambda item: item[0] == "success_rate")
        ]
        seed = result.seed
        told += [
            (
                f"Closed-loop episodes in simulation, of one training (seed {seed}); intervals are Wilson's, 95 %, of "
                "these episodes: another training seed may lie outside of them."
            ),
            _table(("task", "success", "95 % interval", "episodes"), rows),
        ]
    else:
        told += ["Success was not measured: the run had no simulation."]
    offline = {k: v for k, v in result.metrics.items() if "/" not in k and k != "success_rate"}
    if offline:
        told += [
            "Held-out demonstrations, in the robot's units:",
            _table(("metric", "value"), [(key, f"{value:.4g}") for key, value in offline.items()]),
        ]
    if result.ms_per_chunk is not None:
        told.append(f"{result.ms_per_chunk:.0f} ms per action chunk on the machine that trained it.")
    return "\n\n".join(told)


def _limits(kind: Kind, config: Mapping[str, Any]) -> str:
    told = ["It has seen what is said above and nothing else: other cameras, places, lights or sentences may not work."]
    told += ["It knows no force limit and no workspace limit; a robot needs its own."]
    if config.get("env", {}).get("_target_", "").endswith("NoSuite") or not config:
        told.append("It was not tried in closed loop before this export, as far as this folder knows.")
    else:
        told.append("Its results are of a simulation; success on a robot was not measured.")
    if kind == "onnx":
        told.append("The graph knows the sentences of policy.json alone, and takes one observation at a time.")
    return " ".join(told)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
