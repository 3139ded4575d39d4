"""Keys of the environment and of the scripted demonstrator in it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated

from pydantic import AfterValidator

from recap.envs import registry
from recap.utils.typed import Amount, Count, Fraction, Positive, later, part, wrong


def _known(type_: str) -> str:
    if text := registry.problem(type_):
        raise wrong(text)
    return type_


class Images(Enum):
    png = "png"
    video = "video"


@part
class MokaConfig:
    """How precise the hard choices of env=moka must be, in metres; burner_distance: between the two centres."""

    small_burner: Positive = 0.011
    burner_distance: Positive = later(0.1303)
    bottle_clearance: Positive = 0.004


@part
class EnvConfig:
    type: Annotated[str, AfterValidator(_known)]
    suite: str | None = None
    moka: MokaConfig | None = None
    tasks: list[str]
    image_size: Count
    recorded_images: Images
    fps: Count
    max_steps: Count

    def problems(self, key: str) -> Iterator[str]:
        if not self.tasks or not all(task.strip() for task in self.tasks):
            yield f"{key}.tasks={self.tasks}: must list at least one instruction"
        elif len(set(self.tasks)) < len(self.tasks):
            yield f"{key}.tasks={self.tasks}: the same instruction is listed twice"
        if self.recorded_images is Images.video and self.image_size % 2:
            fix = f"Fix: that, or {key}.recorded_images=png"
            yield f"{key}.image_size={self.image_size}: videos need an even number. {fix}"


@part
class Skill:
    """How well a scripted demonstrator acts (probabilities per movement, per grasp; risky: per episode)."""

    slow: Fraction
    hesitate: Fraction
    miss: Fraction
    noise: Amount
    risky: Fraction = 0.5


@part
class DemonstratorConfig(Skill):
    episodes: Count
    max_steps: Count
