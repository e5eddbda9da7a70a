"""What worlds in MuJoCo share: pictures that are quick in software, and whether the physics still holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.env.scene import View

if sys.platform == "linux":  # mujoco reads both when first imported; its own default wants a display
    os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])

Array = NDArray[Any]


@cache
def require_opengl() -> None:
    """`ValueError` that says what to install when nothing can be rendered off screen."""
    try:
        import mujoco

        camera = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
        camera.render()
        camera.close()
    except Exception as error:
        raise ValueError(
            f"no OpenGL for off-screen rendering (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {error}\n"
            "Install it (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with MUJOCO_GL=osmesa), "
            "or train without simulation: env=none with a data set on disk."
        ) from error


def unstable(data: Any) -> bool:
    """Whether the physics of a simulation has left the numbers: MuJoCo then warns, and starts over by itself."""
    import mujoco

    bad = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
    return any(data.warning[int(each)].number for each in bad)


class Camera:
    """An off-screen renderer with everything off that is slow in software: shadows, reflections, multisampling.

    The buffer has the image's own size, (height, width). turned: the camera hangs upside down, and its picture is
    turned. sites: marks that the physics has no use for, such as a task's goal, are drawn.
    """

    def __init__(self, model: Any, name: str, size: tuple[int, int], turned: bool = False, sites: bool = True) -> None:
        import mujoco

        names = [model.camera(i).name for i in range(model.ncam)]
        if name not in names:
            raise ValueError(f"no camera {name!r} in this simulation; valid: {', '.join(names)}")
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = size
        self._name, self._turned = name, turned
        self._options = mujoco.MjvOption()
        if not sites:
            self._options.sitegroup[:] = 0
        self._renderer = mujoco.Renderer(model, *size, max_geom=1000)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def __call__(self, data: Any, view: View | None = None) -> Array:
        """(height, width, 3) uint8. view: what else than the scene's own is to be seen."""
        self._renderer.update_scene(data, self._name, self._options)
        if view is not None:
            view(self._renderer.scene, self._name)
        image = self._renderer.render()
        return np.ascontiguousarray(image[::-1, ::-1]) if self._turned else image

    def close(self) -> None:
        self._renderer.close()


class Eyes:
    """The cameras of a simulation, each made when it is first looked through. turned: those that hang upside down.
    sites: see `Camera`. view: of an episode that is perturbed.
    """

    def __init__(self, model: Any, data: Any, turned: Collection[str] = (), sites: bool = True) -> None:
        self.model, self.data, self._turned, self._sites = model, data, turned, sites
        self.view: View | None = None
        self._cameras: dict[tuple[str, tuple[int, int]], Camera] = {}

    def see(self, camera: str, size: tuple[int, int]) -> Array:
        """What a camera sees now, (height, width, 3) uint8."""
        if (camera, size) not in self._cameras:
            require_opengl()
            self._cameras[camera, size] = Camera(self.model, camera, size, camera in self._turned, self._sites)
        return self._cameras[camera, size](self.data, self.view)

    def close(self) -> None:
        while self._cameras:
            self._cameras.popitem()[1].close()
