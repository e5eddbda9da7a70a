"""One run, from its resolved configuration to its result; what a folder holds decides whether it starts, resumes or is
done.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from provla.core.checks import value_in
from provla.core.errors import Interrupted, NoSpace
from provla.core.files import SWEEP, refuse_links_out, tidy, write_json
from provla.core.identity import check_keys, identity
from provla.core.machine import code, environment, find_device, forget_peak_memory, reproducible
from provla.core.precision import describe_precision
from provla.core.progress import console
from provla.core.ranks import RankLost, join, part
from provla.core.result import ENDED, FILE, Result, read_result
from provla.core.secrets import hide
from provla.core.signals import deferred, is_worker, telling
from provla.core.trust import modules
from provla.dataset.sampler import Sampler
from provla.jobs import attempts
from provla.jobs.limit import TimedOut, leave, limited
from provla.jobs.sharing import Training, one_training
from provla.jobs.sweep import alone, check_config
from provla.logger.wandb import WANDB_RUN, download_checkpoint
from provla.policy.folder import save_policy
from provla.policy.matched import count_parameters, parameters_by_part
from provla.run.evaluate import evaluate_steps
from provla.run.features import remember
from provla.run.follow import dismiss_others, make_policy, start_others
from provla.run.judging import Judgement, episode_rows, latency
from provla.run.pictures import plot_run
from provla.run.profile import write_profile
from provla.run.rehearsal import rehearse_policy
from provla.run.setting import Parts, Setting, load_setting, make_parts
from provla.run.show import announce, run_name, show, tags
from provla.run.survival import factors, survive
from provla.trainer.checkpoint import Checkpoints
from provla.trainer.fit import PRUNED, Fit
from provla.trainer.options import Trainer
from provla.trainer.validation import validate

FOLDERS = (
    "checkpoints",
    "policy",
    "plots",
    "videos",
    "steps",
    "perturb",
    "bad_batches",
    "profile",
)  # what a run writes beside its files


def train(config: Mapping[str, Any], folder: Path, choices: Mapping[str, str], minutes: float | None = None) -> float:
    """Trains, evaluates and writes everything into `folder`; returns the objective.

    A folder that holds this run completed gives its objective at once; one that holds it interrupted resumes it; one
    that holds another configuration is refused with `ValueError` and left alone, unless that one was refused itself.
    In a sweep's folder, jobs that train the same weights train once. minutes: after which the run has failed
    (`ValueError`); waiting for others does not count.
    """
    check_keys(config)
    check_config(folder, config)
    refuse_links_out(folder, *FOLDERS)
    device = find_device(config["device"])
    with alone(folder), reproducible(config["threads"], device, value_in(config["trainer"], "deterministic") is True):
        stored = _claim(folder, config)
        if stored.status in ENDED:
            at = "" if stored.train_steps is None else f", at step {stored.train_steps}"
            console.print(f"this run is {stored.status} already{at}: {folder}")
            dismiss_others()
            return stored.value
        try:
            with one_training(folder, config) as training:
                return _run(config, folder, choices, device, stored, training, minutes)
        finally:
            part()


def _run(
    config: Mapping[str, Any],
    folder: Path,
    choices: Mapping[str, str],
    device: torch.device,
    stored: Result,
    training: Training,
    minutes: float | None,
) -> float:
    tidy(folder)
    write_json(folder / "config.json", config)
    forget_peak_memory(device)
    code()  # before the training, in whose time somebody may edit it
    started = time.monotonic()
    attempts.begin(folder)
    begun = Result(config_hash=identity(config), choices=dict(choices), seed=config["seed"])

    def fail(error: str, status: Literal["failed", "interrupted"] = "failed") -> None:
        tried = (stored.attempts or 0) + (status == "failed")
        with contextlib.suppress(NoSpace):  # of a full disk, the first complaint says more
            replace(begun, status=status, error=error, attempts=tried, made=environment(device)).write(folder)
        attempts.end(folder)

    try:
        with limited(minutes, fail), telling(lambda: attempts.forgive(folder)):
            result = _train(config, folder, device, training, begun)
    except BaseException as error:
        # SystemExit: submitit requeues by it.
        ended = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit | RankLost)
        fail(hide(traceback.format_exc()), "interrupted" if ended else "failed")
        if isinstance(error, TimedOut):
            console.print(f"{error}: {folder.name}")
            leave(is_worker())
            raise ValueError(str(error)) from error
        raise
    with deferred():
        result.wall_seconds, result.made = time.monotonic() - started, environment(device)
        result.write(folder)
        attempts.end(folder)
    if result.status == "pruned":
        console.print(f"{result.stopped} at step {result.train_steps}; written to {folder}")
    else:
        show(result, folder)
    return result.value


def _claim(folder: Path, config: Mapping[str, Any]) -> Result:
    """What the folder holds of this run; `ValueError` where it holds another that was begun."""
    if check_config(folder, config):
        console.print(f"the run that {folder} held was refused before its training; this one takes its place")
        (folder / FILE).unlink()
    stored = read_result(folder)
    if stored.status == "pruned" and value_in(config["pruner"], "_target_") == "provla.pruner.NoPruner":
        return replace(stored, status="interrupted")  # nobody prunes any more: the run goes on
    return stored


def _train(config: Mapping[str, Any], folder: Path, device: torch.device, training: Training, begun: Result) -> Result:
    """The story of a run: what is cheap is checked, data are loaded, the policy is built, trained and judged."""
    with join().leading():  # what is wrong is said here, once, and ends the other ranks
        parts = make_parts(config)
        setting, result = load_setting(config, parts), replace(begun, status="failed", metrics={})
        policy = _build(config, parts, setting, device, result)
        remember(config, policy, setting, device)
        checkpoints, history = _take_up(config, folder, parts, training)
        _start_tracking(config, folder, parts, history, training, result)
    try:
        start_others(config, setting, folder)
        parts.pruner.open(folder, parts.trainer.total_steps(len(setting.learn)))
        track, prune = parts.logger.log, parts.pruner.prune
        fit = parts.trainer.fit(policy, setting.learn, setting.held, checkpoints, config["seed"], device, track, prune)
        part()
        result.train_steps, result.train_seconds, result.stopped = fit.step, fit.seconds, fit.stopped
        result.best_step, result.skipped_steps = fit.best_step, fit.skipped
        if fit.stopped.startswith(PRUNED):
            result.status, result.metrics = "pruned", fit.history[-1] if fit.history else {}
        else:
            training.done(fit.step)
            fit.history = training.own(fit.history, _judged_step(parts.trainer, vars(fit)))
            save_policy(
                folder / "policy", policy, config["policy"], setting.spec, identity=identity(config), step=fit.step
            )
            judging = time.monotonic()
            _judge(config, folder, parts, setting, policy, fit, training, device, result)
            result.status = "completed"
            if getattr(parts.trainer, "profile", False):  # a trainer of one's own may know of none
                write_profile(folder, time.monotonic() - judging)
        parts.pruner.close(result.status)
        return result
    except Exception:
        parts.pruner.close("failed")
        raise
    except Interrupted:
        result.status = "interrupted"
        raise
    finally:
        result.made = environment(device)
        parts.logger.finish(result, failed=result.status not in ENDED)


def _build(config: Mapping[str, Any], parts: Parts, setting: Setting, device: torch.device, result: Result) -> Any:
    """The policy, normalised to the data and rehearsed; what is known of it before any training, into `result`."""
    policy = make_policy(config, setting, device)
    if check := getattr(parts.trainer, "check_policy", None):  # a trainer of one's own may know of none
        check(policy)
    result.flops_per_sample = rehearse_policy(policy, setting.spec, device)
    if parts.simulated and parts.execution.delay == "measured":  # rather now than after the training
        parts.execution.settled(setting.spec, latency(policy, setting.spec, device).median).check(setting.spec)
    result.parameters = count_parameters(policy) | {"parts": parameters_by_part(policy)}
    result.precision, result.judged = describe_precision(policy), parts.trainer.keep
    result.quantization = {key: vars(report) for key, report in getattr(policy, "quant_report", {}).items()}
    result.data, result.skipped_episodes = setting.about(), setting.data.skipped
    announce(policy, result.parameters, setting, device)
    return policy


def _take_up(
    config: Mapping[str, Any], folder: Path, parts: Parts, training: Training
) -> tuple[Checkpoints, list[dict[str, float]]]:
    """The run's checkpoints, and the log rows of what was trained already."""
    checkpoints = Checkpoints(folder / "checkpoints", training.checkpoints, parts.logger.checkpoint)
    if config["resume"] and not checkpoints.begun:
        _fetch(config["resume"], checkpoints, folder)
    stored = checkpoints.load()
    if not stored:
        return checkpoints, []
    fit = stored[1]["fit"]
    if not training.anew:
        console.print(f"resuming from step {fit['step']}")
    return checkpoints, training.own(fit["history"], _judged_step(parts.trainer, fit))


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


def _start_tracking(
    config: Mapping[str, Any],
    folder: Path,
    parts: Parts,
    history: Sequence[Mapping[str, float]],
    training: Training,
    result: Result,
) -> None:
    choices = result.choices or {}
    group = config["study"] or (folder.parent.name if (folder.parent / SWEEP).is_file() else None)
    known = [] if training.anew else list(history)
    parts.logger.start(folder, config, run_name(folder, choices), group, known, tags(config, folder, choices))
    for row in history if training.anew else []:  # a tracker has seen none of it
        parts.logger.log(int(row["step"]), {key: value for key, value in row.items() if key != "step"})


def _judge(
    config: Mapping[str, Any],
    folder: Path,
    parts: Parts,
    setting: Setting,
    policy: Any,
    fit: Fit,
    training: Training,
    device: torch.device,
    result: Result,
) -> None:
    """Held-out demonstrations, closed-loop episodes, pictures, time: into the folder and `result`."""
    judged = Judgement(result.metrics)  # so that a tracker is told of them even where judging fails
    judged.metrics |= _offline(policy, fit, setting.held, parts.trainer, config["seed"], device)
    if training.foreign and judged.metrics:
        row = {f"val/{key}": value for key, value in judged.metrics.items()}
        fit.history.append({"step": fit.step, **row})
        parts.logger.log(fit.step, row)
    judged.play(policy, parts.suite, setting.spec, config["seed"], device, folder, parts.execution)
    plots, chunks = plot_run(policy, fit, setting.held, setting.data, folder / "plots", device)
    judged.conclude(result, config["objective"], policy, setting.spec, device, fit.seconds)
    result.trained_by, result.sampler_steps = training.by, _judge_steps(config, folder)
    result.perturb = _judge_under(config, folder)
    parts.logger.media(plots, judged.videos)
    parts.logger.table("chunks", chunks)
    parts.logger.table("episodes", episode_rows(judged.episodes))
    if training.foreign and parts.trainer.monitor != "loss":
        result.best_step = None  # a sampler of other steps has seen no step but the last


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
    return judged.steps or []


def _judge_under(config: Mapping[str, Any], folder: Path) -> list[dict[str, Any]] | None:
    """What is left of success under each factor of `perturb`."""
    if not config.get("perturb"):
        return None
    changes: dict[str, dict[str, Any]] = {"env": {}, "scheduler": {}}
    levels = factors(folder, changes, modules(config), config["perturb"])
    return survive(folder, config["device"], changes, folder, None, modules(config), levels)


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
