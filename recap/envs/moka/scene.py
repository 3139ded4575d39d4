"""The MuJoCo scene: a gantry gripper over a table with a stove, a trivet and one or two moka pots, of primitive shapes.

Axes as in LIBERO: x away from the robot, y to its left, z up; the table top is z = 0. Metres, radians, kilograms.
Collision is simpler than what is seen: a pot collides as one upright box, since a cylinder tilts and slips between two
flat fingers. Elliptic friction cones with a high impratio squeezed the pot out of the grip; the settings below hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recap.envs.config import MokaConfig

TIMESTEP = 0.005  # s
POT_HALF_WIDTH = 0.018
POT_HALF_HEIGHT = 0.035
STOVE_CENTER = np.array([0.0, 0.165])
STOVE_HALF = np.array([0.125, 0.075])
STOVE_TOP = 0.024
BUTTON = np.array([0.0, 0.045])  # from the stove's centre
BUTTON_TOP = 0.044
BUTTON_TRAVEL = 0.012
TRIVET_CENTER = np.array([0.0, -0.215])
TRIVET_TOP = 0.010
SMALL_BURNER = np.array([0.952, -0.307])  # its direction from the large one
GOAL_RADIUS = 0.045  # of a burner and of the trivet: how far from its centre a pot may stand
FINGER_OPEN = 0.055  # of one finger
POT_YAW = 0.3  # the largest turn to either side at the start
HELD_POT = (-0.022, 0.057)  # from where to where a pot in the hand reaches in x: the fingers, the handle
BOTTLE_RADIUS = 0.012
BOTTLE_HEIGHT = 0.10
BOTTLES_BEFORE_STOVE = 0.105  # in y, from the stove's centre
WORKSPACE_LOW = np.array([-0.22, -0.30, 0.028])
WORKSPACE_HIGH = np.array([0.22, 0.27, 0.30])
EEF_HOME = np.array([-0.12, -0.03, 0.22])

# Colours carry the perception at 64 pixels: a pot must never look like the stove, the trivet or the other pot.
POT_COLOURS = (("0.86 0.16 0.13 1", "0.98 0.42 0.30 1"), ("0.13 0.36 0.88 1", "0.40 0.62 0.98 1"))


@dataclass(frozen=True)
class Burner:
    """`x`, `y` from the stove's centre; a pot may stand up to `radius` from it. It is drawn with a radius of `size`."""

    x: float
    y: float
    radius: float = GOAL_RADIUS
    size: float = 0.044


@dataclass(frozen=True)
class Layout:
    """What is on the table. `area`: (low, high) of (x, y) where pots start; a wider one needs more demonstrations.

    `bottles`: room on either side of a pot between the two bottles before the stove, None without bottles.
    `choices`: names of the two ways to succeed, the safe one first.
    """

    pots: int = 1
    area: tuple[tuple[float, float], tuple[float, float]] = ((-0.08, -0.10), (0.08, 0.02))
    burners: tuple[Burner, ...] = (Burner(-0.062, -0.01), Burner(0.062, -0.01))
    bottles: float | None = None
    choices: tuple[str, ...] = ()

    def bottle_positions(self) -> np.ndarray:
        """(2, 2): the bottles from the stove's centre; a pot that moves straight to the burner passes between them."""
        if self.bottles is None:
            return np.zeros((0, 2))
        (low, high), room = HELD_POT, self.bottles + BOTTLE_RADIUS
        x = self.burners[0].x
        return np.array([[x + low - room, -BOTTLES_BEFORE_STOVE], [x + high + room, -BOTTLES_BEFORE_STOVE]])


def layouts(config: MokaConfig) -> dict[str, Layout]:
    """Every scene of env=moka by its name."""
    large, away = Burner(-0.062, 0.0), config.burner_distance * SMALL_BURNER
    drawn = min(0.024, max(0.012, config.burner_distance - large.size))
    small = Burner(large.x + away[0], large.y + away[1], config.small_burner, drawn)
    return {
        "one pot": Layout(),
        "two pots": Layout(pots=2, area=((-0.11, -0.12), (0.11, 0.03))),
        "two burners": Layout(area=((-0.06, -0.09), (0.06, 0.0)), burners=(large, small), choices=("large", "small")),
        "bottles": Layout(
            area=((-0.06, -0.12), (0.06, -0.05)),
            burners=(Burner(-0.05, -0.01),),
            bottles=config.bottle_clearance,
            choices=("high", "low"),
        ),
    }


def _pot(index: int, solid_handle: bool) -> str:
    """A solid handle touches nothing but bottles, so that a pot is grasped as in every other scene."""
    body, lid = POT_COLOURS[index]
    handle = """
      <geom type="box" size="0.0195 0.006 0.018" pos="0.0375 0 0.009" mass="0"
            contype="2" conaffinity="2" group="3"/>"""
    return f"""
    <body name="pot{index}" pos="0 {-0.1 * index} {POT_HALF_HEIGHT}">
      <freejoint name="pot{index}"/>
      <geom name="pot{index}" type="box" size="{POT_HALF_WIDTH} {POT_HALF_WIDTH} {POT_HALF_HEIGHT}" mass="0.2"
            condim="4" group="3"/>{handle if solid_handle else ""}
      <geom class="seen" type="cylinder" size="0.026 0.017" pos="0 0 -0.018" rgba="{body}"/>
      <geom class="seen" type="cylinder" size="0.018 0.004" pos="0 0 0.002" rgba="0.15 0.15 0.17 1"/>
      <geom class="seen" type="cylinder" size="0.023 0.013" pos="0 0 0.018" rgba="{lid}"/>
      <geom class="seen" type="box" size="0.017 0.006 0.005" pos="0.036 0 0.022" rgba="0.08 0.08 0.09 1"/>
      <geom class="seen" type="box" size="0.005 0.006 0.018" pos="0.052 0 0.009" rgba="0.08 0.08 0.09 1"/>
      <geom class="seen" type="box" size="0.007 0.007 0.005" pos="0 0 0.035" rgba="0.08 0.08 0.09 1"/>
    </body>"""


def _burner(index: int, burner: Burner) -> str:
    x, y, size, top = burner.x, burner.y, burner.size, STOVE_TOP + 0.0015
    return f"""
      <geom class="seen" type="cylinder" size="{size} 0.001" pos="{x} {y} {STOVE_TOP + 0.0005}"
            rgba="0.62 0.64 0.68 1"/>
      <geom class="seen" name="burner{index}" type="cylinder" size="{size - 0.008:.3f} 0.001" pos="{x} {y} {top}"/>"""


def _bottle(index: int) -> str:
    half = BOTTLE_HEIGHT / 2
    return f"""
    <body name="bottle{index}" pos="0 {0.3 + 0.1 * index} {half}">
      <freejoint name="bottle{index}"/>
      <geom type="cylinder" size="{BOTTLE_RADIUS} {half}" mass="0.05" rgba="0.45 0.12 0.62 1"
            contype="3" conaffinity="3"/>
      <geom class="seen" type="cylinder" size="{BOTTLE_RADIUS + 0.001} 0.012" pos="0 0 {half - 0.03}"
            rgba="0.95 0.9 0.98 1"/>
    </body>"""


def scene_xml(layout: Layout) -> str:
    """MJCF of the scene with its pots, burners and bottles."""
    bottles = "".join(_bottle(i) for i in range(len(layout.bottle_positions())))
    sx, sy = STOVE_CENTER
    hx, hy = STOVE_HALF
    tx, ty = TRIVET_CENTER
    finger = """
        <geom name="pad{side}" type="box" size="0.022 0.005 0.024" pos="0 {y} 0.004" mass="0.05"
              friction="1.5 0.05 0.001" condim="4" rgba="0.93 0.93 0.95 1"/>
        <geom class="seen" type="box" size="0.016 0.006 0.014" pos="0 {y} 0.040" rgba="0.3 0.3 0.33 1"/>"""
    return f"""
<mujoco model="moka">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="pyramidal" impratio="1"
          iterations="50" ls_iterations="30"/>
  <statistic extent="1" center="0 0 0.1"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="12" numstacks="6" numquads="1"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default>
    <geom solref="0.01 1" friction="1 0.02 0.001"/>
    <default class="seen"><geom contype="0" conaffinity="0" mass="0" group="1"/></default>
  </default>
  <worldbody>
    <light pos="0.3 -0.3 1.2" dir="-0.25 0.25 -1" directional="true" castshadow="false"
           diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <camera name="agentview" pos="0.34 -0.012 0.56" xyaxes="0 1 0 -0.83 0 0.557" fovy="47"/>
    <geom name="table" type="box" size="1.5 1.5 0.05" pos="0 0 -0.05" rgba="0.80 0.68 0.50 1"/>
    <body name="stove" pos="{sx} {sy} 0">
      <geom name="stove" type="box" size="{hx} {hy} {STOVE_TOP / 2}" pos="0 0 {STOVE_TOP / 2}" rgba="0.24 0.26 0.30 1"/>
      {"".join(_burner(i, burner) for i, burner in enumerate(layout.burners))}
      <body name="button" pos="{BUTTON[0]} {BUTTON[1]} {STOVE_TOP}">
        <joint name="button" type="slide" axis="0 0 1" range="{-BUTTON_TRAVEL} 0"
               stiffness="150" damping="3" springref="0.004"/>
        <geom name="button" type="cylinder" size="0.016 0.012" pos="0 0 {(BUTTON_TOP - STOVE_TOP) - 0.012}" mass="0.05"
              rgba="0.97 0.80 0.10 1"/>
      </body>
    </body>
    <body name="trivet" pos="{tx} {ty} 0">
      <geom name="trivet" type="box" size="0.05 0.05 {TRIVET_TOP / 2}" pos="0 0 {TRIVET_TOP / 2}"
            rgba="0.10 0.52 0.34 1"/>
      <geom class="seen" type="box" size="0.034 0.034 0.001" pos="0 0 {TRIVET_TOP}" rgba="0.55 0.86 0.62 1"/>
    </body>
    {"".join(_pot(i, layout.bottles is not None) for i in range(layout.pots))}{bottles}
    <body name="hand" pos="0 0 0" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" armature="0.5"/>
      <joint name="y" type="slide" axis="0 1 0" armature="0.5"/>
      <joint name="z" type="slide" axis="0 0 1" armature="0.5"/>
      <joint name="yaw" type="hinge" axis="0 0 1" armature="0.02"/>
      <camera name="wrist" pos="0.085 0 0.10" xyaxes="0 1 0 -0.94 0 0.34" fovy="82"/>
      <geom name="palm" type="box" size="0.022 0.064 0.014" pos="0 0 0.072" mass="0.6"
            rgba="0.35 0.36 0.40 1"/>
      <geom class="seen" type="cylinder" size="0.014 0.10" pos="0 0 0.186" rgba="0.55 0.56 0.60 1"/>
      <body name="left" gravcomp="1">
        <joint name="left" type="slide" axis="0 1 0" range="0 {FINGER_OPEN}"
               damping="2" armature="0.05"/>{finger.format(side=0, y=0.005)}
      </body>
      <body name="right" gravcomp="1">
        <joint name="right" type="slide" axis="0 -1 0" range="0 {FINGER_OPEN}"
               damping="2" armature="0.05"/>{finger.format(side=1, y=-0.005)}
      </body>
    </body>
  </worldbody>
  <contact>
    <exclude body1="hand" body2="left"/><exclude body1="hand" body2="right"/><exclude body1="left" body2="right"/>
    <exclude body1="stove" body2="button"/>
  </contact>
  <actuator>
    <position name="x" joint="x" kp="1500" kv="90" forcerange="-60 60"/>
    <position name="y" joint="y" kp="1500" kv="90" forcerange="-60 60"/>
    <position name="z" joint="z" kp="1500" kv="90" forcerange="-60 60"/>
    <position name="yaw" joint="yaw" kp="40" kv="2" forcerange="-10 10"/>
    <position name="left" joint="left" kp="400" kv="12" forcerange="-12 12"/>
    <position name="right" joint="right" kp="400" kv="12" forcerange="-12 12"/>
  </actuator>
</mujoco>"""
