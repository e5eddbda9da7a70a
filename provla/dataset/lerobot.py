"""Any LeRobot v3 data set as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from provla.core.cameras import Size
from provla.core.checks import Count, Depth, Extents, Fraction, Name, Names, Positive, Seed
from provla.core.progress import console
from provla.core.types import JointGroups, joint_groups_of
from provla.dataset.checksums import Checksums
from provla.dataset.demonstrations import Demonstrations, Window
from provla.dataset.format import Camera, Info, read_info
from provla.dataset.inspection import Inspection, report
from provla.dataset.inspection import files as files_of
from provla.dataset.kept import keep, look, recall
from provla.dataset.problem import Problem
from provla.dataset.remote import Remote, commit_of
from provla.dataset.verify import read_contents


class LeRobotSource:
    """`dataset=lerobot`: any LeRobot v3 data set, by `root` (a folder) and/or `repo_id` (a Hub id).

    cameras: names of image features, with or without their `observation.images.` prefix; null: all colour cameras.
    state_key and action_key name the features; several make one state, side by side in the order given. image_size: [h,
    w] to which frames are reduced in the cache, or camera → [h, w] of each; null: as recorded. joint_groups: group →
    names of joints (of the action feature); each: one group a joint; null: none. num_episodes: the first n, of which a
    Hub data set's files are fetched and no others; null: all.
    bad_episodes: fail, or skip to leave out those with which something is wrong. cache: full, the frame cache; none:
    pictures are decoded when a batch needs them; window: ahead of it, in an order that keeps few of them
    (`provla.dataset.window`), by `window_blocks` open blocks of at most `window_frames` frames of an episode, in a ring
    of `window_gb` GB, by `window_workers` threads. Without a frame cache, pictures are looked at when they are needed:
    what is wrong with one ends a training there.
    """

    def __init__(
        self,
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        repo_id: Name | None = None,
        root: Name | None = None,
        revision: Name | None = None,
        cameras: Names | None = None,
        state_key: Name | Names = "observation.state",
        action_key: Name = "action",
        image_size: Extents | None = None,
        joint_groups: JointGroups = None,
        num_episodes: Count | None = None,
        bad_episodes: Literal["fail", "skip"] = "fail",
        cache: Literal["full", "window", "none"] = "full",
        window_blocks: Count = 256,
        window_frames: Count = 64,
        window_gb: Positive | None = None,
        window_workers: Depth | None = None,
    ) -> None:
        if root is None and repo_id is None:
            raise ValueError("the data set has no source: give dataset.root=<folder> and/or dataset.repo_id=<Hub id>")
        if bad_episodes not in ("fail", "skip"):
            raise ValueError(f"dataset.bad_episodes={bad_episodes!r}; valid: fail, skip")
        self.data_dir = Path(data_dir).expanduser()
        self.repo_id, self.root, self.revision = repo_id, None if root is None else Path(root).expanduser(), revision
        self.wanted, self.action_key = cameras, action_key
        self.state_keys = [state_key] if isinstance(state_key, str) else list(state_key)
        if len(set(self.state_keys)) < len(self.state_keys):
            raise ValueError(f"dataset.state_key={self.state_keys}: name each feature once")
        self.image_size = image_size
        self.groups, self.num_episodes, self.bad_episodes = joint_groups, num_episodes, bad_episodes
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.cached = cache == "full"
        self.window = Window(window_blocks, window_frames, window_gb, window_workers) if cache == "window" else None

    def load(self) -> Demonstrations:
        """Everything but the pixels in memory; frames decoded now if they are not cached.

        All is checked when it is read first, and again where a file has changed; until then a process has what it
        loaded last. Errors: `ValueError` that names file, episode and frame.
        """
        place = self.root if self.cached else None
        files = look(place)
        if (known := recall(self, files)) is not None:
            return known
        found = self.inspect()
        for line in found.notes:
            console.print(line)
        whole = [problem for problem in found.problems if problem.episode is None]
        if found.problems and (whole or not found.episodes or self.bad_episodes == "fail"):
            raise ValueError(report(found, whole if self.bad_episodes == "skip" else []))
        if found.problems:
            console.print(
                f"{len(found.bad)} of {len(found.bad) + len(found.episodes)} episodes of {found.source} are left out "
                "(dataset.bad_episodes=skip):"
            )
            for problem in found.problems:
                console.print(f"  {problem}")
        data = self.demonstrations(found)
        if not found.notes and not found.problems and look(place) == files:  # else there is something to say again
            keep(self, files, data)
        return data

    def inspect(self, fresh: bool = False, thorough: bool = False) -> Inspection:
        """Reads and checks everything; what is wrong stands in the answer. `ValueError` where the data set cannot be
        made out at all.

        fresh: read every file again, the frame cache too. thorough: look for more where something is wrong already.
        """
        remote = Remote(str(self.repo_id), self.revision) if self.root is None else None
        root = remote.begin() if remote else Path(str(self.root))
        info = read_info(root)
        cameras, notes = self._cameras(info)
        self._check_vectors(info)
        self._sizes(cameras)
        if self.num_episodes is not None and not 1 <= self.num_episodes <= info.total_episodes:
            raise ValueError(f"dataset.num_episodes={self.num_episodes}: {root} holds {info.total_episodes}")
        count = self.num_episodes or info.total_episodes
        if remote is not None:
            notes += remote.finish(info, cameras, self.num_episodes)
        contents = read_contents(
            info, [*self.state_keys, self.action_key], cameras, self.num_episodes if remote is not None else None
        )
        sums = Checksums(root, self.data_dir / "checked", files_of(contents, cameras), fresh)
        problems = [p for p in contents.problems if p.episode is None or p.episode < count]
        failed = bool(problems) and self.bad_episodes == "fail" and not thorough
        problems = [Problem(name, None, None, why) for name, why in sums.wrong.items()] + problems
        found = Inspection(contents, cameras, [], problems, {}, [*notes, *contents.notes], [], sums)
        while not failed:
            found.episodes = [e for e in range(count) if e not in found.bad]
            worse = self._look(found, fresh) if found.episodes else []
            problems += worse
            failed = not worse or self.bad_episodes == "fail"
        sums.remember()
        return found

    def _look(self, found: Inspection, fresh: bool) -> list[Problem]:
        if self.cached:
            return found.decode(self.data_dir / "frames", self._sizes(found.cameras), fresh)
        return found.leave(self._sizes(found.cameras), fresh)

    def demonstrations(self, found: Inspection) -> Demonstrations:
        """The episodes that are left."""
        contents, info = found.contents, found.contents.info
        lengths = np.diff(contents.starts)[found.episodes]
        rows = np.concatenate([np.arange(contents.starts[e], contents.starts[e + 1]) for e in found.episodes])
        used = list(dict.fromkeys(contents.task[rows].tolist()))  # in the order in which they come up
        position = np.zeros(len(contents.instructions), dtype=np.int64)
        position[used] = np.arange(len(used))
        starts, row_task = np.concatenate([[0], np.cumsum(lengths)]), position[contents.task[rows]]
        names, _ = info.names(self.action_key)
        return Demonstrations(
            frames=found.frames,
            state=np.concatenate([contents.vectors[key][rows] for key in self.state_keys], axis=1),
            actions=contents.vectors[self.action_key][rows],
            starts=starts,
            task=row_task[starts[:-1]],
            instructions=[contents.instructions[i] for i in used],
            joint_names=names,
            joint_groups=joint_groups_of(names, self.groups),
            fps=info.fps,
            source=found.source,
            row_task=row_task,
            skipped=[str(problem) for problem in found.problems],
            window=self.window,
            state_names=info.known_names(self.state_keys),
            recorded={camera.name: camera.size for camera in found.cameras},
            revision=commit_of(info.root),
        )

    def _cameras(self, info: Info) -> tuple[list[Camera], list[str]]:
        """The cameras that are wanted, and a line for each that is not taken or whose joints have no names."""
        found, others = info.cameras()
        wanted = list(found) if self.wanted is None else [c.removeprefix("observation.images.") for c in self.wanted]
        missing = [camera for camera in wanted if camera not in found]
        valid = f"it has: {', '.join(found) or 'none'}"
        if missing and missing[0] in others:
            raise ValueError(
                f"dataset.cameras={list(self.wanted or [])}: the camera {missing[0]!r} {others[missing[0]]}; {valid}"
            )
        if missing or not wanted:
            none = "" if missing else "; ".join(f"{name!r} {why}" for name, why in others.items())
            raise ValueError(
                f"dataset.cameras={list(self.wanted or [])}: no camera {missing[0] if missing else ''!r} in this data "
                f"set; {valid}{none and f' ({none})'}"
            )
        unclear = [f"{name!r} {why}" for name, why in others.items() if "leave open" in why]
        if unclear and self.wanted is None:
            raise ValueError(
                f"{info.root}/meta/info.json: the camera {unclear[0]}; name them channels, height, width, "
                f"or choose among dataset.cameras: {', '.join(found) or 'none'}"
            )
        left = (
            []
            if self.wanted is not None
            else [f"the camera {name!r} is left out: it {why}" for name, why in others.items()]
        )
        return [found[name] for name in dict.fromkeys(wanted)], [
            *left,
            *filter(None, [info.names(self.action_key)[1] if self.action_key in info.vectors() else ""]),
        ]

    def _check_vectors(self, info: Info) -> None:
        vectors = info.vectors()
        for option, key in (*(("state_key", key) for key in self.state_keys), ("action_key", self.action_key)):
            if key not in vectors:
                raise ValueError(
                    f"dataset.{option}={key!r} is not a vector of this data set; it has: {', '.join(vectors) or 'none'}"
                )
            info.shape(key)

    def _sizes(self, cameras: list[Camera]) -> dict[str, Size]:
        """Camera → (h, w) of its frames. `ValueError` where `image_size` names others than are taken, or leaves one
        out.
        """
        if not isinstance(self.image_size, Mapping):
            one = None if self.image_size is None else (self.image_size[0], self.image_size[1])
            return {camera.name: one or camera.size for camera in cameras}
        asked = {name.removeprefix("observation.images."): (h, w) for name, (h, w) in self.image_size.items()}
        names = [camera.name for camera in cameras]
        for what, wrong in (
            ("leaves out", [name for name in names if name not in asked]),
            ("names", [name for name in asked if name not in names]),
        ):
            if wrong:
                none = ", which is no camera of this data set, or none that dataset.cameras takes"
                raise ValueError(
                    f"dataset.image_size {what} {wrong[0]!r}{none if what == 'names' else ''}; give [h,w] for all, or "
                    f"a size for each of: {', '.join(names)} (recorded: "
                    + ", ".join(f"{camera.name} {camera.size[0]}×{camera.size[1]}" for camera in cameras)
                    + ")"
                )
        return {name: asked[name] for name in names}
