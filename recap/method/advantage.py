"""N-step advantages, the threshold ε per task, and the improvement indicator I_t.

Source: RECAP, arXiv 2511.14759. One rule everywhere: a frame is positive iff A > ε (strictly), as in the paper's
I_t = 1(A(o_t, a_t, l) > ε_l), the indicator of Eq. (3). Values may be float32; all arithmetic is float64, because ties
and thresholds must not depend on rounding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap.method.returns import Floats, finite, positive
from recap.utils.errors import RecapError

Bools = NDArray[np.bool_]

SOURCES = ("demonstration", "rollout", "correction")
PERCENTILES = tuple(range(0, 101, 5))


def advantages(rewards: ArrayLike, values: ArrayLike, n_step: int | None, normalizer: float = 1.0) -> Floats:
    """The paper's advantage A(o_t, a_t) = sum of r_t' for t' = t..t+N-1, plus V(o_{t+N}), minus V(o_t); one episode.

    rewards: [T], in steps with the normalizer that turns them into values (best: sums of whole numbers are exact, so
        equal windows stay equal), or already normalised with normalizer=1.
    values: [T], V(o_t) in (-1, 0).
    n_step: N, steps; None = the whole episode, as in the paper's pre-training. Past the end rewards and V are 0.
    Returns [T], in units of value. Rewards are not clipped: the windows that hold the end of a failure contain
    -c_fail / normalizer, whatever the lowest bin is. Raises RecapError for NaN, no frames, unequal lengths, N < 1.
    """
    r, v = finite("rewards", rewards, ndim=1), finite("values", values, ndim=1)
    if r.shape != v.shape:
        raise RecapError(f"an episode has {len(r)} rewards but {len(v)} values; there must be one of each per frame.")
    if n_step is not None and n_step < 1:
        raise RecapError(f"advantage.n_step is {n_step}; it must be at least 1 step, or null for the whole episode.")
    positive("the normalizer", normalizer)
    length = len(r)
    n = length if n_step is None else min(n_step, length)
    total = np.concatenate([[0.0], np.cumsum(r)])  # total[t] = sum of the rewards before t
    end = np.minimum(np.arange(length) + n, length)
    bootstrap = np.concatenate([v[n:], np.zeros(n)])
    return (total[end] - total[:-1]) / normalizer + bootstrap - v


# ---------------------------------------------------------------------------------------------------- several V
def read_value(
    values: ArrayLike,
    held_out: ArrayLike,
    how: Literal["mean", "worst", "lower_bound", "out_of_fold"],
    penalty: float = 1.0,
) -> tuple[Floats, Bools]:
    """One V of several: their mean, the worst, or that of the one member that never trained on the frame's episode.

    The lower bound is the mean less `penalty` standard deviations over the members, but no less than the lowest bin.
    values: [members, n]; held_out: bool [members, n], whether a member never trained on the frame's episode.
    Returns V [n], and bool [n]: whether no member that it comes from trained on the episode.
    """
    v, out = finite("values", values, ndim=2), np.asarray(held_out, dtype=bool)
    if v.shape != out.shape:
        raise RecapError(f"there are values of shape {list(v.shape)} but held_out of shape {list(out.shape)}.")
    if how == "out_of_fold":
        if (out.sum(axis=0) != 1).any():
            raise RecapError("out-of-fold values need every frame to be left out by exactly one member.")
        return v[out.argmax(axis=0), np.arange(v.shape[1])], np.ones(v.shape[1], dtype=bool)
    if how == "worst":
        read = v.min(axis=0)
    else:
        read = v.mean(axis=0)
        if how == "lower_bound":
            read = np.maximum(read - penalty * v.std(axis=0), -1.0)
    return np.asarray(read), np.asarray(out.all(axis=0))


# ---------------------------------------------------------------------------------------------------- thresholds
def threshold(advantages: ArrayLike, positive_fraction: float) -> float:
    """ε such that the share of A > ε is the largest possible one that is not above `positive_fraction`.

    advantages: [n]. Without ties that is floor(fraction * n) frames. Tied frames are all positive or all negative, so
    with ties it can be fewer: a collapsed, constant V marks the few frames that stand out, never nearly all. ε lies
    half-way between two neighbouring advantages, hence "A > ε" and OpenTau's "A >= ε" choose the same frames, and
    rounding on disk does no harm. Raises RecapError for NaN, no frames, a fraction outside (0, 1).
    """
    if not 0.0 < positive_fraction < 1.0:
        raise RecapError(
            f"advantage.positive_fraction is {positive_fraction}; it must lie strictly between 0 and 1 "
            "(0.3 marks 30 % of the frames positive)."
        )
    a = np.sort(finite("advantages", advantages, ndim=1))
    allowed = min(math.floor(positive_fraction * len(a) + 1e-9), len(a) - 1)  # 1e-9: 0.29 * 100 is 28.999999999999996
    below = a[len(a) - allowed - 1]  # the largest advantage that must stay negative
    first = int(np.searchsorted(a, below, side="right"))
    if first == len(a):
        return float(np.nextafter(below, np.inf))  # everything at the top is tied: nothing is positive
    middle = below + (a[first] - below) / 2
    return float(middle if middle < a[first] else below)


def thresholds(
    advantages: ArrayLike,
    tasks: Sequence[str],
    positive_fraction: float,
    scope: Literal["per_task", "all"] = "per_task",
    by_task: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """ε_l by task: from the task's own frames (the paper), or with scope="all" one number for all tasks (OpenTau).

    advantages, tasks: [n], one entry per frame. by_task: positive fractions of single tasks, with scope="per_task"
    (the paper takes ~10 % of tasks that shall become faster). Raises RecapError as `threshold` does, and for a task of
    by_task that has no frame.
    """
    if scope not in ("per_task", "all"):
        raise RecapError(f"advantage.threshold is {scope!r}; the choices are per_task, all.")
    a = finite("advantages", advantages, ndim=1)
    names, which = _groups(tasks, len(a))
    if unknown := sorted(set(by_task or {}) - set(names)):
        found = ", ".join(map(repr, names))
        raise RecapError(
            f"advantage.positive_fraction_by_task names {unknown[0]!r}, which has no frames; there are {found}."
        )
    if scope == "per_task":
        fractions = dict.fromkeys(names, positive_fraction) | dict(by_task or {})
        return {name: threshold(a[which == i], fractions[name]) for i, name in enumerate(names)}
    return dict.fromkeys(names, threshold(a, positive_fraction))


def unforced(tasks: Sequence[str], source: Sequence[str], force_positive: Collection[str]) -> Bools:
    """Frames that ε is taken from: those that it can decide, bool [n]; of a task that has none, all.

    tasks, source: [n]. Were forced frames among them, they would use up the positive share.
    """
    _, which = _groups(tasks, len(tasks))
    kinds, kind = _sources(source, len(tasks))
    free = np.array([name not in force_positive for name in kinds], dtype=bool)[kind]
    return free | ~np.isin(which, which[free])


# ---------------------------------------------------------------------------------------------------- within a task
def value_bins(values: ArrayLike, tasks: Sequence[str], number: int) -> NDArray[np.int64]:
    """Frames at the same stage of progress: which of `number` quantile bins of its task's values V(o_t) lies in.

    values, tasks: [n] -> int [n], the bins of different tasks apart. Equal values share a bin.
    """
    v = finite("values", values, ndim=1)
    _, which = _groups(tasks, len(v))
    found = np.empty(len(v), np.int64)
    for task in range(which.max() + 1):
        rows = which == task
        edges = np.quantile(v[rows], np.arange(1, number) / number)
        found[rows] = task * number + np.searchsorted(edges, v[rows], side="left")
    return found


def group_relative(
    advantages: ArrayLike,
    tasks: Sequence[str],
    group: ArrayLike,
    epsilon: Mapping[str, float],
    positive_fraction: float,
    by_task: Mapping[str, float] | None = None,
) -> Floats:
    """A - ε_g + ε_l: advantages from the threshold ε_g of their group, so that each has the same share of A > ε_l.

    group: int [n], frames of one task that are compared with each other.
    tasks: [n]; epsilon: ε_l by task; fractions as `thresholds` takes them. Returns [n], in units of value.
    """
    moved, numbers = finite("advantages", advantages, ndim=1).copy(), np.asarray(group, np.int64)
    order = np.argsort(numbers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        task = tasks[rows[0]]
        here, goal = threshold(moved[rows], (by_task or {}).get(task, positive_fraction)), epsilon[task]
        above, shifted = moved[rows] > here, moved[rows] + (goal - here)
        # Rounding must not carry a frame across: of tied ones none is positive.
        moved[rows] = np.where(above, np.maximum(shifted, np.nextafter(goal, np.inf)), np.minimum(shifted, goal))
    return moved


# ---------------------------------------------------------------------------------------------------- labels, weights
def indicator(
    advantages: ArrayLike,
    tasks: Sequence[str],
    epsilon: Mapping[str, float],
    source: Sequence[str],
    force_positive: Collection[str] = (),
) -> Bools:
    """The improvement indicator: I_t = 1(A > ε of the frame's task), and True where the source is forced positive.

    advantages, tasks, source: [n] -> bool [n]. epsilon: by task. force_positive: of SOURCES; the paper forces human
    corrections. Raises RecapError for a task without ε, an unknown source, NaN.
    """
    a = finite("advantages", advantages, ndim=1)
    names, which = _groups(tasks, len(a))
    if missing := [name for name in names if name not in epsilon]:
        fix = "Run advantage.py again on these data sets."
        raise RecapError(f"no threshold ε for task {missing[0]!r}; there is one for {sorted(epsilon)}. {fix}")
    eps = finite("epsilon", [epsilon[name] for name in names], ndim=1)
    kinds, kind = _sources(source, len(a))
    if unknown := sorted(set(force_positive) - set(SOURCES)):
        raise RecapError(f"advantage.force_positive names {unknown[0]!r}; the choices are {', '.join(SOURCES)}.")
    forced = np.array([name in force_positive for name in kinds])
    return (a > eps[which]) | forced[kind]


def awr_weights(advantages: ArrayLike, temperature: float, largest: float = 20.0) -> Floats:
    """Advantage-weighted regression, the paper's baseline: w = min(exp(A / temperature), largest), divided by its mean.

    advantages: [n], in units of value -> weights [n] of mean 1, so that the learning rate keeps its meaning.
    Source: Peng et al. 2019, arXiv 1910.00177, Eq. (9), clipped at 20 as there; A is taken from its mean, which is the
    baseline there. Raises RecapError for a temperature that is not positive.
    """
    positive("awr_temperature", temperature, "number")
    a = finite("advantages", advantages, ndim=1)
    weights = np.exp(np.minimum((a - a.mean()) / temperature, math.log(largest)))
    return np.asarray(weights / weights.mean())


def certainty_weights(advantages: ArrayLike, epsilon: ArrayLike, indicator: ArrayLike, temperature: float) -> Floats:
    """A soft indicator: how sure each label is, w = |2 σ((A - ε) / temperature) - 1|, divided by its mean.

    σ is the chance that the frame is positive, which the hard indicator rounds. Labels that do not come from A > ε,
    such as those forced positive, are sure.
    advantages, epsilon (of each frame's task), indicator: [n] -> weights [n] of mean 1. Raises RecapError for a
    temperature that is not positive.
    """
    positive("indicator_temperature", temperature, "number")
    distance = finite("advantages", advantages, ndim=1) - finite("epsilon", epsilon, ndim=1)
    weights = np.where((distance > 0) == np.asarray(indicator), np.tanh(np.abs(distance) / (2 * temperature)), 1.0)
    return np.asarray(weights / weights.mean())


def shuffled(indicator: ArrayLike, dataset: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """The indicators of each data set in random order: the same share positive, and nothing learned. All [n]."""
    flags = np.array(indicator, dtype=bool)
    names, which = _groups(dataset, len(flags), "data sets")
    rng = np.random.default_rng(seed)
    for number in range(len(names)):
        rows = np.flatnonzero(which == number)
        flags[rows] = rng.permutation(flags[rows])
    return flags


# ---------------------------------------------------------------------------------------------------- what to print
def percentiles(advantages: ArrayLike) -> dict[int, float]:
    """The 0th, 5th, ..., 100th percentile of the advantages, linear interpolation. [n] -> {percent: advantage}."""
    a = finite("advantages", advantages, ndim=1)
    return dict(zip(PERCENTILES, np.percentile(a, PERCENTILES).tolist(), strict=True))


def positive_shares(indicator: ArrayLike, source: Sequence[str], success: ArrayLike) -> dict[str, float | None]:
    """The achieved share of positive frames of "all", "demonstration", and of rollouts by outcome "success", "failure".

    All arguments [n]. None where there is no such frame; "correction" is there only if the data holds corrections.
    """
    flags, won = np.asarray(indicator), np.asarray(success)
    if flags.ndim != 1 or won.shape != flags.shape or flags.dtype != bool or won.dtype != bool:
        got = f"{flags.dtype} {list(flags.shape)} and {won.dtype} {list(won.shape)}"
        raise RecapError(f"indicator and success must be bool [n]; got {got}.")
    if not flags.size:
        raise RecapError("there are no frames: no positive share can be computed.")
    kinds, kind = _sources(source, len(flags))
    demonstration, rollout, correction = (np.array([k == name for k in kinds])[kind] for name in SOURCES)
    groups = {"all": np.ones_like(won), "demonstration": demonstration, "success": rollout & won}
    groups |= {"failure": rollout & ~won} | ({"correction": correction} if correction.any() else {})
    return {name: float(flags[rows].mean()) if rows.any() else None for name, rows in groups.items()}


def positive_shares_per_task(
    indicator: ArrayLike, tasks: Sequence[str], source: Sequence[str], success: ArrayLike
) -> dict[str, dict[str, float | None]]:
    """positive_shares of each task's own frames: {task: {"all": ..., "demonstration": ..., ...}}."""
    flags, won, kinds = np.asarray(indicator), np.asarray(success), np.asarray(source)
    names, which = _groups(tasks, len(flags))
    rows = {name: which == i for i, name in enumerate(names)}
    return {name: positive_shares(flags[r], kinds[r].tolist(), won[r]) for name, r in rows.items()}


def _groups(words: Sequence[str], n: int, what: str = "task names") -> tuple[list[str], NDArray[np.int64]]:
    """The different words in order of appearance, and for each frame [n] which one it has."""
    if len(words) != n:
        raise RecapError(f"there are {n} frames but {len(words)} {what}; there must be one of each per frame.")
    index: dict[str, int] = {}
    # A dict is several times faster than np.unique, which sorts the strings.
    which = np.fromiter((index.setdefault(word, len(index)) for word in words), np.int64, n)
    return [str(name) for name in index], which


def _sources(source: Sequence[str], n: int) -> tuple[list[str], NDArray[np.int64]]:
    names, which = _groups(source, n, "sources")
    if unknown := sorted(set(names) - set(SOURCES)):
        raise RecapError(f"unknown source {unknown[0]!r} of an episode; the choices are {', '.join(SOURCES)}.")
    return names, which
