"""Training checkpoints, and the tensors of a policy on disk. safetensors and JSON only; whole or not there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from provla.core.errors import NoSpace
from provla.core.files import atomic, check_space, refuse_links_out, remove, tidy, write_text
from provla.core.manifest import MANIFEST, Damaged, check_manifest, read_manifest, write_manifest
from provla.core.progress import console
from provla.policy.weights import count_bytes, load_tensors, save_tensors


class Checkpoints:
    """`checkpoints/step_…` folders, each with a manifest (sha256 and size of its files, step, identity, whether it was
    the best).

    The latest is the highest step whose manifest holds; the links `latest` and `best` are for people. A folder is
    written
    aside, its manifest last, and renamed, and nothing older goes before that: whatever instant the process dies at, a
    whole checkpoint remains. The last `keep` stay, and what was the best at each of them. Where a checkpoint is a link
    that leads out of the run, every method refuses with `ValueError` before it reads, writes or deletes.
    """

    def __init__(
        self,
        folder: Path,
        identity: str | None = None,
        on_save: Callable[[Path, list[str]], None] | None = None,
        keep: int = 2,
    ) -> None:
        """identity: of the configuration; another run's checkpoints are refused, unless it is None. on_save: told each
        checkpoint and what it is.
        """
        self.folder, self._identity, self._on_save, self._keep = folder, identity, on_save, keep

    @property
    def begun(self) -> bool:
        """Anything of a checkpoint lies there, good or bad: then nothing starts from zero without a word."""
        return any(path.name.startswith("step_") or path.name in ("latest", "best") for path in self.folder.glob("*"))

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], best: bool
    ) -> None:
        """tensors: file stem → its tensors. state: JSON. best: so far. `NoSpace` on a full disk; what was there is
        still there then.
        """
        self._settle()
        target = self._place(step)
        with atomic(target, count_bytes(*tensors.values())) as partial:
            partial.mkdir()
            for name, group in tensors.items():
                save_tensors(partial / f"{name}.safetensors", group)
            write_text(partial / "state.json", json.dumps(state))
            write_manifest(partial, step=step, identity=self._identity, best=best)
        self._link()
        steps = self._steps()
        kept = {one for recent in steps[: self._keep] for one in (recent, self._best(recent))}
        for old in steps:
            if old not in kept:  # renamed first, so that half a folder is never taken for a damaged checkpoint
                os.replace(old, gone := self.folder / f".{old.name}-{uuid.uuid4().hex[:8]}.partial")
                remove(gone)
        if self._on_save is not None:
            self._on_save(target, ["latest", *(["best"] if best else [])])

    def check_space(self, size: int) -> None:
        """`NoSpace` where two checkpoints of `size` bytes, less those that are there already, would not fit."""
        check_space(self.folder, size * max(1, 2 - len(self._steps())), "two checkpoints")

    def adopt(self, source: Path) -> None:
        """Makes a checkpoint folder from elsewhere the latest here; `ValueError` where it is damaged or of another
        configuration.
        """
        refuse_links_out(source)
        manifest = check_manifest(source)
        if (theirs := manifest.get("identity")) != self._identity:
            raise ValueError(
                f"resume: the checkpoint {source} is of another configuration ({theirs}, this is {self._identity}); "
                "use the same overrides"
            )
        if not isinstance(step := manifest.get("step"), int):
            raise Damaged(source, MANIFEST, "names no step")
        self._settle()
        with atomic(self._place(step), sum(entry["bytes"] for entry in manifest["files"].values())) as partial:
            partial.mkdir()
            for name in (*manifest["files"], MANIFEST):
                shutil.copyfile(source / name, partial / name)
        self._link()

    def load(self, which: str = "latest") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Tensors and state of the newest valid checkpoint (`latest`) or of the newest that was the best; None where
        there is none yet.

        One that is damaged or of another run is set aside, as `step_….damaged`, and said. `ValueError` where there were
        checkpoints and none is valid, or where the best one is not.
        """
        self._settle()
        for folder in self._steps():
            if which == "best" and not self._was_best(folder):
                continue
            try:
                found = self._read(folder)
            except Damaged as error:
                aside = self._set_aside(folder)
                console.print(
                    f"checkpoint {folder.name} is damaged: {error.file} {error.reason}; it is set aside as {aside.name}"
                )
                if which == "best":
                    raise ValueError(
                        f"the best checkpoint was damaged: {error.file} {error.reason}; it is {aside} now. "
                        f"{self._anew()}"
                    ) from error
                continue
            self._link()
            return found
        if which == "latest" and self.begun:
            names = ", ".join(sorted(path.name for path in self.folder.glob("[!.]*")))
            raise ValueError(f"{self.folder} holds no valid checkpoint, only {names}. {self._anew()}")
        return None

    def _anew(self) -> str:
        return f"Bring back a good copy, or delete {self.folder} to start the run anew."

    def _place(self, step: int) -> Path:
        return self.folder / f"step_{step:07d}"

    def _settle(self) -> None:
        """Refuses links that lead out; clears away what a death has left."""
        refuse_links_out(self.folder.parent, self.folder.name)
        refuse_links_out(self.folder)
        tidy(self.folder)

    def _steps(self) -> list[Path]:
        """The checkpoints' folders, the newest first."""
        found = {
            int(path.name[5:]): path
            for path in self.folder.glob("step_*")
            if path.name[5:].isdecimal() and path.is_dir()
        }
        return [found[step] for step in sorted(found, reverse=True)]

    def _was_best(self, folder: Path) -> bool:
        try:
            return read_manifest(folder).get("best") is True
        except Damaged:
            return False

    def _best(self, recent: Path) -> Path | None:
        """What was the best when `recent` was the latest."""
        steps = self._steps()
        return next((folder for folder in steps[steps.index(recent) :] if self._was_best(folder)), None)

    def _read(self, folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        manifest = check_manifest(folder)
        if not isinstance(step := manifest.get("step"), int) or self._place(step) != folder:
            raise Damaged(folder, MANIFEST, f"is of step {step}")
        if self._identity is not None and manifest.get("identity") != self._identity:
            raise Damaged(folder, MANIFEST, f"is of another run ({manifest.get('identity')}, this is {self._identity})")
        if "state.json" not in manifest["files"]:
            raise Damaged(folder, MANIFEST, "names no state.json")
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        return {
            Path(name).stem: load_tensors(folder / name) for name in manifest["files"] if name.endswith(".safetensors")
        }, state

    def _set_aside(self, folder: Path) -> Path:
        names = (f"{folder.name}.damaged{number or ''}" for number in itertools.count())
        aside = next(path for name in names if not os.path.lexists(path := self.folder / name))
        os.replace(folder, aside)
        return aside

    def _link(self) -> None:
        """Points the links at what they name; nothing reads them, so a file system without links will do."""
        steps = self._steps()
        for name, target in (("latest", steps[0]), ("best", self._best(steps[0]))):
            link = self.folder / name
            if target is None or (link.is_dir() and not link.is_symlink()):  # a folder: from a copy that followed links
                remove(link)
            if target is not None and not (link.is_symlink() and os.readlink(link) == target.name):
                with contextlib.suppress(OSError, NoSpace), atomic(link) as partial:
                    partial.symlink_to(target.name)
