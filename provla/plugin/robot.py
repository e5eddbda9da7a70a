"""The robot that LeRobot's rollout is about to drive, held against a policy before anything moves."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from provla.core.types import Spec

DEPTH = 12  # calls between a rollout's set-up and a policy's reset


def feature(camera: str) -> str:
    """LeRobot's key of a camera."""
    return camera if camera.startswith("observation.") else f"observation.images.{camera}"


def sizes(spec: Spec, camera: str) -> list[tuple[int, int]]:
    """(h, w) that a camera's pictures may have: as recorded, or reduced already."""
    own = spec.sizes[camera]
    return [spec.recorded.get(camera, own), own]


def check_robot(spec: Spec) -> None:
    """`ValueError` where joints or cameras of the robot are not the policy's, in number, name or order.

    LeRobot tells a policy nothing of the robot: its engine hands over vectors, and where the robot has its joints in
    another order it would permute them without a word. But it resets the policy before anything moves, and its
    `RolloutContext`, which knows, is then a caller's. Elsewhere there is nothing to hold the policy against.
    """
    if (context := _rollout()) is None:
        return
    features, asked = context.data.dataset_features, context.runtime.cfg
    for what, key, names in (
        ("action", "action", spec.action_names),
        ("state", "observation.state", spec.state_names),
    ):
        check_joints(what, names, features.get(key, {}).get("names") or [])
    renamed = {asked.rename_map.get(key, key): feature["shape"] for key, feature in features.items()}
    check_cameras(spec, renamed)
    if abs(asked.fps - spec.fps) > 1e-6:
        logging.warning(
            "the policy was trained on %g control steps a second and the robot is driven at %g (--fps): it will move "
            "at %.2g times the demonstrations' speed",
            spec.fps,
            asked.fps,
            asked.fps / spec.fps,
        )


def _rollout() -> Any:
    """The context of the rollout that calls, if one does."""
    module = sys.modules.get("lerobot.rollout.context")  # who has not imported it is none
    frame = sys._getframe(1)
    for _ in range(DEPTH if module else 0):
        found = frame.f_locals.get("ctx")
        if module and isinstance(found, module.RolloutContext):
            return found
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def check_joints(what: str, names: Sequence[str], robot: Sequence[str]) -> None:
    """Names with and without LeRobot's suffix `.pos` are the same; numbered ones, or none, say nothing."""
    mine, theirs = _plain(names), _plain(robot)
    numbered = mine == [f"joint{i}" for i in range(len(mine))]
    if numbered and set(mine) != set(theirs):
        logging.warning(
            "the policy knows no names of its %s's numbers (its data set had none, or an earlier provla stored it): "
            "whether the robot has them in the same order (%s), only you can say",
            what,
            ", ".join(robot),
        )
    elif mine != theirs:
        order = sorted(mine) == sorted(theirs)
        raise ValueError(
            f"the robot's {what} is {', '.join(robot)}, the policy's {', '.join(names)}: "
            + ("the same joints in another order, which LeRobot would mix up; " if order else "")
            + "use the robot, and the order of its joints, that the demonstrations were recorded with"
        )


def _plain(names: Sequence[str]) -> list[str]:
    return [name.removesuffix(".pos") for name in names]


def check_cameras(spec: Spec, found: Mapping[str, Sequence[int]]) -> None:
    """found: key → (h, w, 3) of a picture, and of whatever else there is."""
    for camera in spec.cameras:
        if (key := feature(camera)) not in found:
            there = [key for key in found if "image" in key]
            raise ValueError(
                f"the policy looks through the camera {camera!r} ({key}), which is missing; there are: "
                f"{', '.join(there) or 'none'}; give the robot's camera its name, or --rename_map"
            )
        if (size := tuple(found[key][:2])) not in sizes(spec, camera):
            wanted = sizes(spec, camera)[0]
            raise ValueError(
                f"the camera {camera!r} gives pictures of {size[0]}×{size[1]}; the policy's demonstrations were "
                f"recorded at {wanted[0]}×{wanted[1]}: set the camera to that"
            )
