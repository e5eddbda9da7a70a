"""python -m provla.evaluate checkpoint=outputs/<run>: judge a run's policy again; checkpoint=[a,b] or study=<study>:
several; check=env: try out a world.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command
from provla.core.files import ROOT

KEYS = (
    "checkpoint",
    "study",
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
    lists=("scheduler.num_inference_steps", "perturb", "checkpoint"),
    paths=("checkpoint",),
)
def judge(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> float | None:
    """See conf/evaluate.yaml."""
    from provla.core.checks import check_values
    from provla.core.identity import Root
    from provla.core.machine import find_device
    from provla.run.evaluate import evaluate, evaluate_steps, load_judged
    from provla.run.survival import factors, survive

    if unknown := [key for key in config if key not in (*KEYS, "check")]:
        raise ValueError(
            f"nothing reads {unknown[0]}={config[unknown[0]]!r}; valid: "
            f"{', '.join(key for key in KEYS if key in config)}, env.…, scheduler.…"
        )
    if config["check"] is not None:
        raise ValueError(f"check={config['check']!r}; valid: env, with env=<a world>, or null")
    check_values(Root, {"perturb": config["perturb"]}, "")
    root = {key: config[key] for key in ("n_action_steps", "eval_episodes", "source") if config[key] is not None}
    scheduler = {key: value for key, value in config["scheduler"].items() if value is not None}
    changes = {"env": config["env"], "execution": config["execution"], "scheduler": scheduler, "root": root}
    how = config["device"], changes, folder, config["bases"], config["trust"]
    steps, perturb = scheduler.get("num_inference_steps"), config["perturb"]
    if isinstance(steps, list) and perturb:
        raise ValueError("perturb with several scheduler.num_inference_steps: give one of them at a time")
    if (runs := _several(config)) is not None:
        from provla.run.several import evaluate_several

        evaluate_several(runs, *how, steps=steps if isinstance(steps, list) else (), perturb=perturb)
        return None
    run = Path(config["checkpoint"]).expanduser()
    # Before the first episode is played.
    levels = factors(run, changes, config["trust"], perturb) if perturb else {}
    if isinstance(steps, list):
        result = evaluate_steps(run, *how, steps=steps)
    elif levels:
        loaded = load_judged(run, find_device(config["device"]), changes, config["bases"], config["trust"])
        judged = partial(evaluate, loaded=loaded)
        result = judged(run, *how)
        result.perturb = survive(run, *how, levels=levels, judge=judged)
        result.write(folder)
    else:
        result = evaluate(run, *how)
    return result.objective.value if result.objective else None


def _several(config: dict[str, Any]) -> list[Path] | None:
    """The folders of the runs of a list or of a study; None where one run is asked for. `ValueError` for none."""
    found, study = config["checkpoint"], config["study"]
    if study is not None:
        from provla.study.study import completed_runs

        if found is not None:
            raise ValueError(f"checkpoint={found!r} and study={study!r}: give one of them")
        return completed_runs(study)
    if not found:
        raise ValueError("checkpoint has no value; give checkpoint=…, or several as checkpoint=[…,…] or study=…")
    if isinstance(found, str):
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"checkpoint={found!r}: expected the folder of a run, or a list of such")
    return [Path(one).expanduser() for one in found]


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
