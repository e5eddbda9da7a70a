"""python -m provla.evaluate checkpoint=outputs/<run>: judge a run's policy again; check=env: try out a world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command
from provla.core.files import ROOT

KEYS = (
    "checkpoint",
    "n_action_steps",
    "eval_episodes",
    "source",
    "env",
    "execution",
    "perturb",
    "scheduler",
    "bases",
    "trust",
    "device",
    "data_dir",
)


@command(
    "evaluate",
    free=("env", "execution", "scheduler", "bases"),
    lists=("scheduler.num_inference_steps", "perturb"),
    paths=("checkpoint",),
)
def judge(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float | None:
    """See conf/evaluate.yaml."""
    from provla.core.checks import check_values
    from provla.core.identity import Root
    from provla.run.evaluate import evaluate, evaluate_steps
    from provla.run.survival import factors, survive

    if unknown := [key for key in config if key not in (*KEYS, "check")]:
        raise ValueError(
            f"nothing reads {unknown[0]}={config[unknown[0]]!r}; valid: "
            f"{', '.join(key for key in KEYS if key in config)}, env.…, scheduler.…"
        )
    if config["check"] is not None:
        raise ValueError(f"check={config['check']!r}; valid: env, with env=<a world>, or null")
    if not config["checkpoint"]:
        raise ValueError("checkpoint has no value; give checkpoint=…")
    check_values(Root, {"perturb": config["perturb"]}, "")
    root = {key: config[key] for key in ("n_action_steps", "eval_episodes", "source") if config[key] is not None}
    scheduler = {key: value for key, value in config["scheduler"].items() if value is not None}
    asked = (
        Path(config["checkpoint"]).expanduser(),
        config["device"],
        {"env": config["env"], "execution": config["execution"], "scheduler": scheduler, "root": root},
        folder,
        config["bases"],
        config["trust"],
    )
    # Before the first episode is played.
    levels = factors(asked[0], asked[2], asked[5], config["perturb"]) if config["perturb"] else {}
    steps = scheduler.get("num_inference_steps")
    if isinstance(steps, list):
        if levels:
            raise ValueError("perturb with several scheduler.num_inference_steps: give one of them at a time")
        result = evaluate_steps(*asked, steps=steps)
    else:
        result = evaluate(*asked)
    if levels:
        result.perturb = survive(*asked, levels=levels)
        result.write(folder)
    return result.objective.value if result.objective else None


@command("check_env")
def check_env(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/check_env.yaml."""
    from rich.table import Table

    from provla.core.build import build
    from provla.core.progress import console
    from provla.env.contract import check_contract

    suite = build(config["env"], "env")
    if not getattr(suite, "episodes", True):
        raise ValueError(f"env={choices['env']} simulates nothing; name a world to check: env=metaworld, or your own")
    table = Table(title=f"env={choices['env']}, tried out", title_justify="left")
    for column in ("what", "found", "kept"):
        table.add_column(column, overflow="fold")
    rows = list(check_contract(suite))
    for row in rows:
        table.add_row(row.what, row.found, "yes" if row.kept else "[bold]no[/bold]")
    console.print(table)
    if broken := [row for row in rows if not row.kept]:
        raise ValueError(f"env={choices['env']} breaks its contract: {broken[0].what}: {broken[0].found}")


def main() -> None:
    """One command with two faces: a run's policy, or a world."""
    if "check=env" in sys.argv[1:]:
        sys.argv += _own_data(sys.argv[1:])
        check_env()
    else:
        judge()


def _own_data(arguments: list[str]) -> list[str]:
    """`dataset=<name>` for a shipped world with data of its name, from which it takes its tasks and cameras."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    name = given.get("env", "none")
    own = "dataset" not in given and (ROOT / "conf" / "dataset" / f"{name}.yaml").is_file()
    return [f"dataset={name}"] if own else []


if __name__ == "__main__":
    main()
