"""Rewards, Monte-Carlo returns, their normalisation to (-1, 0), and the bins of the distributional value function.

Source: RECAP, "π*0.6: a VLA That Learns From Experience", arXiv 2511.14759. Everything is counted in control steps
until it is divided by a normalizer. Arrays in, arrays out; one episode per call where a shape says [T].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap.utils.errors import RecapError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def finite(name: str, array: ArrayLike, ndim: int | None = None) -> Floats:
    """`array` as float64. Raises RecapError when it is empty, holds NaN or infinity, or has not `ndim` dimensions."""
    out = np.asarray(array, dtype=np.float64)
    if ndim is not None and out.ndim != ndim:
        raise RecapError(f"{name} has shape {list(out.shape)}; it must have {ndim} dimension(s).")
    if out.size == 0:
        raise RecapError(f"{name} is empty; nothing can be computed from it.")
    bad = ~np.isfinite(out)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise RecapError(
            f"{name} holds {int(bad.sum())} NaN or infinite numbers of {out.size}, the first at {list(where)}."
        )
    return out


def positive(name: str, number: float, what: str = "number of steps") -> None:
    """Raises RecapError unless the number is positive and finite."""
    if not (math.isfinite(number) and number > 0):
        raise RecapError(f"{name} is {number}; it must be a positive {what}.")


# ---------------------------------------------------------------------------------------------------- rewards, returns
def rewards(length: int, success: bool, c_fail: float) -> Floats:
    """The paper's reward r_t: 0 at the end of a success, -C_fail at the end of a failure, -1 on every other step.

    length: T, control steps of the episode. c_fail: positive (OpenTau's C_neg = -1000 is c_fail = 1000).
    Returns [T], in steps. Raises RecapError for no steps or a c_fail that is not positive.
    """
    if length < 1:
        raise RecapError(f"an episode has {length} steps; it must have at least 1.")
    positive("advantage.c_fail", c_fail)
    out = np.full(length, -1.0)
    out[-1] = 0.0 if success else -float(c_fail)
    return out


def returns(rewards: ArrayLike) -> Floats:
    """The empirical return R_t = sum of r_t' for t' = t..T: Monte-Carlo, undiscounted. [T] -> [T], in steps."""
    return np.cumsum(finite("rewards", rewards, ndim=1)[::-1])[::-1].copy()


def cost(length: ArrayLike, success: ArrayLike, c_fail: float) -> Floats:
    """-R_0 of whole episodes, in steps. length, success: any shape -> same shape."""
    return np.asarray(length) - 1 + np.where(success, 0.0, c_fail)


def c_fail_floor(lengths: Sequence[int], success: Sequence[bool]) -> int:
    """The largest C_fail that is too small: max(success length) - min(failure length), in steps; 0 without both kinds.

    At or below it the fastest failure of a task costs no more than its slowest success. lengths, success: one entry
    per episode of the task.
    """
    won = [n for n, s in zip(lengths, success, strict=True) if s]
    lost = [n for n, s in zip(lengths, success, strict=True) if not s]
    return max(0, int(max(won)) - int(min(lost))) if won and lost else 0


# ---------------------------------------------------------------------------------------------------- normalisation
def normalizers(tasks: Sequence[str], lengths: Sequence[int], constant: float | None = None) -> dict[str, float]:
    """Steps per unit of value, by task: its longest episode (the paper, so that every return of a success lies in
    (-1, 0]), or `constant` (OpenTau's reward_normalizer).

    tasks, lengths: one entry per episode. Raises RecapError for no episodes or a constant that is not positive.
    """
    if len(tasks) != len(lengths) or not len(tasks):
        raise RecapError(
            f"normalizers need one task per episode length; got {len(tasks)} tasks and {len(lengths)} lengths."
        )
    if constant is not None:
        positive("advantage.normalizer", constant)
        return dict.fromkeys(sorted(set(tasks)), float(constant))
    longest: dict[str, float] = {}
    for task, length in zip(tasks, lengths, strict=True):
        longest[task] = max(longest.get(task, 0.0), float(length))
    return dict(sorted(longest.items()))


def normalize(returns: ArrayLike, normalizer: float) -> Floats:
    """returns / normalizer, clipped to [-1, 0]: the target of the value function. Any shape -> same shape.

    Under per-task normalisation, a failure with C_fail >= the task's longest episode is clipped to -1, the lowest bin,
    in every frame. With a smaller C_fail its last frames lie above the lowest bin.
    """
    positive("the normalizer", normalizer)
    return np.clip(finite("returns", returns) / normalizer, -1.0, 0.0)


# ---------------------------------------------------------------------------------------------------- bins
@dataclass(frozen=True)
class Bins:
    """The support of p_phi(V | o_t, l): n values v_b from -1 to 0 at equal distance, both ends included (paper: 201).

    V is the expectation over the same centres to which targets are rounded, so decoding inverts encoding there.
    """

    n: int = 201

    def __post_init__(self) -> None:
        if self.n < 2:
            raise RecapError(f"value.bins is {self.n}; it must be at least 2 (the paper has 201).")

    @cached_property
    def centers(self) -> Floats:
        """v_b, [n], rising."""
        return np.linspace(-1.0, 0.0, self.n, dtype=np.float64)

    def encode(self, value: ArrayLike) -> Ints:
        """The class of each value in the cross-entropy of Eq. (1): the index of the nearest centre.

        Any shape -> same shape; values beyond the ends go to the end bins. Raises RecapError for NaN.
        """
        position = (finite("value", value) + 1.0) * (self.n - 1)
        return np.clip(np.rint(position), 0, self.n - 1).astype(np.int64)
