"""Off-screen rendering without a display: which OpenGL to use, and one small renderer a process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import subprocess
import sys
import threading
from types import ModuleType
from typing import Any

import numpy as np

from recap.utils.errors import RecapError

INSTALL = (
    "Install one (Debian, Ubuntu: `apt-get install libegl1 libgl1-mesa-dri`, or `apt-get install libosmesa6`), "
    "or name one that works here in MUJOCO_GL (egl, osmesa or glfw)."
)
TRIED = "RECAP_MUJOCO_GL"  # which one was seen to work, for the processes below this one
PROBE = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"


@functools.cache
def choose_gl() -> str:
    """Sets MUJOCO_GL and returns it: on Linux the user's value, or else the first of EGL and OSMesa that works.

    Each is tried in a process of its own (half a second), since a broken driver may crash it. Call this before starting
    workers, which inherit the answer. macOS keeps mujoco's own choice (""). Raises RecapError when none works.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if not sys.platform.startswith("linux") or (chosen and os.environ.get(TRIED) == chosen):
        return chosen
    for candidate in (chosen,) if chosen else ("egl", "osmesa"):
        environment = os.environ | ({} if chosen else {"MUJOCO_GL": candidate, "PYOPENGL_PLATFORM": candidate})
        with contextlib.suppress(subprocess.TimeoutExpired):
            command = [sys.executable, "-c", PROBE]
            if subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode == 0:
                os.environ["MUJOCO_GL"] = os.environ[TRIED] = candidate
                return candidate
    if chosen:
        raise RecapError(f"MUJOCO_GL={chosen}: cannot draw here. Fix: unset MUJOCO_GL, then egl and osmesa are tried.")
    raise RecapError(f"The cameras are rendered with EGL or OSMesa, and neither works here. {INSTALL}")


@functools.cache
def import_mujoco() -> ModuleType:
    """mujoco, with a working OpenGL chosen before it is imported."""
    gl = choose_gl()
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa in software: small images gain nothing from threads
    try:
        import mujoco
    except Exception as error:  # mujoco's import raises whatever the OpenGL loader raises
        raise RecapError(f"mujoco cannot be imported with MUJOCO_GL={gl}: {error}. {INSTALL}") from error
    return mujoco


def make_context(model: Any, size: int) -> tuple[Any, Any]:
    """OpenGL's and mujoco's rendering context, of `choose_gl`'s kind also where mujoco was imported before it chose."""
    mujoco, gl = import_mujoco(), choose_gl().lower().strip()
    try:
        backend = importlib.import_module(f"mujoco.{gl}") if gl in ("egl", "osmesa") else mujoco
        context = backend.GLContext(size, size)
        context.make_current()
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
    except Exception as error:  # the backends raise errors of their own kinds
        raise RecapError(f"MUJOCO_GL={gl} cannot render here: {type(error).__name__} {error}. {INSTALL}") from error


class Renderer:
    """Images of a scene, uint8 (size, size, 3). One OpenGL context serves every environment of its thread."""

    def __init__(self, model: Any, size: int):
        mujoco = self._mujoco = import_mujoco()
        self._gl, self._context = make_context(model, size)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG", "CULL_FACE"):  # all but the last cost time only
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = flag == "CULL_FACE"
        self._option, self._perturbation, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), dtype=np.uint8)
        atexit.register(self._gl.free)

    def __call__(self, model: Any, data: Any, camera: int) -> np.ndarray:
        mujoco = self._mujoco
        self._gl.make_current()
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, self._perturbation, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()  # OpenGL counts rows from the bottom


_renderers = threading.local()


def shared_renderer(model: Any, size: int) -> Renderer:
    """The thread's renderer for this image size. Scenes without meshes and textures can share one."""
    by_size = _renderers.__dict__.setdefault("by_size", {})
    if size not in by_size:
        by_size[size] = Renderer(model, size)
    return by_size[size]
