"""Which episodes a value function never trains on, so that what it says of them can be believed."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from recap.data.frames import Frames
from recap.policies.value.config import Aggregation, ValueConfig


def held_out(frames: Frames, config: ValueConfig, seed: int, member: int = 0) -> np.ndarray:
    """Whether member number `member` leaves an episode out: bool [E].

    With read=out_of_fold every episode is left out by exactly one member; otherwise all leave out the same share
    `held_out`. Tasks, and successes and failures, are left out in equal shares, and an episode once left out stays so
    when the run collects more.
    """
    rng = np.random.default_rng([seed, crc32(frames.name.encode())])
    order = np.lexsort((rng.random(len(frames.start)), frames.success, frames.task))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    if config.aggregation is Aggregation.out_of_fold:
        return place % config.ensemble_size == member
    counted = (place + rng.random()) * config.held_out
    return np.floor(counted + config.held_out) > np.floor(counted)


def left_out(frames: Frames, config: ValueConfig, seed: int, member: int) -> np.ndarray:
    """Frames that the member does not train on: bool [N]. Nothing can be learned where no outcome is known."""
    out = held_out(frames, config, seed, member)[frames.episode] | (not frames.outcomes)
    return out if config.interventions else out | frames.corrected
