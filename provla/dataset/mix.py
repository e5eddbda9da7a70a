"""Several data sets as one: `dataset=mix`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from provla.core.build import build, check_node
from provla.core.checks import Count, Depth, Fraction, Name, Positive, Seed, shown
from provla.core.types import JointGroups, joint_groups_of
from provla.dataset.demonstrations import Array, Demonstrations, Part
from provla.dataset.joined import Joined

SHARED = ("data_dir", "val_fraction", "split_seed")  # keys of the sources, where they do not say otherwise
AHEAD = ("cache", "window_blocks", "window_frames", "window_gb", "window_workers")  # also, but for cache=full
PLAIN = "provla.dataset.LeRobotSource"  # of a source that names no class


class MixSource:
    """`dataset=mix`: several data sets as one, each a node as in conf/dataset/*.yaml; without a `_target_` a LeRobot
    data set. data_dir, val_fraction and split_seed hold for those that do not say otherwise; each holds out the
    episodes that it would hold out alone. cache and window_*, as of `LeRobotSource`, too: with cache=window all are
    decoded ahead, each into a ring of its own, in the order of `provla.dataset.shares`.

    weights: source → its share of the samples that a training sees, in any unit, however large the source is: with
    {a: 2, b: 1} two of three samples are a's, be b a hundred times as large, and the smaller comes round oftener. It is
    no factor of the loss. null: by size, so that every sample comes once an epoch. rename: source → its name of a
    camera, of a number of the state or of an action → the mix's. joint_groups: see `LeRobotSource`, of the mix. Order
    and sizes are the first source's. normalize: together, one normalisation of states and actions, fitted to all
    training rows alike; per_source, each source's by its own, for robots of other ranges or units: then whoever asks
    the policy says whose robot it drives (`source`).
    """

    def __init__(
        self,
        sources: Mapping[Name, Mapping[str, Any]],
        data_dir: Name,
        val_fraction: Fraction,
        split_seed: Seed,
        weights: Mapping[Name, Positive] | None = None,
        rename: Mapping[Name, Mapping[Name, Name]] | None = None,
        joint_groups: JointGroups = None,
        normalize: Literal["together", "per_source"] = "together",
        cache: Literal["full", "window", "none"] = "full",
        window_blocks: Count = 256,
        window_frames: Count = 64,
        window_gb: Positive | None = None,
        window_workers: Depth | None = None,
    ) -> None:
        self.per_source, self.ahead = normalize == "per_source", cache == "window"
        self.val_fraction, self.split_seed, self.groups = val_fraction, split_seed, joint_groups
        ahead = cache, window_blocks, window_frames, window_gb, window_workers
        shared = dict(zip(SHARED, (data_dir, val_fraction, split_seed), strict=True))
        self.nodes = _whole(sources, shared | (dict(zip(AHEAD, ahead, strict=True)) if cache != "full" else {}))
        for key, given in (("weights", weights), ("rename", rename)):
            if unknown := [name for name in given or {} if name not in sources]:
                raise ValueError(
                    f"dataset.{key} names {unknown[0]!r}, which is no source; there are: {', '.join(sources)}"
                )
        if weights is not None and (missing := [name for name in sources if name not in weights]):
            raise ValueError(f"dataset.weights leaves out {missing[0]!r}; give one for each of: {', '.join(sources)}")
        self.weights, self.rename = weights, rename or {}

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for what is wrong with the nodes of the sources."""
        if len(given["sources"]) < 2:
            raise ValueError(
                f"{where}.sources={shown(given['sources'])}: a mix has two sources at least; such as dataset=mix "
                "'dataset.sources={a: {root: <folder>}, b: {repo_id: <Hub id>}}'; one alone is dataset=lerobot"
            )
        ahead = given.get("cache") == "window"
        shared = {key: given[key] for key in (*SHARED, *(AHEAD if ahead else ())) if key in given}
        for name, node in _whole(given["sources"], shared).items():
            check_node(node, f"{where}.sources.{name}")
            for key, why in (
                ("joint_groups", f"the mix has one set of joints; say {where}.joint_groups"),
                ("weights", "a mix of mixes has no meaning that is clear; name all sources side by side"),
            ):
                if node.get(key) is not None:
                    raise ValueError(f"{where}.sources.{name}.{key}={shown(node[key])}: {why}")
            if (node.get("cache") == "window") != ahead:
                raise ValueError(
                    f"{where}.sources.{name} has cache={node.get('cache', 'full')}, and the mix "
                    f"{where}.cache={given.get('cache', 'full')}: the order in which pictures are decoded ahead is one "
                    f"of all sources, so say {where}.cache=window, and of the sources nothing, where each reads it"
                )

    def each(self) -> dict[str, Any]:
        """The sources, by their names; nothing is loaded."""
        return {name: build(node, f"dataset.sources.{name}") for name, node in self.nodes.items()}

    def load(self) -> Demonstrations:
        """All rows of all sources. `ValueError` names the sources that do not go together, and why."""
        found: dict[str, Demonstrations] = {}
        for name, source in self.each().items():
            data = source.load()
            if not isinstance(data, Demonstrations):
                raise ValueError(
                    f"dataset.sources.{name}: load() gave a {type(data).__name__}, expected Demonstrations"
                )
            data.check()
            if self.ahead and data.window is None:
                raise ValueError(f"dataset.cache=window: the pictures of dataset.sources.{name} lie in arrays")
            found[name] = _renamed(name, data, self.rename.get(name, {}))
        first = next(iter(found))
        for name, data in found.items():
            if name != first:
                found[name] = _like(name, data, first, found[first])
        return self._joined(found)

    def _joined(self, found: Mapping[str, Demonstrations]) -> Demonstrations:
        parts, first = list(found.values()), next(iter(found.values()))
        instructions = list(dict.fromkeys(text for data in parts for text in data.instructions))
        ends = np.cumsum([0, *(len(data.actions) for data in parts)])

        def told(data: Demonstrations, tasks: Array) -> Array:
            place: Array = np.array([instructions.index(text) for text in data.instructions])
            return place[tasks]

        return Demonstrations(
            frames={camera: Joined([data.frames[camera] for data in parts]) for camera in first.frames},
            state=np.concatenate([data.state for data in parts]),
            actions=np.concatenate([data.actions for data in parts]),
            starts=np.concatenate([[0], *(data.starts[1:] + end for data, end in zip(parts, ends, strict=False))]),
            task=np.concatenate([told(data, data.task) for data in parts]),
            instructions=instructions,
            joint_names=first.joint_names,
            joint_groups=joint_groups_of(first.joint_names, self.groups),
            fps=first.fps,
            source="; ".join(f"{name}: {data.source}" for name, data in found.items()),
            row_task=None
            if all(data.row_task is None for data in parts)
            else np.concatenate([told(d, _row_task(d)) for d in parts]),
            skipped=[f"{name}: {one}" for name, data in found.items() for one in data.skipped],
            state_names=first.state_names,
            recorded={
                camera: size
                for camera, size in first.recorded.items()
                if all(data.recorded.get(camera) == size for data in parts)
            },
            parts=self._parts(found),
            per_source=self.per_source,
        )

    def _parts(self, found: Mapping[str, Demonstrations]) -> dict[str, Part]:
        parts, begin = {}, 0
        for name, data in found.items():
            if taken := [group for group in self.groups or {} if group == name and self.groups != "each"]:
                raise ValueError(
                    f"dataset.joint_groups and dataset.sources both name {taken[0]!r}, and metrics are reported for "
                    "each by its name; call one otherwise"
                )
            source = self.nodes[name]
            train, val = data.split(
                source.get("val_fraction", self.val_fraction), source.get("split_seed", self.split_seed)
            )
            weight = None if self.weights is None else self.weights[name]
            parts[name] = Part(weight, begin + train, begin + val, data.window if self.ahead else None)
            begin += len(data.task)
        return parts


def _whole(sources: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes, with what they leave to the mix."""
    from inspect import signature

    from provla.core.build import locate

    found = {}
    for name, node in sources.items():
        if not isinstance(node, Mapping):
            raise ValueError(f"dataset.sources.{name}={shown(node)}: expected a node, such as {{root: <folder>}}")
        if "/" in name:
            raise ValueError(f"dataset.sources: {name!r} is no plain name; metrics are called loss/<source>")
        node = {"_target_": PLAIN, **node}
        takes = signature(locate(str(node["_target_"]), f"dataset.sources.{name}")).parameters
        found[name] = {key: value for key, value in shared.items() if key in takes} | node
    return found


def _row_task(data: Demonstrations) -> Array:
    return np.repeat(data.task, np.diff(data.starts)) if data.row_task is None else data.row_task


def _renamed(name: str, data: Demonstrations, names: Mapping[str, str]) -> Demonstrations:
    known = {"cameras": list(data.frames), "state": data.state_names, "actions": data.joint_names}
    if unknown := [old for old in names if not any(old in given for given in known.values())]:
        has = "; ".join(f"{what}: {', '.join(given) or 'none'}" for what, given in known.items())
        raise ValueError(f"dataset.rename.{name} names {unknown[0]!r}, which the source does not have; {has}")
    new = {what: [names.get(old, old) for old in given] for what, given in known.items()}
    for what, given in new.items():
        if len(set(given)) < len(given) and len(set(known[what])) == len(known[what]):
            raise ValueError(f"dataset.rename.{name} gives two of its {what} one name: {', '.join(given)}")
    frames = dict(zip(new["cameras"], data.frames.values(), strict=True))
    recorded = {names.get(camera, camera): size for camera, size in data.recorded.items()}
    return replace(data, frames=frames, state_names=new["state"], joint_names=new["actions"], recorded=recorded)


def _like(name: str, data: Demonstrations, first: str, other: Demonstrations) -> Demonstrations:
    """A source's data in the order of the first's; `ValueError` where they are not of one robot."""

    def refuse(what: str, mine: object, theirs: object, way: str) -> ValueError:
        return ValueError(
            f"dataset.sources.{name} does not go with {first}: its {what} {mine}, that of {first} {theirs}; {way}"
        )

    if data.fps != other.fps:
        raise refuse(
            "fps is", f"{data.fps:g}", f"{other.fps:g}", "a chunk would mean another time in each; mix data of one fps"
        )
    rename = f"say dataset.rename.{name}={{<its name>: <the mix's>}}"
    if set(data.frames) != set(other.frames):
        ways = f"choose among dataset.sources.{name}.cameras, or {rename}"
        raise refuse("cameras are", sorted(data.frames), sorted(other.frames), ways)
    if data.image_size != other.image_size:
        ways = f"set dataset.sources.{name}.image_size and dataset.sources.{first}.image_size to the same"
        raise refuse("pictures are", data.image_size, other.image_size, ways)
    order = []
    for what, mine, theirs, size, wanted in (
        ("state", data.state_names, other.state_names, data.state.shape[1], other.state.shape[1]),
        ("actions", data.joint_names, other.joint_names, data.actions.shape[1], other.actions.shape[1]),
    ):
        if sorted(mine) != sorted(theirs) or size != wanted or len(set(mine)) < len(mine):
            said = [
                f"({count}) are {', '.join(names) or 'without names'}"
                for count, names in ((size, mine), (wanted, theirs))
            ]
            raise refuse(what, said[0], said[1], f"{rename}, or choose other features (state_key, action_key)")
        if not mine:
            raise refuse(
                what,
                "has no names",
                "has none either",
                "nobody can say whether they are the same; name them in meta/info.json (features.<name>.names)",
            )
        order.append([mine.index(one) for one in theirs])
    return replace(
        data,
        frames={camera: data.frames[camera] for camera in other.frames},
        state=data.state[:, order[0]],
        actions=data.actions[:, order[1]],
        state_names=other.state_names,
        joint_names=other.joint_names,
    )
