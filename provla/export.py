"""python -m provla.export checkpoint=outputs/<run>: one whole policy folder, adapters merged, nothing left to fetch;
with lerobot=true the policy as it is, as a policy of LeRobot's; with onnx=true one graph for ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.command.entry import command


@command("export", paths=("checkpoint",), free=("bases",))
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/export.yaml."""
    from provla.core.files import atomic
    from provla.core.progress import console
    from provla.policy.card import Kind, write_card
    from provla.policy.folder import find_policy

    source = find_policy(Path(config["checkpoint"]).expanduser())
    ways: dict[Kind, str] = {"lerobot": "lerobot", "onnx": f"{source.name}-onnx"}
    asked = [way for way in ways if config[way]]
    if len(asked) > 1:
        raise ValueError("lerobot=true and onnx=true are two exports; give one at a time")
    name = ways[asked[0]] if asked else f"{source.name}-full"
    target = Path(config["output"]).expanduser() if config["output"] else source.with_name(name)
    if target.exists():
        raise ValueError(f"output={str(target)!r} exists already; nothing was changed. Choose another, or delete it.")
    with atomic(target) as partial:  # with its card, or not at all
        said = _written(config, source, partial)
        write_card(partial, source, asked[0] if asked else "policy", target.name, config["source"])
    console.print(said.format(target=target, size=_megabytes(target)))


def _written(config: dict[str, Any], source: Path, target: Path) -> str:
    """What is to be said of the export: its `target` will be another by then."""
    from provla.core.machine import find_device
    from provla.policy.folder import export_policy

    bases, trust, driving = config["bases"], config["trust"], config["source"]
    if config["lerobot"]:
        from provla.plugin.folder import export_lerobot

        export_lerobot(source, target, find_device(config["device"]), bases, trust, driving)
        return "written to {target}: give it to lerobot-eval or lerobot-rollout as --policy.path"
    if config["onnx"]:
        from provla.policy.onnx import export_onnx

        words, steps = config["instructions"], config["sampler_steps"]
        export_onnx(source, target, words, bases, trust, steps, driving)
        return "written to {target}: policy.onnx, policy.json, which names its inputs, and README.md"
    merged = export_policy(source, target, find_device(config["device"]), bases, trust, driving)
    layers = ", ".join(f"{count} layers of {key}" for key, count in merged.items())
    return f"{f'merged {layers}' if merged else 'nothing to merge'}; {{size}} written to {{target}}"


def _megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
