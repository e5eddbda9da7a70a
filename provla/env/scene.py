"""Perturbations of what a scene in MuJoCo looks like. They change what is drawn, picture by picture, and leave the
model and its physics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Draw = Callable[[str], np.random.Generator]

SCENE = (
    "camera_yaw",
    "camera_pitch",
    "camera_distance",
    "light_direction",
    "light_brightness",
    "color",
    "texture",
    "distractors",
)
CLEAR = 0.12  # metres between a distractor and whatever moves
REACH = 0.3  # metres: what a camera on an arm is there to see is held, or about to be


def textured(model: Any) -> list[int]:
    """The materials of a model that wear a texture."""
    return [i for i in range(model.nmat) if (np.asarray(model.mat_texid[i]) >= 0).any()]


def _sign(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _turn(axis: Array, degrees: float) -> Array:
    """The rotation (3, 3) about an axis of length 1 (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    found: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return found


@dataclass
class _Thing:
    kind: int
    size: Array
    position: Array
    color: Array


class View:
    """How a scene is drawn in one episode; called with the scene after each update.

    cameras: those whose pictures a policy sees. amounts: factor → how much. draw: factor → its generator.
    """

    def __init__(
        self, model: Any, data: Any, cameras: Mapping[str, Any], amounts: Mapping[str, float], draw: Draw
    ) -> None:
        self._model, self._data, self._amounts = model, data, amounts
        self._pivots = {camera: self._looks_at(camera) for camera in cameras}
        signs = {name: _sign(draw(name)) for name in amounts}
        self._yaw = signs.get("camera_yaw", 0) * amounts.get("camera_yaw", 0)
        self._pitch = signs.get("camera_pitch", 0) * amounts.get("camera_pitch", 0)
        self._nearer = signs.get("camera_distance", 0) * amounts.get("camera_distance", 0)
        self._swing = signs.get("light_direction", 0) * amounts.get("light_direction", 0)
        dark = amounts.get("light_brightness", 0)
        self._bright = 1 - dark if signs.get("light_brightness", 0) > 0 else 1 + dark
        if "color" in amounts:
            self._colors = draw("color").uniform(0, 1, (model.ngeom, 3))
        if "texture" in amounts:
            rng, materials = draw("texture"), textured(model)
            changed = rng.random(model.ngeom) < amounts["texture"]
            others = rng.choice(materials, model.ngeom)
            self._materials = np.where(changed, others, -1)
        self._things = self._place(next(iter(cameras)), draw("distractors"), int(amounts.get("distractors", 0)))

    def __call__(self, scene: Any, camera: str) -> None:
        """Changes a scene (`mjvScene`) that has just been updated for a camera."""
        self._move_camera(scene, self._pivots.get(camera, 1.0))
        self._relight(scene)
        self._repaint(scene)
        for thing in self._things:
            self._add(scene, thing)

    def _ray(self, start: Array, way: Array) -> tuple[float, int]:
        """Distance to the first thing drawn, and its geom; -1 where there is none."""
        import mujoco

        hit = np.full(1, -1, np.int32)
        found = mujoco.mj_ray(self._model, self._data, start, way, None, 1, -1, hit)
        return float(found), int(hit[0])

    def _looks_at(self, camera: str) -> float:
        """How far away is what a camera looks at, in metres: at the start, and of one that moves no more than REACH."""
        eye = self._data.camera(camera)
        found, _ = self._ray(np.array(eye.xpos), -np.array(eye.xmat).reshape(3, 3)[:, 2])
        moves = self._model.body_weldid[self._model.cam_bodyid[eye.id]] != 0
        return min(found if found > 0 else 1.0, REACH if moves else np.inf)

    def _move_camera(self, scene: Any, distance: float) -> None:
        if not (self._yaw or self._pitch or self._nearer):
            return
        for eye in scene.camera:
            forward, up = np.array(eye.forward), np.array(eye.up)
            pivot = np.array(eye.pos) + distance * forward
            turn = _turn(up, self._yaw) @ _turn(np.cross(forward, up), self._pitch)
            eye.pos[:] = pivot - (1 + self._nearer) * distance * (turn @ forward)
            eye.forward[:], eye.up[:] = turn @ forward, turn @ up

    def _relight(self, scene: Any) -> None:
        if self._swing == 0 and self._bright == 1:
            return
        turn = _turn(np.array([0.0, 0.0, 1.0]), self._swing)
        for light in scene.lights[: scene.nlight]:
            for shine in (light.ambient, light.diffuse, light.specular):
                shine[:] = np.array(shine) * self._bright
            if not light.headlight:
                light.dir[:], light.pos[:] = turn @ np.array(light.dir), turn @ np.array(light.pos)

    def _repaint(self, scene: Any) -> None:
        import mujoco

        share = self._amounts.get("color", 0)
        if not share and "texture" not in self._amounts:
            return
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objtype != mujoco.mjtObj.mjOBJ_GEOM or geom.objid < 0:
                continue
            if share:
                geom.rgba[:3] = (1 - share) * np.array(geom.rgba[:3]) + share * self._colors[geom.objid]
            if "texture" in self._amounts and self._materials[geom.objid] >= 0:
                geom.matid = self._materials[geom.objid]

    def _place(self, camera: str, rng: np.random.Generator, count: int) -> list[_Thing]:
        """Things that stand where a camera sees a surface that never moves, away from what does."""
        import mujoco

        kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER)
        moving = [i for i in range(self._model.ngeom) if self._model.body_weldid[self._model.geom_bodyid[i]]]
        eye = self._data.camera(camera)
        axes, start = np.array(eye.xmat).reshape(3, 3), np.array(eye.xpos)
        slope = np.tan(np.radians(float(self._model.cam_fovy[eye.id]) / 2))
        found: list[_Thing] = []
        for _ in range(400):
            if len(found) == count:
                break
            x, y = rng.uniform(-0.9, 0.9, 2) * slope
            way = axes @ np.array([x, y, -1.0])
            far, geom = self._ray(start, way / np.linalg.norm(way))
            size, kind, color = rng.uniform(0.018, 0.04), int(rng.choice(kinds)), [*rng.uniform(0, 1, 3), 1.0]
            if geom < 0 or self._model.body_weldid[self._model.geom_bodyid[geom]]:
                continue
            place = start + far * way / np.linalg.norm(way) + np.array([0, 0, size])
            near = np.linalg.norm(self._data.geom_xpos[moving] - place, axis=1) if moving else np.array([np.inf])
            if near.min() > CLEAR:
                found.append(_Thing(kind, np.full(3, size), place, np.array(color, np.float32)))
        return found

    @staticmethod
    def _add(scene: Any, thing: _Thing) -> None:
        import mujoco

        if scene.ngeom < scene.maxgeom:
            mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom], thing.kind, thing.size, thing.position, np.eye(3).flatten(), thing.color
            )
            scene.ngeom += 1
