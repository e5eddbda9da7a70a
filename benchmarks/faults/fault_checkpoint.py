"""Checkpoints and policy folders, damaged: flipped bits, deaths at every file operation, other runs' files, links out,
names that lead out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from provla.core.files import fingerprint
from provla.core.manifest import MANIFEST, Damaged, check_manifest, read_manifest
from provla.policy.folder import load_policy
from provla.trainer.checkpoint import Checkpoints

CPU = torch.device("cpu")


def fault_flipped_bits(place: Path) -> tuple[int, int, str]:
    """a bit flipped anywhere in a checkpoint or in `policy/`: it is not used"""
    rng, tried, noticed, where = random.Random(0), 0, 0, []
    composed = small.config()
    assert not small.train(place / "run", composed)[0]
    step = place / "run" / "checkpoints" / "step_0000008"
    checks: list[tuple[Path, Callable[[Path], Any]]] = [
        (step, _read(step)),
        (place / "run" / "policy", lambda folder: load_policy(folder, CPU)),
    ]
    for folder, load in checks:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        where.append(f"{len(files)} files of {folder.name}")
        for file in [file for file in files for _ in range(10)]:
            kept = file.read_bytes()
            _flip(file, rng)
            tried += 1
            try:
                with small.hushed():
                    load(folder)
            except ValueError as error:
                noticed += "is damaged" in str(error) and file.name in str(error)
            file.write_bytes(kept)
        load(folder)
    return tried, noticed, "ten flips in each of " + " and ".join(where)


def fault_a_run_meets_a_damaged_checkpoint(place: Path) -> tuple[int, int, str]:
    """the latest checkpoint is damaged and the command given again: it goes on from the one before, to the
    same weights
    """
    composed, rng = small.config("trainer.keep=best"), random.Random(1)
    assert not small.train(place / "whole", composed)[0]
    expected = (place / "whole" / "policy" / "weights.safetensors").read_bytes()
    damages: list[Callable[[Path], Any]] = [
        lambda step: _flip(step / "weights.safetensors", rng),
        lambda step: os.truncate(step / "optimizer.safetensors", 1000),
        lambda step: (step / "state.json").unlink(),
        lambda step: (step / MANIFEST).write_text("{"),
        lambda step: _name(step, "../../x"),
        lambda step: _name(step, "/etc/hostname"),
    ]
    survived = 0
    for number, damage in enumerate(damages):
        run = shutil.copytree(place / "whole", place / str(number), symlinks=True)
        small.interrupt(run)
        damage(run / "checkpoints" / "step_0000008")
        error, told = small.train(run, composed)
        same = not error and (run / "policy" / "weights.safetensors").read_bytes() == expected
        survived += same and "checkpoint step_0000008 is damaged: " in told and "resuming from step 6" in told
    return len(damages), survived, "flipped, truncated, a file missing, a broken manifest, names outside"


def fault_deaths_while_saving(place: Path) -> tuple[int, int, str]:
    """the process ends at every file operation of a save (a first one, another, the same step again, one adopted): no
    whole checkpoint is lost
    """
    tried = survived = 0
    source = place / "source" / "step_0000003"
    _save(place / "source", 3)

    works: list[tuple[tuple[int, ...], Callable[[Path], None], tuple[int | None, ...]]] = [
        ((1, 2), lambda folder: _save(folder, 3), (2, 3)),
        ((1, 2), lambda folder: _save(folder, 2), (2,)),
        ((), lambda folder: _save(folder, 1), (None, 1)),
        ((), lambda folder: Checkpoints(folder, "me").adopt(source), (None, 3)),
    ]
    for before, work, steps in works:
        for number in range(1, 200):
            shutil.rmtree(folder := place / "run", ignore_errors=True)
            for step in before:
                _save(folder, step, best=step == 1)
            if not _dies_at(number, folder, lambda work=work, folder=folder: work(folder)):
                break
            tried += 1
            survived += _is_whole(folder, steps)
    return tried, survived, "forked processes that end without a word (os._exit)"


def fault_other_runs_and_links(place: Path) -> tuple[int, int, str]:
    """another run's checkpoint, links out of the run, links that dangle or are missing: never another run's weights,
    never from zero unsaid
    """
    composed, other = small.config(), small.config("seed=1")
    assert not small.train(place / "whole", composed)[0]
    assert not small.train(place / "theirs", other)[0]
    expected, theirs = (
        (place / "whole" / "policy" / "weights.safetensors").read_bytes(),
        place / "theirs" / "checkpoints",
    )
    before = _content(place / "theirs")

    def replace(path: Path, target: Path | str | None) -> None:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if target is not None:
            path.symlink_to(target)

    def theirs_beside(run: Path) -> None:
        shutil.rmtree(run / "checkpoints" / "step_0000008")
        shutil.copytree(theirs / "step_0000008", run / "checkpoints" / "step_0000008")

    def theirs_alone(run: Path) -> None:
        replace(run / "checkpoints", None)
        shutil.copytree(theirs, run / "checkpoints", symlinks=True)

    goes_on = {
        "their step beside ours": theirs_beside,
        "latest dangles": lambda run: replace(run / "checkpoints" / "latest", "step_0000099"),
        "latest is gone": lambda run: replace(run / "checkpoints" / "latest", None),
    }
    stops = {
        "their steps alone": (theirs_alone, "holds no valid checkpoint"),
        "steps deleted": (
            lambda run: [shutil.rmtree(path) for path in (run / "checkpoints").glob("step_*")],
            "holds no valid checkpoint",
        ),
        "checkpoints/ is a link": (lambda run: replace(run / "checkpoints", theirs), "is a link that leads out"),
        "a step is a link": (
            lambda run: replace(run / "checkpoints" / "step_0000008", theirs / "step_0000008"),
            "is a link that leads out",
        ),
        "latest leads to theirs": (
            lambda run: replace(run / "checkpoints" / "latest", theirs / "step_0000008"),
            "is a link that leads out",
        ),
        "plots/ is a link": (
            lambda run: replace(run / "plots", place / "theirs" / "plots"),
            "is a link that leads out",
        ),
        "policy/ is a link": (
            lambda run: replace(run / "policy", place / "theirs" / "policy"),
            "is a link that leads out",
        ),
    }
    failed = []
    for name, damage in goes_on.items():
        run = _copy(place, name, damage)
        error, _ = small.train(run, composed)
        if error or (run / "policy" / "weights.safetensors").read_bytes() != expected:
            failed.append(name)
    for name, (damage, message) in stops.items():
        error, _ = small.train(_copy(place, name, damage), composed)
        if message not in error or _content(place / "theirs") != before:
            failed.append(name)
    tried = len(goes_on) + len(stops)
    return tried, tried - len(failed), "failed: " + ", ".join(failed) if failed else ", ".join([*goes_on, *stops])


def _copy(place: Path, name: str, damage: Callable[[Path], Any]) -> Path:
    run = shutil.copytree(place / "whole", place / name.replace("/", ""), symlinks=True)
    small.interrupt(run)
    damage(run)
    return run


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def _name(step: Path, name: str) -> None:
    """A manifest that names a file elsewhere, with the right hashes, as somebody would write it."""
    manifest = json.loads((step / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["files"][name] = manifest["files"].pop("weights.safetensors")
    (step / MANIFEST).write_text(json.dumps(manifest | {"sha256": fingerprint(manifest, 64)}))


def _read(step: Path) -> Callable[[Path], Any]:
    """Loads through `Checkpoints`, which sets a bad one aside; it is put back."""
    place = Checkpoints(step.parent, read_manifest(step)["identity"])

    def load(folder: Path) -> None:
        try:
            check_manifest(folder)
        except Damaged as error:
            found = place.load()
            assert found is not None
            assert found[1]["fit"]["step"] < 8
            os.replace(folder.with_name(f"{folder.name}.damaged"), folder)
            raise error
        assert place.load() is not None

    return load


def _save(folder: Path, step: int, best: bool = False) -> None:
    tensors = {"weights": {"w": torch.full((50,), float(step))}, "average": {"w": torch.full((50,), float(step))}}
    Checkpoints(folder, "me").save(step, tensors, {"fit": {"step": step}}, best)


def _dies_at(number: int, folder: Path, work: Callable[[], None]) -> bool:
    """Whether a forked process that did `work` was ended before its `number`th file operation in `folder`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [number]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "open", "os.truncate"):
            left[0] -= 1
            if not left[0]:
                os._exit(9)

    try:
        sys.addaudithook(watch)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def _is_whole(folder: Path, steps: tuple[int | None, ...]) -> bool:
    """One of `steps` is loaded; the next save works; nothing of the dead process is left."""
    place = Checkpoints(folder, "me")
    found = place.load()
    step = None if found is None else found[1]["fit"]["step"]
    if step not in steps or (found is not None and not bool((found[0]["weights"]["w"] == step).all())):
        return False
    _save(folder, 4)
    left = {path.name for path in folder.iterdir()}
    return left <= {f"step_000000{number}" for number in (1, 2, 3, 4)} | {"latest", "best"}
