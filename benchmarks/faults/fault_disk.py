"""Disks that are full or read-only, for real: small tmpfs mounts (root alone may make them)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from provla.core.build import build
from provla.core.errors import NoSpace
from provla.dataset import cache
from provla.dataset import recording as demonstrations
from provla.dataset.metaworld import MetaworldRecording
from provla.trainer.checkpoint import Checkpoints

ROOTLESS = (0, 0, "not done: needs root, to mount a small disk")
WORDS = ("NoSpace: ", "cannot be written: ", " free in ")


@contextlib.contextmanager
def disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of this size."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # loaded tensors may still be mapped


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def fault_full_while_saving(place: Path) -> tuple[int, int, str]:
    """the disk is full at some byte of a checkpoint: the message says so, and the one before is loaded"""
    if os.geteuid():
        return ROOTLESS
    tried = survived = 0
    for kilobytes in range(140, 400, 12):
        with disk(place / "disk", kilobytes) as folder:
            checkpoints, step, error = Checkpoints(folder / "checkpoints", "me"), 0, ""
            while not error and step < 9:
                step += 1
                tensors = {
                    name: {"w": torch.full((10_000,), float(step))} for name in ("weights", "average", "optimizer")
                }
                try:
                    checkpoints.save(step, tensors, {"fit": {"step": step}}, False)
                except Exception as found:
                    error = f"{type(found).__name__}: {found}"
            if not error:
                break
            tried += 1
            loaded = checkpoints.load()
            good = (step == 1 and loaded is None) or (loaded is not None and loaded[1]["fit"]["step"] == step - 1)
            survived += (
                good
                and all(word in error for word in (*WORDS, "it takes 120.0 kB"))
                and not list(checkpoints.folder.glob(".*"))
            )
    return tried, survived, "disks of 140 kB and 12 kB more each, up to where three fit"


def fault_full_during_a_run(place: Path) -> tuple[int, int, str]:
    """the disk of a run is full somewhere between its start and its result, or read-only: said, and the run ends well
    on a larger one
    """
    if os.geteuid():
        return ROOTLESS
    composed, failed = small.config(), []
    assert not small.train(place / "whole", composed)[0]
    expected = (place / "whole" / "policy" / "weights.safetensors").read_bytes()
    used = sum(
        -(-file.stat().st_size // 4096) * 4
        for file in (place / "whole").rglob("*")
        if file.is_file() and not file.is_symlink()
    )
    shares = (1, 30, 60, 75, 85, 97)
    for share in shares:
        with disk(place / "disk", max(8, used * share // 100)) as folder:
            error, _ = small.train(folder / "run", composed)
            said = (
                error.startswith("NoSpace: ")
                and (" cannot be written: " in error or " will not fit into " in error)
                and " free in " in error
            )
            remount(folder, f"size={4 * used}k")
            after, _ = small.train(folder / "run", composed)
            if not said or after or (folder / "run" / "policy" / "weights.safetensors").read_bytes() != expected:
                failed.append(f"{share} %: {error or 'no error'} | {after}")
    with disk(place / "disk", 4 * used) as folder:
        remount(folder, "ro")
        error, _ = small.train(folder / "run", composed)
        if not all(word in error for word in (*WORDS, "the disk is read-only")):
            failed.append(f"read-only: {error}")
    what = f"disks of {', '.join(map(str, shares))} % of what a run takes, and a read-only one"
    return len(shares) + 1, len(shares) + 1 - len(failed), "; ".join(failed) or what


def fault_full_while_recording(place: Path) -> tuple[int, int, str]:
    """the disk of the data is full while demonstrations are recorded or frames decoded: said, nothing half is left, and
    it works on a larger one
    """
    if os.geteuid():
        return ROOTLESS
    asked = MetaworldRecording(("drawer-close",), 2, ("corner2",), 32, 0, 0.05, 0.0, 3)
    failed = []
    # As if somebody else had filled the disk after the check.
    kept = demonstrations.check_space, cache.check_space
    demonstrations.check_space = cache.check_space = lambda *asked: None  # type: ignore[assignment]
    try:
        for kilobytes in (60, 140):
            with disk(place / "disk", kilobytes) as folder:
                failed += _refused(
                    lambda: demonstrations.record(asked, folder, 1), folder, f"recording on {kilobytes} kB"
                )
                if kilobytes == 140:
                    remount(folder, "size=20m")
                    recording = demonstrations.record(asked, folder, 1)
                    with disk(place / "cache", 40) as other:
                        node = small.compose(
                            "dataset=lerobot", f"dataset.root={recording}", f"data_dir={other}", "env=none"
                        )["dataset"]
                        failed += _refused(build(node, "dataset").load, other / "frames", "frames")
                        remount(other, "size=20m")
                        if len(build(node, "dataset").load().starts) != 3:
                            failed.append("frames on a larger disk")
    finally:
        demonstrations.check_space, cache.check_space = kept
    return 3, 3 - len(failed), "; ".join(failed) or "recording on 60 and 140 kB, a frame cache on 40 kB"


def _refused(work: object, folder: Path, what: str) -> list[str]:
    """What is wrong with how `work` met the full disk."""
    try:
        work()  # type: ignore[operator]
    except NoSpace as error:
        left = [path.name for path in folder.rglob("*") if path.is_file() and ".claim" not in str(path)]
        return (
            [f"{what} left {left}"] if left else [] if "no space left on disk" in str(error) else [f"{what}: {error}"]
        )
    except Exception as error:
        return [f"{what}: {type(error).__name__} {error}"]
    return [f"{what}: no error"]
