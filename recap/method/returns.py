"""Rewards, Monte-Carlo returns, their normalisation to (-1, 0), and the bins of the distributional value function.

Source: RECAP, "π*0.6: a VLA That Learns From Experience", arXiv 2511.14759. Everything is counted in control steps
until it is
divided by a normalizer. Arrays in, arrays out; one episode per call where a shape says [T].
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


# ---------------------------------------------------------------------------------------------------- rewards, returns
def rewards(length: int, success: bool, c_fail: float) -> Floats:
    """The paper's reward r_t: 0 at the end of a success, -C_fail at the end of a failure, -1 on every other step.

    length: T, control steps of the episode. c_fail: positive (OpenTau's C_neg = -1000 is c_fail = 1000).
    Returns [T], in steps. Raises RecapError for no steps or a c_fail that is not positive.
    """
    if length < 1:
        raise RecapError(f"an episode has {length} steps; it must have at least 1.")
    if not (math.isfinite(c_fail) and c_fail > 0):
        raise RecapError(
            f"advantage.c_fail is {c_fail}; it must be a positive number of steps (OpenTau's C_neg=-1000 is "
            "c_fail=1000)."
        )
    out = np.full(length, -1.0)
    out[-1] = 0.0 if success else -float(c_fail)
    return out


def returns(rewards: ArrayLike) -> Floats:
    """The empirical return R_t = sum of r_t' for t' = t..T: Monte-Carlo, undiscounted. [T] -> [T], in steps."""
    return np.cumsum(finite("rewards", rewards, ndim=1)[::-1])[::-1].copy()


# ---------------------------------------------------------------------------------------------------- normalisation
def normalizers(tasks: Sequence[str], lengths: Sequence[int], constant: float | None = None) -> dict[str, float]:
    """Steps that one unit of value stands for, per task.

    tasks, lengths: one entry per episode. With constant=None it is the task's maximum episode length, as in the paper,
    so that every return of a success lies in (-1, 0]; otherwise `constant` for all tasks, as OpenTau's
    reward_normalizer. Raises RecapError for no episodes or a normaliser that is not positive.
    """
    if len(tasks) != len(lengths) or not len(tasks):
        raise RecapError(
            f"normalizers need one task per episode length; got {len(tasks)} tasks and {len(lengths)} lengths."
        )
    if constant is not None:
        if not (math.isfinite(constant) and constant > 0):
            raise RecapError(f"advantage.normalizer is {constant}; it must be a positive number of steps.")
        return {task: float(constant) for task in sorted(set(tasks))}
    longest: dict[str, float] = {}
    for task, length in zip(tasks, lengths, strict=True):
        if length < 1:
            raise RecapError(f"an episode of task {task!r} has {length} steps; it must have at least 1.")
        longest[task] = max(longest.get(task, 0.0), float(length))
    return dict(sorted(longest.items()))


def normalize(returns: ArrayLike, normalizer: float) -> Floats:
    """returns / normalizer, clipped to [-1, 0]: the target of the value function. Any shape -> same shape.

    What a failure becomes under per-task normalisation: with C_fail >= the task's maximum length every frame of it is
    at or below -1 and is clipped to -1, the lowest bin. With a smaller C_fail its last frames lie above the lowest bin.
    """
    if not (math.isfinite(normalizer) and normalizer > 0):
        raise RecapError(f"the normalizer is {normalizer}; it must be a positive number of steps.")
    return np.clip(finite("returns", returns) / normalizer, -1.0, 0.0)


# ---------------------------------------------------------------------------------------------------- checks
def c_fail_floor(lengths: Sequence[int], success: Sequence[bool]) -> int:
    """The largest C_fail that is too small: max(success length) - min(failure length), in steps; 0 without both kinds.

    At or below it the fastest failure's return at t = 0, -(L_f - 1) - C_fail, is no worse than the slowest success's,
    -(L_s - 1). lengths, success: one entry per episode of one task.
    """
    won = [n for n, s in zip(lengths, success, strict=True) if s]
    lost = [n for n, s in zip(lengths, success, strict=True) if not s]
    return max(0, int(max(won)) - int(min(lost))) if won and lost else 0


# ---------------------------------------------------------------------------------------------------- bins
@dataclass(frozen=True)
class Bins:
    """The support of p_phi(V | o_t, l): B values v_b at equal distance, both ends included (the paper: 201 on (-1, 0)).

    Targets are the nearest centre's index and values are expectations over the same centres, so decoding is the exact
    inverse of encoding there.
    """

    n: int = 201
    low: float = -1.0
    high: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 2:
            raise RecapError(f"value.bins is {self.n}; it must be at least 2 (the paper has 201).")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise RecapError(f"the bins go from {self.low} to {self.high}; the lower end must be below the upper one.")

    @cached_property
    def centers(self) -> Floats:
        """v_b, [n], rising from `low` to `high`."""
        out: Floats = np.linspace(self.low, self.high, self.n, dtype=np.float64)
        out.flags.writeable = False  # shared by all callers
        return out

    def encode(self, value: ArrayLike) -> Ints:
        """The class of each value in the cross-entropy of Eq. (1): the index of the nearest centre.

        Any shape -> same shape; values beyond the ends go to the end bins. Raises RecapError for NaN.
        """
        position = (finite("value", value) - self.low) / (self.high - self.low) * (self.n - 1)
        return np.clip(np.rint(position), 0, self.n - 1).astype(np.int64)

    def decode(self, index: ArrayLike) -> Floats:
        """The centre of each index, any shape -> same shape. Raises RecapError for an index that is no bin."""
        index = np.asarray(index)
        if not np.issubdtype(index.dtype, np.integer) or (index < 0).any() or (index >= self.n).any():
            raise RecapError(f"bin indices must be integers in [0, {self.n - 1}]; got {index.dtype} {index.tolist()}.")
        return self.centers[index]

    def expectation(self, probabilities: ArrayLike) -> Floats:
        """V(o_t, l) = sum over b of p_phi(V = v_b | o_t, l) v_b, the paper's read-out of the distribution.

        [..., n] -> [...]. Probabilities must sum to 1 (within 1e-3).
        """
        p = finite("probabilities", probabilities)
        if p.ndim == 0 or p.shape[-1] != self.n:
            raise RecapError(
                f"probabilities have shape {list(p.shape)}; the last dimension must be the {self.n} bins (value.bins)."
            )
        total = p.sum(axis=-1)
        if (p < 0).any() or np.abs(total - 1).max() > 1e-3:
            raise RecapError(
                f"probabilities are negative or do not sum to 1 (sums from {total.min():g} to {total.max():g}); apply "
                "a softmax first."
            )
        return p @ self.centers
