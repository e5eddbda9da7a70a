"""python -m provla.evaluate checkpoint=outputs/<run>: judge a run's policy again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.signals import early

if __name__ == "__main__":
    early()  # before the imports that take long

from provla.command import command


@command("evaluate", lists=("scheduler.num_inference_steps",), paths=("checkpoint",))
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float | None:
    """See conf/evaluate.yaml."""
    from provla.run import evaluate, evaluate_steps

    scheduler = {key: value for key, value in config["scheduler"].items() if value is not None}
    asked = (
        Path(config["checkpoint"]).expanduser(),
        config["device"],
        {"env": config["env"], "scheduler": scheduler},
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
