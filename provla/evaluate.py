"""python -m provla.evaluate checkpoint=outputs/<run>: judge a run's policy again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.core.signals import early

if __name__ == "__main__":
    early()  # before the imports that take long

from provla.command.entry import command

KEYS = ("checkpoint", "n_action_steps", "eval_episodes", "env", "scheduler", "bases", "trust", "device", "data_dir")


@command(
    "evaluate", free=("env", "scheduler", "bases"), lists=("scheduler.num_inference_steps",), paths=("checkpoint",)
)
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float | None:
    """See conf/evaluate.yaml."""
    from provla.run.evaluate import evaluate, evaluate_steps

    if unknown := [key for key in config if key not in KEYS]:
        raise ValueError(
            f"nothing reads {unknown[0]}={config[unknown[0]]!r}; valid: "
            f"{', '.join(key for key in KEYS if key in config)}, env.…, scheduler.…"
        )
    root = {key: config[key] for key in ("n_action_steps", "eval_episodes") if config[key] is not None}
    scheduler = {key: value for key, value in config["scheduler"].items() if value is not None}
    asked = (
        Path(config["checkpoint"]).expanduser(),
        config["device"],
        {"env": config["env"], "scheduler": scheduler, "root": root},
        folder,
        config["bases"],
        config["trust"],
    )
    steps = scheduler.get("num_inference_steps")
    result = evaluate_steps(*asked, steps=steps) if isinstance(steps, list) else evaluate(*asked)
    value: float | None = result["objective"]["value"]
    return value


if __name__ == "__main__":
    main()
