"""The scripted demonstrator: reads the true state, and shows quality from clean to clumsy as its configuration says.

It can begin in any state, so it also corrects a policy: with a pot in the hand, or one that was put down elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from recap.envs.config import Skill
from recap.envs.moka import scene
from recap.envs.moka.env import SPEED, YAW_SPEED, MokaEnv

GRASP = 0.006  # m, grasp point above the pot's centre
CLEAR = 0.04  # m, a pot is carried this far above its resting height
ABOVE_BOTTLES = 0.03  # m, a pot is carried this far above them
CLOSE, OPEN = 1.0, -1.0
SLOW_SPEED = 0.4  # of the full action
HESITATE = ("reach", "descend", "carry", "lower")
BETWEEN = (0.03, 0.045)  # m, distance of the fingers with a pot between them
LOW = 0.035  # m above the grasp: a lower hand first rises, or it would push the pot away
PATIENCE = 1.5  # s without progress after which a policy is lost: longer than a demonstrator hesitates
PROGRESS = 0.005  # m


class Demonstrator:
    """Scripted actions for every instruction of env=moka.

    Each movement is slow with probability `slow`. Each movement towards something (reach, descend, carry, lower) begins
    with 0.5-1 s of standing still with probability `hesitate`. Each grasp closes beside the pot with probability
    `miss`, and is then tried again. `noise` is the standard deviation added to dx, dy, dz and dyaw. All zero is a
    clean expert. Where there are two ways to succeed, an episode shows the one that asks for precision with
    probability `risky`.
    The same `rng` state and the same initial state give the same episode.
    """

    def __init__(self, config: Skill, rng: np.random.Generator):
        self.config = config
        self.rng = rng
        self._nearest: tuple[int, float] | None = None  # to the goal, of a policy that is watched
        self._waited = 0  # control steps since then

    def reset(self, env: Any, task: str) -> None:
        """Starts the script, from whatever state `env`, a `MokaEpisodes` or a `MokaEnv`, is in."""
        self._plan = self._script(env.unwrapped, task)

    def act(self, env: Any) -> np.ndarray:
        """The next action, float32 (7,) in [-1, 1], for the environment that was given to `reset`."""
        action = next(self._plan)
        if self.config.noise > 0:
            action[[0, 1, 2, 5]] += self.rng.normal(0.0, self.config.noise, 4)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def lost(self, env: Any, task: str) -> bool:
        """Whether the policy that acts came no nearer to the goal for a while; asked before each of its steps."""
        pots, way = self._to_go(env.unwrapped, task)
        if self._nearest is None or (pots, way) < (self._nearest[0], self._nearest[1] - PROGRESS):
            self._nearest, self._waited = (pots, way), 0
        self._waited += 1
        return self._waited > PATIENCE * env.fps

    @staticmethod
    def _to_go(env: MokaEnv, task: str) -> tuple[int, float]:
        """(pots that are not where they belong, metres that the hand and the nearest of them have to go)."""
        if task == "turn on the stove":
            return 0, float(np.linalg.norm(env.eef - [*(env.stove + scene.BUTTON), scene.BUTTON_TOP]))
        on_trivet = task == "put the moka pot on the trivet"
        goals = env.trivet[None] if on_trivet else env.burners
        waiting = [pot for pot in range(env.sim.pots) if on_trivet or not env.on_stove(pot)]
        ways = [
            np.linalg.norm(env.eef - env.pot_position(pot)) + np.hypot(*(goals - env.pot_position(pot)[:2]).T).min()
            for pot in waiting
        ]
        return len(waiting), float(min(ways, default=0.0))

    # ------------------------------------------------------------------------------------------------ the script
    def _script(self, env: MokaEnv, task: str) -> Iterator[np.ndarray]:
        """One attempt after the other: what slipped or missed is seen in the true state and tried again."""
        choices = env.sim.layout.choices
        risky = bool(choices) and self.rng.random() < self.config.risky
        while True:
            if task == "turn on the stove":
                yield from self._press(env)
            elif task == "put the moka pot on the trivet":
                yield from self._put(env, 0, env.trivet, scene.TRIVET_TOP)
            else:
                waiting = [pot for pot in range(env.sim.pots) if not env.on_stove(pot)]
                if waiting:  # nearest to the stove first: it stands in the way of the others
                    pot = max(waiting, key=lambda index: env.pot_position(index)[1])
                    yield from self._put(env, pot, self._burner(env, pot, risky), scene.STOVE_TOP, risky)
            yield self._action(env, env.command[:3], env.command[3], OPEN)

    def _burner(self, env: MokaEnv, pot: int, risky: bool) -> np.ndarray:
        """The burner for `pot`, (2,): a free one, on the pot's side of the other pot so that paths do not cross.

        Where the burners differ, `risky` takes the small one.
        """
        if env.sim.layout.choices:
            return env.burners[-1 if risky else 0]
        others = [env.pot_position(index)[:2] for index in range(env.sim.pots) if index != pot]
        free = [burner for burner in env.burners if all(np.hypot(*(burner - other)) > 0.07 for other in others)]
        x = env.pot_position(pot)[0]
        if len(free) == 2 and others:
            return free[int(x > others[0][0])]
        return min(free or env.burners, key=lambda burner: abs(burner[0] - x))

    def _put(self, env: MokaEnv, pot: int, goal: np.ndarray, top: float, risky: bool = False) -> Iterator[np.ndarray]:
        position, yaw, grip = env.pot_position(pot), _nearest_turn(env.pot_yaw(pot), env.yaw), GRASP
        if self._holds(env, pot):  # a policy grasped it, perhaps not in the middle
            beside, position, yaw = env.eef - position, env.eef, env.yaw
            grip, goal = beside[2], goal + beside[:2]
            clear = max(position[2], top + scene.POT_HALF_HEIGHT + grip + CLEAR / 2)
            yield from self._to(env, [*position[:2], clear], yaw, CLOSE, "lift", tolerance=0.01)
        elif not (yield from self._grasp(env, pot, position, yaw)):
            return
        high, rest = top + scene.POT_HALF_HEIGHT + grip + CLEAR, top + scene.POT_HALF_HEIGHT + grip + 0.002
        if len(env.bottles) and risky:  # in line with the burner first, then between them
            yield from self._to(env, [goal[0], env.bottles[0, 1] - 0.06, high], 0.0, CLOSE, "line up", tolerance=0.003)
        elif len(env.bottles):
            high = scene.BOTTLE_HEIGHT + scene.POT_HALF_HEIGHT + GRASP + ABOVE_BOTTLES
            yield from self._to(env, [*position[:2], high], yaw, CLOSE, "lift", tolerance=0.02)
        yield from self._to(env, [*goal, high], 0.0, CLOSE, "carry", tolerance=0.02)
        yield from self._to(env, [*goal, rest], 0.0, CLOSE, "lower", tolerance=0.006)
        yield from self._hold(env, OPEN, 2)
        yield from self._to(env, [*goal, rest + 0.08], 0.0, OPEN, "retreat", tolerance=0.02)

    def _grasp(self, env: MokaEnv, pot: int, position: np.ndarray, yaw: float) -> Generator[np.ndarray, None, bool]:
        """Lifts the pot that stands at `position` (3,); whether it is in the hand then."""
        low = position[2] + GRASP
        if env.eef[2] < low + LOW:
            yield from self._to(env, [*env.eef[:2], low + 0.075], env.yaw, OPEN, "rise", tolerance=0.02)
            position = env.pot_position(pot)  # it fell out of the hand, or was touched
        missed = self.rng.random() < self.config.miss
        if missed:  # beside the pot along the fingers' flat side, so that they close on air
            side = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(0.045, 0.055)
            position = position + side * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        yield from self._to(env, [*position[:2], low + 0.075], yaw, OPEN, "reach", tolerance=0.012)
        yield from self._to(env, [*position[:2], low], yaw, OPEN, "descend", tolerance=0.005)
        yield from self._hold(env, CLOSE, 3)
        yield from self._to(env, [*position[:2], low + 0.06], yaw, CLOSE, "lift", tolerance=0.02)
        lifted = env.pot_position(pot)
        return bool(np.hypot(*(lifted[:2] - env.eef[:2])) <= 0.02 and lifted[2] >= position[2] + 0.02)

    @staticmethod
    def _holds(env: MokaEnv, pot: int) -> bool:
        """The closed fingers have the pot between them."""
        beside = env.eef - env.pot_position(pot)
        between = BETWEEN[0] < env.opening < BETWEEN[1]
        return bool(env.closed and between and np.hypot(*beside[:2]) < 0.025 and abs(beside[2] - GRASP) < 0.03)

    def _press(self, env: MokaEnv) -> Iterator[np.ndarray]:
        goal = env.stove + scene.BUTTON
        yield from self._to(env, [*goal, scene.BUTTON_TOP + 0.06], 0.0, CLOSE, "reach", tolerance=0.008)
        yield from self._to(env, [*goal, scene.BUTTON_TOP - 0.01], 0.0, CLOSE, "lower", tolerance=0.004)

    # ------------------------------------------------------------------------------------------------ movements
    def _to(
        self, env: MokaEnv, goal: Any, yaw: float, gripper: float, phase: str, tolerance: float
    ) -> Iterator[np.ndarray]:
        """Straight to `goal` (3,) and `yaw`, until within `tolerance` metres; gives up after 4 s."""
        goal = np.asarray(goal, dtype=np.float64)
        if phase in HESITATE and self.rng.random() < self.config.hesitate:
            yield from self._hold(env, gripper, int(self.rng.integers(round(0.5 * env.fps), env.fps + 1)))
        speed = SLOW_SPEED if self.rng.random() < self.config.slow else 1.0
        for _ in range(4 * env.fps):
            if np.linalg.norm(goal - env.eef) < tolerance and abs(yaw - env.yaw) < 0.15:
                return
            yield self._action(env, goal, yaw, gripper, speed)

    def _hold(self, env: MokaEnv, gripper: float, steps: int) -> Iterator[np.ndarray]:
        for _ in range(steps):
            yield self._action(env, env.command[:3], env.command[3], gripper)

    @staticmethod
    def _action(env: MokaEnv, goal: Any, yaw: float, gripper: float, speed: float = 1.0) -> np.ndarray:
        move = (np.asarray(goal) - env.command[:3]) / (SPEED / env.fps)
        move *= min(1.0, speed / max(np.abs(move).max(), 1e-9))
        turn = np.clip((yaw - env.command[3]) / (YAW_SPEED / env.fps), -speed, speed)
        return np.array([*move, 0.0, 0.0, turn, gripper])


def _nearest_turn(pot_yaw: float, yaw: float) -> float:
    """The grasp yaw: the pot's up to half turns, as opposite sides are alike (a quarter turn closes on the handle)."""
    return pot_yaw - np.pi * round((pot_yaw - yaw) / np.pi)
