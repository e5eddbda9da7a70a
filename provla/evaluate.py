"""python -m provla.evaluate checkpoint=outputs/<run>: judge a run's policy again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provla.command import command


@command("evaluate")
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float:
    """See conf/evaluate.yaml."""
    from provla.run import evaluate

    changes = {"env": config["env"], "scheduler": config["scheduler"]}
    return float(evaluate(Path(config["checkpoint"]).expanduser(), config["device"], changes, folder, config["bases"])["objective"]["value"])


if __name__ == "__main__":
    main()
