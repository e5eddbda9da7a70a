"""What worlds in MuJoCo share: pictures that are quick in software, and whether the physics still holds."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Collection
from functools import cache
from hashlib import blake2b
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from provla.env.scene import View

if sys.platform == "linux":  # mujoco reads both when first imported; its own default wants a display
    os.environ.setdefault("MUJOCO_GL", "egl")
    if os.environ["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])

Array = NDArray[Any]


def require_opengl() -> None:
    """`ValueError` that says what to install when nothing can be rendered off screen."""
    try:
        _draw()
    except Exception as error:
        raise ValueError(
            f"no OpenGL for off-screen rendering (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}): {error}\n"
            "Install it (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with MUJOCO_GL=osmesa), "
            "or train without simulation: env=none with a data set on disk."
        ) from error


@cache
def _draw() -> None:
    """Something, once in a process."""
    import mujoco

    camera = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
    camera.render()
    camera.close()


def unstable(data: Any) -> bool:
    """Whether the physics of a simulation has left the numbers: MuJoCo then warns, and starts over by itself."""
    import mujoco

    bad = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
    return any(data.warning[int(each)].number for each in bad)


class _Screen:
    """Where models are drawn off screen that have the same meshes and textures, which lie with OpenGL: to bring them
    there takes as long as dozens of pictures.
    """

    _context: Any = None

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        import mujoco

        model.vis.global_.offheight, model.vis.global_.offwidth = size
        self._size, self._gl = size, mujoco.gl_context.GLContext(*size[::-1])
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def draw(self, scene: Any, size: tuple[int, int]) -> Array:
        """(height, width, 3) uint8."""
        import mujoco

        (height, width), picture = size, np.empty((*size, 3), np.uint8)
        self._gl.make_current()
        if height > self._size[0] or width > self._size[1]:
            self._size = max(height, self._size[0]), max(width, self._size[1])
            mujoco.mjr_resizeOffscreen(self._size[1], self._size[0], self._context)
        place = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(place, scene, self._context)
        mujoco.mjr_readPixels(picture, None, place, self._context)
        return picture[::-1]

    def close(self) -> None:
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    __del__ = close


_screens: WeakValueDictionary[str, _Screen] = WeakValueDictionary()


@cache
def _close_at_exit() -> None:
    """Once there is a screen: what was registered first, as OpenGL's own end, comes last."""

    def close() -> None:
        for screen in list(_screens.values()):
            screen.close()

    atexit.register(close)


def _screen(model: Any, size: tuple[int, int]) -> _Screen:
    """That of models which OpenGL is given the same of: settings, meshes, textures, height fields, skins."""
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    settings = [getattr(model.vis, part) for part in ("headlight", "map", "quality", "rgba", "scale")]
    found = blake2b("".join(repr(each) for each in (*settings, model.stat)).encode())
    for name in dir(model):
        if name.startswith(("mesh_", "tex_", "hfield_", "skin_")):
            found.update(np.ascontiguousarray(getattr(model, name)).data)
    key = found.hexdigest()
    held = _screens.get(key) or _Screen(model, size)
    _screens[key] = held
    _close_at_exit()
    return held


class Camera:
    """A camera of a simulation, off screen, with everything off that is slow in software: shadows, reflections,
    multisampling.

    turned: the camera hangs upside down, and its picture is turned. sites: marks that the physics has no use for, such
    as a task's goal, are drawn. beside: another of this simulation, if there is one: it knows where that is drawn.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        size: tuple[int, int],
        turned: bool = False,
        sites: bool = True,
        beside: Camera | None = None,
    ) -> None:
        import mujoco

        names = [model.camera(i).name for i in range(model.ncam)]
        if name not in names:
            raise ValueError(f"no camera {name!r} in this simulation; valid: {', '.join(names)}")
        self._name, self._model, self._size, self._turned = name, model, size, turned
        self._options = mujoco.MjvOption()
        if not sites:
            self._options.sitegroup[:] = 0
        self._eye = mujoco.MjvCamera()
        self._eye.type, self._eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(name)
        self._scene = mujoco.MjvScene(model, 1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._screen: _Screen | None = _screen(model, size) if beside is None else beside._screen

    def __call__(self, data: Any, view: View | None = None) -> Array:
        """(height, width, 3) uint8. view: what else than the scene's own is to be seen."""
        import mujoco

        if self._screen is None:
            raise RuntimeError("this camera was closed")
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._eye, every, self._scene)
        if view is not None:
            view(self._scene, self._name)
        image = self._screen.draw(self._scene, self._size)
        return np.ascontiguousarray(image[::-1, ::-1] if self._turned else image)

    def close(self) -> None:
        self._screen = None


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
            self._cameras[camera, size] = Camera(
                self.model, camera, size, camera in self._turned, self._sites, next(iter(self._cameras.values()), None)
            )
        return self._cameras[camera, size](self.data, self.view)

    def close(self) -> None:
        while self._cameras:
            self._cameras.popitem()[1].close()
