"""One run, from its resolved configuration to its result; what a folder holds decides whether it starts, resumes or is
done.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from provla.core.build import build, check_nodes
from provla.core.checks import value_in
from provla.core.errors import Interrupted, NoSpace
from provla.core.files import SWEEP, refuse_links_out, tidy, write_json
from provla.core.identity import NODES, check_keys, identity
from provla.core.machine import environment, find_device, forget_peak_memory, reproducible
from provla.core.precision import describe_precision
from provla.core.progress import console
from provla.core.secrets import hide
from provla.core.signals import deferred, is_worker, telling
from provla.core.trust import modules
from provla.core.types import Spec, check_steps
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import Sampler
from provla.env.rollout import check_fit, rollout, write_videos
from provla.env.worlds import check_suite, rehearse
from provla.jobs import attempts
from provla.jobs.limit import TimedOut, leave, limited
from provla.jobs.sharing import Training, one_training
from provla.jobs.sweep import alone, check_config, load_sweep, read_result
from provla.logger.wandb import WANDB_RUN, download_checkpoint
from provla.policy.folder import save_policy
from provla.policy.matched import count_parameters, parameters_by_part
from provla.pruner import NoPruner
from provla.run.evaluate import evaluate_steps
from provla.run.judging import episode_rows, ms_per_chunk, objective_of, rates, show, summarize, write_episodes
from provla.run.rehearsal import rehearse_policy
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.loop import PRUNED, Fit, seed_everything, validate
from provla.trainer.metrics import chunk_metrics, measured
from provla.trainer.options import Trainer

FOLDERS = ("checkpoints", "policy", "plots", "videos", "steps", "bad_batches")  # what a run writes beside its files


def make_spec(config: Mapping[str, Any], data: Demonstrations) -> Spec:
    """The sizes a policy needs, from the data set and the configuration."""
    return Spec(
        cameras=tuple(data.frames),
        image_size=data.image_size,
        state_size=data.state.shape[1],
        action_size=data.actions.shape[1],
        horizon=config["horizon"],
        n_obs_steps=config["n_obs_steps"],
        n_action_steps=config["n_action_steps"],
        instructions=tuple(data.instructions),
        joint_groups=data.joint_groups,
        fps=data.fps,
    )


def train(config: Mapping[str, Any], folder: Path, choices: Mapping[str, str], minutes: float | None = None) -> float:
    """Trains, evaluates and writes everything into `folder`; returns the objective.

    A folder that holds this run completed gives its objective at once; one that holds it interrupted resumes it; one
    that holds another configuration is refused with `ValueError` and left alone. In a sweep's folder, jobs that train
    the same weights train once. minutes: after which the run has failed (`ValueError`); waiting for others does not
    count.
    """
    check_keys(config)
    check_config(folder, config)
    refuse_links_out(folder, *FOLDERS)
    device = find_device(config["device"])
    with alone(folder), reproducible(config["threads"], device, value_in(config["trainer"], "deterministic") is True):
        stored = _claim(folder, config)
        if stored["status"] in ("completed", "pruned"):
            console.print(f"this run is {stored['status']} already: {folder}")
            return _value(stored)
        with one_training(folder, config) as training:
            return _run(config, folder, choices, device, stored, training, minutes)


def _run(
    config: Mapping[str, Any],
    folder: Path,
    choices: Mapping[str, str],
    device: torch.device,
    stored: Mapping[str, Any],
    training: Training,
    minutes: float | None,
) -> float:
    tidy(folder)
    write_json(folder / "config.json", config)
    forget_peak_memory()
    started = time.monotonic()
    attempts.begin(folder)
    failure = {"config_hash": identity(config), "choices": dict(choices), "seed": config["seed"]}

    def fail(error: str, status: str = "failed") -> None:
        tried = stored.get("attempts", 0) + (status == "failed")
        with contextlib.suppress(NoSpace):  # of a full disk, the first complaint says more
            write_json(
                folder / "result.json",
                {"status": status, **failure, "error": error, "attempts": tried} | environment(device),
            )
        attempts.end(folder)

    try:
        with limited(minutes, fail), telling(lambda: attempts.forgive(folder)):
            result = _train(config, folder, choices, device, training)
    except BaseException as error:
        status = (
            "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit) else "failed"
        )  # submitit exits to requeue
        fail(hide(traceback.format_exc()), status)
        if isinstance(error, TimedOut):
            console.print(f"{error}: {folder.name}")
            leave(is_worker())
            raise ValueError(str(error)) from error
        raise
    with deferred():
        result |= {"wall_seconds": time.monotonic() - started} | environment(device)
        write_json(folder / "result.json", result)
        attempts.end(folder)
    if result["status"] == "pruned":
        console.print(f"{result['stopped']} at step {result['train_steps']}; written to {folder}")
    else:
        show(result, folder)
    return _value(result)


def _value(result: Mapping[str, Any]) -> float:
    """What a run is worth to a sweep; NaN where it was pruned, or has neither a simulation nor held-out
    demonstrations.
    """
    value = result["objective"]["value"] if result["status"] == "completed" else None
    return math.nan if value is None else float(value)


def _claim(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder holds of this run; `ValueError` where it holds another."""
    check_config(folder, config)
    stored = read_result(folder)
    if stored["status"] == "pruned" and value_in(config["pruner"], "_target_") == "provla.pruner.NoPruner":
        return {**stored, "status": "interrupted"}  # nobody prunes any more: the run goes on
    return stored


def _train(
    config: Mapping[str, Any], folder: Path, choices: Mapping[str, str], device: torch.device, training: Training
) -> dict[str, Any]:
    seed = config["seed"]
    # Everything cheap that can be wrong is looked at before anything slow begins.
    check_steps(config["horizon"], config["n_action_steps"])
    check_nodes(config)
    trainer: Trainer = build(config["trainer"], "trainer")
    suite = build(config["env"], "env")
    logger = build(config["logger"], "logger")
    pruner: NoPruner = build(config["pruner"], "pruner")
    source = build(config["dataset"], "dataset")
    if suite.episodes:
        check_suite(suite)
    data: Demonstrations = source.load()
    spec = make_spec(config, data)
    if suite.episodes:
        check_fit(suite, spec)
        rehearse(suite, spec)
    train_episodes, val_episodes = data.split(source.val_fraction, source.split_seed)
    check_objective(config["objective"], suite, spec, bool(len(val_episodes)))
    if not len(val_episodes):
        check_unvalidated(config, source.val_fraction, bool(suite.episodes))
    learn, held = (
        Sampler(data, e, spec.cameras, spec.horizon, spec.n_obs_steps) for e in (train_episodes, val_episodes)
    )
    trainer.check_samples(len(learn))
    seed_everything(seed)
    policy = build(config["policy"], "policy", torch.nn.Module, spec=spec, device=device)
    rows = learn.rows
    policy.fit_normalization(torch.from_numpy(data.state[rows]), torch.from_numpy(data.actions[rows]))
    flops = rehearse_policy(policy, spec, device)
    parameters = count_parameters(policy) | {"parts": parameters_by_part(policy)}
    _announce(policy, parameters, data, len(train_episodes), len(val_episodes), device)

    checkpoints = Checkpoints(folder / "checkpoints", training.checkpoints, logger.checkpoint)
    if config["resume"] and not checkpoints.begun:
        _fetch(config["resume"], checkpoints, folder)
    stored = checkpoints.load()
    if stored and not training.anew:
        console.print(f"resuming from step {stored[1]['fit']['step']}")
    history = training.own(stored[1]["fit"]["history"], _judged_step(trainer, stored[1]["fit"])) if stored else []
    common = {
        "config_hash": identity(config),
        "choices": dict(choices),
        "seed": seed,
        "parameters": parameters,
        "flops_per_sample": flops,
        "precision": describe_precision(policy),
        "quantization": {key: vars(report) for key, report in getattr(policy, "quant_report", {}).items()},
        "judged": trainer.keep,
        "skipped_episodes": data.skipped,
    }
    metrics: dict[str, float] = {}
    total = trainer.total_steps(len(learn))
    group = config["study"] or (folder.parent.name if (folder.parent / SWEEP).is_file() else None)
    logger.start(
        folder, config, _name(folder, choices), group, [] if training.anew else history, _tags(config, folder, choices)
    )
    for row in history if training.anew else []:  # a tracker has seen none of it
        logger.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
    result: dict[str, Any] = {**common, "status": "failed"}
    try:
        pruner.open(folder, total)
        fit = trainer.fit(policy, learn, held, checkpoints, seed, device, logger.log, pruner.prune)
        if fit.stopped.startswith(PRUNED):
            result = {
                **common,
                **_training(fit),
                "status": "pruned",
                "objective": None,
                "metrics": fit.history[-1] if fit.history else {},
                "success": {},
            }
            pruner.close("pruned")
            return result
        training.done(fit.step)
        fit.history = training.own(fit.history, _judged_step(trainer, vars(fit)))
        save_policy(folder / "policy", policy, config["policy"], spec, identity=identity(config), step=fit.step)
        metrics = _offline(policy, fit, held, trainer, seed, device)
        if training.foreign and metrics:
            fit.history.append({"step": fit.step, **(row := {f"val/{key}": value for key, value in metrics.items()})})
            logger.log(fit.step, row)
        outcomes = rollout(policy, suite, spec, seed, device) if suite.episodes else []
        success = summarize(outcomes)
        metrics |= rates(success)
        plots, chunks = _plots(policy, fit, held, data, folder / "plots", device)
        videos = write_videos(outcomes, folder / "videos", spec.fps / suite.video_stride) if outcomes else []
        write_episodes(outcomes, folder / "episodes.csv")
        latency = ms_per_chunk(policy, spec, device)
        steps = _judge_steps(config, folder)
        logger.media(plots, videos)
        logger.table("chunks", chunks)
        logger.table("episodes", episode_rows(outcomes))
        if training.foreign and trainer.monitor != "loss":
            common["best_step"] = None  # this sampler has seen no step but the last
        result = {
            **_training(fit),
            **common,
            "status": "completed",
            "trained_by": training.by,
            "objective": objective_of(config["objective"], metrics),
            "metrics": metrics,
            "success": success,
            "faults": sum(bool(o.reason) for o in outcomes),
            "ms_per_chunk": latency,
            "sampler_steps": steps,
        }
        pruner.close("completed")
        return result
    except Exception:
        pruner.close("failed")
        raise
    except Interrupted:
        result["status"] = "interrupted"
        raise
    finally:
        logger.finish(
            {"metrics": metrics, **result, **environment(device)}, result["status"] in ("failed", "interrupted")
        )


def _judge_steps(config: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Quality and time of the finished policy for every number in `sampler_steps`; empty where its scheduler has no
    steps to choose.
    """
    scheduler = config["policy"].get("scheduler") or {}
    if not config["sampler_steps"] or "num_inference_steps" not in scheduler:
        return []
    changes: dict[str, dict[str, Any]] = {
        "env": {"videos_per_task": 0} if "videos_per_task" in config["env"] else {},
        "scheduler": {},
    }
    judged = evaluate_steps(
        folder, config["device"], changes, folder / "steps", None, modules(config), config["sampler_steps"]
    )
    rows: list[dict[str, Any]] = judged["steps"]
    return rows


def _training(fit: Fit) -> dict[str, Any]:
    return {
        "train_seconds": fit.seconds,
        "train_steps": fit.step,
        "stopped": fit.stopped,
        "best_step": fit.best_step,
        "skipped_steps": fit.skipped,
    }


def _fetch(resume: str, checkpoints: Checkpoints, folder: Path) -> None:
    """Brings the checkpoint of a W&B artifact, or of a folder, into a run's own folder."""
    if not resume.startswith("wandb://"):
        source = Path(resume).expanduser()
        if not source.is_dir():
            raise ValueError(
                f"resume={resume!r}: no such folder; give the folder of a checkpoint, or "
                "wandb://<entity>/<project>/<name>:<alias>"
            )
        checkpoints.adopt(source)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".resume-", suffix=".partial") as place:
        checkpoints.adopt(download_checkpoint(resume, Path(place) / "artifact"))
    # The artifact is named after its W&B run, which goes on.
    write_json(folder / WANDB_RUN, {"id": resume.rpartition("/")[2].partition(":")[0].removeprefix("checkpoint-")})


def _offline(
    policy: Any, fit: Fit, val: Sampler, trainer: Trainer, seed: int, device: torch.device
) -> dict[str, float]:
    """The metrics of the weights that are judged."""
    wanted = _judged_step(trainer, vars(fit))
    for row in fit.history:
        if row["step"] == wanted and "val/loss" in row:
            return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}
    if len(val):
        return validate(policy, val, trainer.val_samples, trainer.batch_size, seed, device)
    trained = [row["train/loss"] for row in fit.history if "train/loss" in row]
    return {"train/loss": trained[-1]} if trained else {}


def _judged_step(trainer: Trainer, fit: Mapping[str, Any]) -> int:
    return int(fit["best_step"] if trainer.keep == "best" else fit["step"])


def _plots(
    policy: Any, fit: Fit, val: Sampler, data: Demonstrations, folder: Path, device: torch.device
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Pictures, and the chunks in the last one as rows: the mean of the samples beside what was demonstrated."""
    from provla.run.plots import plot_chunks, plot_losses

    written = [plot_losses(fit.history, folder / "loss.png")] if fit.history else []
    table: list[dict[str, Any]] = []
    if len(val):
        # One observation a task, from the middle of its first held-out episode; four samples each show the spread.
        rows: list[int] = []
        seen: set[int] = set()
        owner = np.searchsorted(data.starts, val.rows, side="right") - 1
        for episode in np.unique(owner):
            if (task := data.task[episode]) not in seen and len(rows) < 8:
                seen.add(task)
                rows.append(int(data.starts[episode] + data.starts[episode + 1]) // 2)
        batch = val.gather(np.array(rows))
        samples = [
            policy.act(batch.observation.to(device), torch.Generator().manual_seed(i)).cpu().numpy() for i in range(4)
        ]
        images = batch.observation.images[:, -1, 0].permute(0, 2, 3, 1).numpy()
        written.append(
            plot_chunks(
                np.stack(samples, 1),
                batch.actions.numpy(),
                batch.is_pad.numpy(),
                images,
                batch.observation.instruction,
                data.joint_names,
                folder / "chunks.png",
            )
        )
        mean = np.mean(samples, 0)  # (R, H, A)
        for r, i, j in np.ndindex(mean.shape):
            if not batch.is_pad[r, i]:
                row = {"instruction": batch.observation.instruction[r], "step": i, "joint": data.joint_names[j]}
                table.append(row | {"predicted": float(mean[r, i, j]), "demonstrated": float(batch.actions[r, i, j])})
    return written, table


def check_objective(name: str, suite: Any, spec: Spec, held_out: bool) -> None:
    """`ValueError` before the training rather than after it, for an objective that this run will not measure."""
    blank = torch.zeros(1, spec.horizon, spec.action_size)
    found = measured(chunk_metrics(blank, blank, torch.zeros(1, spec.horizon, dtype=torch.bool), spec.joint_groups))
    offline = ["loss", *found] if held_out else ["train/loss"]
    tasks = dict.fromkeys(episode.task for episode in suite.episodes)
    valid = ["auto", *(["success_rate", *(f"success_rate/{task}" for task in tasks)] if tasks else []), *offline]
    if name not in valid:
        why = "" if held_out else " (no episode is held out for validation)"
        raise ValueError(f"objective={name!r} is not measured by this run{why}; valid: {', '.join(valid)}")


def check_unvalidated(config: Mapping[str, Any], fraction: float, simulated: bool) -> None:
    """Says that a run goes without validation; `ValueError` for what cannot do without."""
    trainer = config["trainer"]
    why = (
        "dataset.val_fraction=0"
        if not fraction
        else f"dataset.val_fraction={fraction}, and no instruction has two episodes"
    )
    for key, needs in (
        ("trainer.keep=best", trainer.get("keep") == "best"),
        (f"trainer.patience={trainer.get('patience')}", trainer.get("patience") is not None),
        (f"sampler_steps={config['sampler_steps']}", bool(config["sampler_steps"]) and not simulated),
        (f"pruner={config['pruner']['_target_']}", config["pruner"]["_target_"] != "provla.pruner.NoPruner"),
    ):
        if needs:
            raise ValueError(
                f"{key} goes by validation, and no episode is held out ({why}); hold some out, or leave "
                f"{key.partition('=')[0]} as it is by default"
            )
    judged = (
        ""
        if simulated or config["objective"] != "auto"
        else "; the objective is the training loss, which says little of how good the policy is"
    )
    console.print(f"no validation: no episode is held out ({why}){judged}")


def _tags(config: Mapping[str, Any], folder: Path, choices: Mapping[str, str]) -> list[str]:
    """What a tracker's runs are filtered by: study, arm, and every part's option."""
    tags = [f"study={config['study']}"] if config["study"] else []
    with contextlib.suppress(ValueError):  # not in a sweep, or in one whose file is damaged
        tags += [f"arm={job.arm}" for job in load_sweep(folder.parent).jobs if job.folder == folder.name]
    return tags + [
        f"{group}={option}" for group, option in choices.items() if group in NODES and group not in ("logger", "pruner")
    ]


def _name(folder: Path, choices: Mapping[str, str]) -> str:
    return f"{choices.get('fusion', '')}-{folder.parent.name}-{folder.name}".strip("-")


def _announce(
    policy: Any, parameters: Mapping[str, Any], data: Demonstrations, train: int, val: int, device: torch.device
) -> None:
    console.print(
        f"data: {train} training and {val} validation episodes, {len(data.actions)} steps, {len(data.instructions)} "
        f"instructions ({data.source})"
    )
    table = Table(title=f"parameters, on {device}", title_justify="left")
    for column, justify in (
        ("part", "left"),
        ("train", "right"),
        ("in all", "right"),
        ("MB", "right"),
        ("quantised", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    reports = getattr(policy, "quant_report", {})
    for name, count in [*parameters["parts"].items(), ("all", parameters)]:
        report, note = reports.get(name), ""
        if report is not None and report.layers:
            note = f"{report.layers} layers, {report.bytes_before / 1e6:.2f} → {report.bytes_after / 1e6:.2f} MB"
            note += "" if report.error is None else f", error {report.error:.1%}"
        table.add_row(name, f"{count['trainable']:,}", f"{count['total']:,}", f"{count['bytes'] / 1e6:.1f}", note)
    console.print(table)
