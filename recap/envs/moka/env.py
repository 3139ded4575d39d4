"""The moka-pot tasks as a Gymnasium environment: 8-D state, 7-D actions, two cameras, grasping by real contact."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from recap.envs import rendering
from recap.envs.config import EnvConfig, MokaConfig
from recap.envs.moka import scene
from recap.envs.moka.tasks import TASKS, find_split, find_task, initial_rng
from recap.utils.errors import RecapError

CAMERAS = {"observation.images.image": "agentview", "observation.images.image2": "wrist"}
STATE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "left_finger", "right_finger")
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")

SPEED = 0.28  # m/s at action 1: 2.8 cm per step at 10 Hz
YAW_SPEED = 2.5  # rad/s at action 1
YAW_LIMIT = 1.2
AT_REST = 0.2  # m/s and rad/s
BOTTLE_MOVED = 0.008  # m: a bottle that was moved further has been pushed away
LIFTED = 0.03  # m: a pot this high above its place on the table is in the hand and on its way
BOTTLES_MET = scene.POT_HALF_WIDTH + scene.BOTTLE_RADIUS  # how near in y a pot touches them
WINDUP = 0.05  # how far the commanded position may run ahead of the hand when something blocks it


class Simulation:
    """One compiled scene, and where its parts lie in MuJoCo's arrays."""

    def __init__(self, layout: scene.Layout, image_size: int):
        self.mujoco = mujoco = rendering.import_mujoco()
        self.model = model = mujoco.MjModel.from_xml_string(scene.scene_xml(layout))
        self.data = mujoco.MjData(model)
        self.image_size, self.layout, self.pots = image_size, layout, layout.pots
        joint = {model.joint(i).name: model.joint(i) for i in range(model.njnt)}
        self.hand_qpos = np.array([joint[n].qposadr[0] for n in ("x", "y", "z", "yaw")])
        self.finger_qpos = np.array([joint[n].qposadr[0] for n in ("left", "right")])
        self.button_qpos = int(joint["button"].qposadr[0])
        self.pot_qpos = [int(joint[f"pot{i}"].qposadr[0]) for i in range(layout.pots)]
        self.pot_dof = [int(joint[f"pot{i}"].dofadr[0]) for i in range(layout.pots)]
        self.pot_body = [model.body(f"pot{i}").id for i in range(layout.pots)]
        self.pot_geom = [model.geom(f"pot{i}").id for i in range(layout.pots)]
        self.pad_geoms = {model.geom("pad0").id, model.geom("pad1").id, model.geom("palm").id}
        self.burner_geoms = [model.geom(f"burner{i}").id for i in range(len(layout.burners))]
        bottles = range(len(layout.bottle_positions()))
        self.bottle_qpos = [int(joint[f"bottle{i}"].qposadr[0]) for i in bottles]
        self.bottle_body = [model.body(f"bottle{i}").id for i in bottles]
        self.stove_body, self.trivet_body = model.body("stove").id, model.body("trivet").id
        self.cameras = {name: model.camera(name).id for name in CAMERAS.values()}

    def render(self, camera: str) -> np.ndarray:
        return rendering.shared_renderer(self.model, self.image_size)(self.model, self.data, self.cameras[camera])


class MokaEnv(gym.Env):
    """Gymnasium interface; also holds the privileged state that the scripted demonstrator reads.

    Actions, float32 (7,) in [-1, 1]: dx, dy, dz (2.8 cm at 10 Hz), droll and dpitch (ignored: the gripper points down),
    dyaw (0.25 rad), gripper (> 0 closes). They move a commanded pose that the hand follows, so 0 means stand still.
    Observations: `observation.images.image` (agent view) and `.image2` (wrist), uint8 (H, W, 3), and
    `observation.state`, float32 (8,): grasp point (m), axis-angle (only the third moves), the two fingers (m; the
    second negative, as in LIBERO).
    Raises RecapError for unknown tasks and splits, and for numbers out of range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as gymnasium declares it)

    def __init__(
        self,
        task: str | None = None,
        split: str = "evaluation",
        image_size: int = 64,
        fps: int = 10,
        max_steps: int = 50,
        render_mode: str | None = "rgb_array",
        choices: MokaConfig | None = None,
    ):
        if fps < 1 or fps > 50 or round(1 / scene.TIMESTEP) % fps:
            raise RecapError(
                f"env.fps={fps}: the physics runs at 200 Hz, so choose a divisor of 200 up to 50, for example 10."
            )
        if not 16 <= image_size <= 1024:
            raise RecapError(f"env.image_size={image_size}: choose a value from 16 to 1024, for example 64.")
        self.task = find_task(task or next(iter(TASKS)))
        self.split = find_split(split)
        self.image_size, self.fps, self.base_steps, self.render_mode = image_size, fps, max_steps, render_mode
        self.substeps = round(1 / scene.TIMESTEP) // fps
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {**dict.fromkeys(CAMERAS, image), "observation.state": gym.spaces.Box(-4.0, 4.0, (8,), np.float32)}
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.layouts = scene.layouts(choices or MokaConfig())
        self._simulations: dict[str, Simulation] = {}
        self.sim: Simulation
        self.choice: str | None = None
        self.choice_frame: int | None = None
        self._lifted: int | None = None
        self._up = False
        self.steps = 0

    # ------------------------------------------------------------------------------------------------ gymnasium
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Options: task, split, initial_state (an id ≥ 0; drawn from `seed` when absent), render (False: no images)."""
        super().reset(seed=seed)
        options = options or {}
        self.task = find_task(options.get("task", self.task))
        self.split = find_split(options.get("split", self.split))
        initial_state = options.get("initial_state")
        if initial_state is None:
            initial_state = int(self.np_random.integers(2**31))
        self.initial_state = int(initial_state)
        self._place(initial_rng(self.task, self.split, self.initial_state))
        return self.observe(options.get("render", True)), {"task": self.task, "initial_state": self.initial_state}

    def step(
        self, action: np.ndarray, render: bool = True
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Gymnasium's five values: success ends it with reward 1, the time-out truncates. `render=False`: no images."""
        self._move(np.asarray(action, dtype=np.float64))
        self.steps += 1
        self._watch()
        success = self.success()
        truncated = not success and self.steps >= self.max_steps(self.task)
        return self.observe(render), float(success), success, truncated, {"success": success, "choice": self.choice}

    def render(self) -> np.ndarray:
        return self.sim.render("agentview")

    def close(self) -> None:
        self._simulations.clear()

    # ------------------------------------------------------------------------------------------------ episode
    def max_steps(self, task: str) -> int:
        """Time-out of `task` in control steps: `max_steps`, times two with two pots."""
        return self.base_steps * TASKS[find_task(task)].length

    def observe(self, render: bool = True) -> dict[str, np.ndarray]:
        fingers = self.sim.data.qpos[self.sim.finger_qpos]
        state = np.array([*self.eef, 0.0, 0.0, self.yaw, fingers[0], -fingers[1]], dtype=np.float32)
        images = {key: self.sim.render(camera) for key, camera in CAMERAS.items()} if render else {}
        return {**images, "observation.state": state}

    def success(self) -> bool:
        """The goal of the instruction holds now."""
        if self.task == "turn on the stove":
            return self.stove_on
        if self.task == "put the moka pot on the trivet":
            return self.pot_at(0, self.trivet, scene.GOAL_RADIUS, scene.TRIVET_TOP)
        return self.bottles_stand() and all(self.on_stove(index) for index in range(self.sim.pots))

    def on_stove(self, index: int) -> bool:
        """Pot `index` stands on one of the burners, let go of."""
        radii = (burner.radius for burner in self.sim.layout.burners)
        return any(self.pot_at(index, *place, scene.STOVE_TOP) for place in zip(self.burners, radii, strict=True))

    def bottles_stand(self) -> bool:
        """No bottle has been knocked over or pushed away."""
        for body, place in zip(self.sim.bottle_body, self.bottles, strict=True):
            moved = np.hypot(*(self.sim.data.xpos[body][:2] - place))
            if moved > BOTTLE_MOVED or self.sim.data.xmat[body][8] < 0.97:
                return False
        return True

    def pot_at(self, index: int, center: np.ndarray, radius: float, top: float) -> bool:
        """Pot `index` stands upright and at rest within `radius` of `center` (x, y) at height `top`, let go of."""
        position = self.pot_position(index)
        if np.hypot(*(position[:2] - center)) > radius or abs(position[2] - top - scene.POT_HALF_HEIGHT) > 0.006:
            return False
        body, geom = self.sim.pot_body[index], self.sim.pot_geom[index]
        upright = self.sim.data.xmat[body][8] > 0.97
        if not upright or np.abs(self.sim.data.qvel[self.sim.pot_dof[index] :][:6]).max() > AT_REST:
            return False
        for contact in self.sim.data.contact[: self.sim.data.ncon]:
            a, b = contact.geom1, contact.geom2
            if (a == geom and b in self.sim.pad_geoms) or (b == geom and a in self.sim.pad_geoms):
                return False
        return True

    # ------------------------------------------------------------------------------------------------ privileged state
    @property
    def eef(self) -> np.ndarray:
        """Grasp point between the fingers, (3,) m."""
        return self.sim.data.qpos[self.sim.hand_qpos[:3]]

    @property
    def yaw(self) -> float:
        return float(self.sim.data.qpos[self.sim.hand_qpos[3]])

    @property
    def opening(self) -> float:
        """Distance between the fingers, m."""
        return float(self.sim.data.qpos[self.sim.finger_qpos].sum())

    @property
    def burners(self) -> np.ndarray:
        """Centres of the burners, (n, 2) m."""
        return self.stove + np.array([[burner.x, burner.y] for burner in self.sim.layout.burners])

    @property
    def bottles(self) -> np.ndarray:
        """Where the bottles stood at the start, (n, 2) m; n is 0 or 2."""
        return self.stove + self.sim.layout.bottle_positions()

    def pot_position(self, index: int) -> np.ndarray:
        return self.sim.data.qpos[self.sim.pot_qpos[index] :][:3].copy()

    def pot_yaw(self, index: int) -> float:
        matrix = self.sim.data.xmat[self.sim.pot_body[index]]
        return float(np.arctan2(matrix[3], matrix[0]))

    # ------------------------------------------------------------------------------------------------ inside
    def _place(self, rng: np.random.Generator) -> None:
        """Puts everything where `rng` says; nothing of an earlier episode may survive, so that runs are repeatable."""
        layout = TASKS[self.task].layout
        if layout not in self._simulations:
            self._simulations[layout] = Simulation(self.layouts[layout], self.image_size)
        sim = self.sim = self._simulations[layout]
        sim.mujoco.mj_resetData(sim.model, sim.data)
        self.stove = scene.STOVE_CENTER + rng.uniform(-0.012, 0.012, 2)
        self.trivet = scene.TRIVET_CENTER + rng.uniform(-0.012, 0.012, 2)
        sim.model.body_pos[sim.stove_body, :2] = self.stove
        sim.model.body_pos[sim.trivet_body, :2] = self.trivet
        self.command = np.array([*(scene.EEF_HOME + rng.uniform(-0.02, 0.02, 3)), rng.uniform(-0.1, 0.1)])
        sim.data.qpos[sim.hand_qpos] = self.command
        sim.data.qpos[sim.finger_qpos] = scene.FINGER_OPEN
        placed: list[np.ndarray] = []
        low, high = sim.layout.area
        for address in sim.pot_qpos:
            while True:
                xy = rng.uniform(low, high)
                if all(np.hypot(*(xy - other)) > 0.10 for other in placed):
                    break
            placed.append(xy)
            half_yaw = rng.uniform(-scene.POT_YAW, scene.POT_YAW) / 2
            sim.data.qpos[address : address + 7] = [
                *xy,
                scene.POT_HALF_HEIGHT,
                np.cos(half_yaw),
                0,
                0,
                np.sin(half_yaw),
            ]
        for address, place in zip(sim.bottle_qpos, self.bottles, strict=True):
            sim.data.qpos[address : address + 7] = [*place, scene.BOTTLE_HEIGHT / 2, 1, 0, 0, 0]
        self.choice = self.choice_frame = self._lifted = None
        self._up = False
        self.closed = False
        self.steps = 0
        self._light(on=False)
        self._control()
        sim.mujoco.mj_forward(sim.model, sim.data)

    def _watch(self) -> None:
        """Keeps `choice`, and in `choice_frame` when the pot was last lifted before it took this way.

        From there on the ways part. None where the pot was never lifted.
        """
        up = bool(self.pot_position(0)[2] > scene.POT_HALF_HEIGHT + LIFTED)
        if up and not self._up:
            self._lifted = self.steps
        self._up, choice = up, self._choice()
        if choice != self.choice:
            self.choice, self.choice_frame = choice, self._lifted

    def _choice(self) -> str | None:
        """Which way the pot takes: over the stove the burner whose rim was last nearest; how it first met the bottles.

        None before that, and where the task has only one way.
        """
        layout, pot = self.sim.layout, self.pot_position(0)
        if layout.choices and layout.bottles is None and pot[1] > self.stove[1] - scene.STOVE_HALF[1]:
            beside = np.hypot(*(self.burners - pot[:2]).T) - [burner.radius for burner in layout.burners]
            return layout.choices[int(np.argmin(beside))]
        if layout.bottles is not None and self.choice is None and pot[1] > self.bottles[0, 1] - BOTTLES_MET:
            return layout.choices[int(pot[2] - scene.POT_HALF_HEIGHT < scene.BOTTLE_HEIGHT)]
        return self.choice

    def _move(self, action: np.ndarray) -> None:
        if action.shape != (7,) or not np.isfinite(action).all():
            raise RecapError(f"An action must be 7 finite numbers, got shape {action.shape}: {action}.")
        action = np.clip(action, -1.0, 1.0)
        sim = self.sim
        self.command[:3] += action[:3] * (SPEED / self.fps)
        self.command[:3] = np.clip(self.command[:3], self.eef - WINDUP, self.eef + WINDUP)
        self.command[:3] = np.clip(self.command[:3], scene.WORKSPACE_LOW, scene.WORKSPACE_HIGH)
        self.command[3] = np.clip(self.command[3] + action[5] * (YAW_SPEED / self.fps), -YAW_LIMIT, YAW_LIMIT)
        self.closed = bool(action[6] > 0)
        self._control()
        sim.mujoco.mj_step(sim.model, sim.data, self.substeps)
        if not self.stove_on and sim.data.qpos[sim.button_qpos] < -0.6 * scene.BUTTON_TRAVEL:
            self._light(on=True)

    def _control(self) -> None:
        self.sim.data.ctrl[:4] = self.command
        self.sim.data.ctrl[4:] = -0.01 if self.closed else scene.FINGER_OPEN

    def _light(self, *, on: bool) -> None:
        self.stove_on = on
        self.sim.model.geom_rgba[self.sim.burner_geoms] = (0.98, 0.35, 0.05, 1.0) if on else (0.05, 0.05, 0.06, 1.0)


class MokaEpisodes:
    """`MokaEnv` with the face that rollouts use (see `recap.envs.Env`)."""

    state_dim, action_dim = 8, 7
    action_range: tuple[np.ndarray | float, np.ndarray | float] = (-1.0, 1.0)
    state_names: tuple[str, ...] | None = STATE_NAMES
    action_names: tuple[str, ...] | None = ACTION_NAMES
    cameras: tuple[str, ...] = tuple(CAMERAS)

    def __init__(
        self, tasks: tuple[str, ...], image_size: int, fps: int, max_steps: int, choices: MokaConfig | None = None
    ):
        if not tasks:
            raise RecapError(f"env.tasks is empty; name at least one of {', '.join(repr(t) for t in TASKS)}.")
        self.tasks = tuple(find_task(task) for task in tasks)
        self.unwrapped = MokaEnv(self.tasks[0], image_size=image_size, fps=fps, max_steps=max_steps, choices=choices)
        self.fps = fps

    def reset(
        self, *, task: str, split: str, initial_state: int, seed: int, render: bool = True
    ) -> dict[str, np.ndarray]:
        options = {"task": task, "split": split, "initial_state": initial_state, "render": render}
        return self.unwrapped.reset(seed=seed, options=options)[0]

    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, np.ndarray], bool, bool]:
        observation, _, success, truncated, _ = self.unwrapped.step(action, render)
        return observation, success, success or truncated

    @property
    def choice(self) -> str | None:
        return self.unwrapped.choice

    @property
    def choice_frame(self) -> int | None:
        return self.unwrapped.choice_frame

    def max_steps(self, task: str) -> int:
        return self.unwrapped.max_steps(task)

    def close(self) -> None:
        self.unwrapped.close()


def make(config: EnvConfig) -> MokaEpisodes:
    return MokaEpisodes(tuple(config.tasks), config.image_size, config.fps, config.max_steps, config.moka)


def instructions(config: EnvConfig) -> list[str]:
    return config.tasks


def check(config: EnvConfig) -> None:
    rendering.choose_gl()
    make(config).close()
