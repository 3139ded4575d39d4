"""LIBERO: any suite and task through lerobot's environment; its standard initial states, and its assets."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import yaml

from recap.envs.config import EnvConfig
from recap.envs.lerobot.env import LerobotEpisodes, matching, state_seed
from recap.envs.rendering import choose_gl
from recap.utils.errors import RecapError
from recap.utils.files import write_text
from recap.utils.hub import Need, download, find

STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "left_finger", "right_finger")
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
ASSETS = "RECAP_LIBERO_ASSETS"  # environment variable: a folder of assets
ASSETS_REPO = "lerobot/libero-assets"  # a data set of the hub
FOLDERS = ("scenes", "textures", "articulated_objects", "turbosquid_objects", "stable_scanned_objects")
EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
STANDARD_STATES = 50  # initial states that LIBERO ships for each task, and that everybody evaluates on
SETTLE_STEPS = 10  # as lerobot waits for objects to come to rest after a reset; only the last is looked at
INSTALL = "pip install -e '.[libero]' (Linux)"


class LiberoEpisodes(LerobotEpisodes):
    """Tasks of one LIBERO suite (see `recap.envs.Env`).

    Evaluation: the 50 standard initial states; state k ≥ 50 is standard state k mod 50 again, told apart by the
    policy's noise. Collection: LIBERO's own random placements from a seed, which are none of the 50.
    """

    state_names: tuple[str, ...] | None = STATE_NAMES
    action_names: tuple[str, ...] | None = ACTION_NAMES

    def __init__(self, config: EnvConfig) -> None:
        tasks_of(config)  # before lerobot is imported: this is cheap, and import_libero has to come first
        choose_gl()
        super().__init__(config)
        from lerobot.envs.libero import get_libero_dummy_action

        self._rest = get_libero_dummy_action()

    def _lerobot_config(self) -> Any:
        made = super()._lerobot_config()
        made.fps = self.config.fps  # robosuite's control frequency: LIBERO runs at any
        return made

    def _state_dim(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return len(STATE_NAMES)

    def _leave(self, env: gym.Env[Any, Any]) -> None:
        env.close()  # a scene takes hundreds of megabytes

    def _reset(self, env: gym.Env[Any, Any], number: int, split: str, initial_state: int) -> Any:
        use_assets(find_assets())
        one: Any = env.unwrapped
        one.init_states = split == "evaluation"
        one.init_state_id = standard = initial_state % STANDARD_STATES
        # The stove and other fixtures are not part of a standard state: they stand where the seed puts them.
        seed = standard if one.init_states else state_seed(split, number, initial_state)
        with _numbered_gpu():
            one._ensure_env()
            # hf-libero adds its samplers to this list at every reset and draws from all of them: with a list that
            # grows, the placement would depend on how many episodes came before.
            one._env.env.object_property_initializers = []
            one.num_steps_wait = 0
            raw = env.reset(seed=seed)[0]
        for i in range(SETTLE_STEPS):
            _look(one, i == SETTLE_STEPS - 1)
            raw = one._format_raw_obs(one._env.step(self._rest)[0])
        return raw

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        _look(self._env.unwrapped, render)
        return super().step(action, render)


def make(config: EnvConfig) -> LiberoEpisodes:
    return LiberoEpisodes(config)


def instructions(config: EnvConfig) -> list[str]:
    return list(tasks_of(config))


def needs() -> list[Need]:
    """Its assets, where they are not here."""
    if assets_here():
        return []
    files = tuple(f"{name}/*" for name in FOLDERS)
    return [Need("LIBERO's assets", ASSETS_REPO, "dataset", files, instead=f"{ASSETS}=<their folder>")]


def tasks_of(config: EnvConfig) -> dict[str, int]:
    """{instruction: number in the suite} of `env.tasks`; starts no simulator.

    Raises RecapError: hf-libero is not installed; unknown suite or task.
    """
    import_libero()
    from libero.libero.benchmark import get_benchmark_dict

    suites = {name: suite for name, suite in get_benchmark_dict().items() if name != "libero_100"}
    if config.suite not in suites:
        raise RecapError(f"env.suite={config.suite}: no such suite. Choose one of {', '.join(suites)}.")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells the order of its tasks
        tasks = suites[config.suite]().tasks
    return matching(config, [(task.name, task.language) for task in tasks])


@contextlib.contextmanager
def _numbered_gpu() -> Iterator[None]:
    """While a scene is made: robosuite ends where CUDA_VISIBLE_DEVICES is empty or has names, but for this variable.

    Where it is imported it ends at this variable instead, so it does not stay for processes that begin later.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible is not None and not all(gpu.isdigit() for gpu in visible.split(","))
    if not named or EGL_DEVICE in os.environ:
        yield
        return
    os.environ[EGL_DEVICE] = "0"
    try:
        yield
    finally:
        del os.environ[EGL_DEVICE]


def _look(env: Any, on: bool) -> None:
    """Switches the cameras, which take nearly all of a step. The simulation object is another after each reset."""
    simulation = env._env.sim
    if on:
        vars(simulation).pop("render", None)
    else:
        simulation.render = _black


def _black(*, width: int, height: int, **_: Any) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


# ------------------------------------------------------------------------------------------------ installation, assets
@functools.cache
def import_libero() -> ModuleType:
    """hf-libero's `libero.libero`, with a configuration, without which it would ask on standard input.

    Raises RecapError: it is not installed; the configuration cannot be written.
    """
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise RecapError(f"env=libero: hf-libero is not installed. Fix: {INSTALL}")
    root = Path(found.submodule_search_locations[0]) / "libero"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    own = cache / "recap" / f"libero-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH") or own).expanduser()
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files"}
    paths |= {"datasets": root.parent / "datasets", "assets": root / "assets"}
    file = folder / "config.yaml"
    try:
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(file, yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    except OSError as error:
        raise RecapError(
            f"env=libero: {file} cannot be written ({error.strerror}). Fix: LIBERO_CONFIG_PATH=<a folder of yours>"
        ) from error
    for chatty in ("robosuite_logs", "OpenGL"):  # they recommend files and modules that nobody needs
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=SyntaxWarning, module="robosuite")
    import libero.libero

    return libero.libero


@functools.cache
def use_assets(folder: Path) -> None:
    """Makes hf-libero read its assets here, instead of in its package or a download of its own."""
    vars(import_libero())["_assets_path_cache"] = str(folder)


def assets_here() -> bool:
    """Whether they are on this machine, or the user has named a folder (which is checked when it is used)."""
    try:
        return bool(os.environ.get(ASSETS)) or find_assets().is_dir()
    except RecapError:
        return False


def find_assets() -> Path:
    """The folder of LIBERO's assets: $RECAP_LIBERO_ASSETS and no other, or hf-libero's own, or the hub's cache.

    Raises RecapError where there is none.
    """
    if named := os.environ.get(ASSETS):
        given = Path(named).expanduser()
        if missing := [name for name in FOLDERS if not (given / name).is_dir()]:
            raise RecapError(f"{ASSETS}={named}: has no {', '.join(missing)}. Fix: LIBERO's assets folder, or unset it")
        return given.absolute()
    package = Path(str(import_libero().__file__)).parent / "assets"
    downloaded = Path("~/.cache/libero/assets").expanduser()  # where hf-libero itself puts them
    for folder in (package, downloaded, find(ASSETS_REPO, "dataset")):
        if folder is not None and all((folder / name).is_dir() for name in FOLDERS):
            return folder
    raise RecapError(
        f"LIBERO's assets are not on this machine. Fix: {download(ASSETS_REPO, 'dataset')}, or {ASSETS}=<their folder>"
    )
