"""Success rates with intervals, throughput, and paired comparisons of two policies on the same initial states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recap.method.returns import positive
from recap.utils.errors import RecapError

Episodes = Sequence[Mapping[str, Any]]  # each: task, initial_state, seed, success, steps (and index), as in result.json


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a success rate (Wilson 1927, no continuity correction): (low, high) in [0, 1]."""
    if n < 1 or not 0 <= successes <= n:
        raise RecapError(f"{successes} successes of {n} episodes have no success rate; there must be an episode.")
    if not 0.0 < level < 1.0:
        raise RecapError(f"the confidence level is {level}; it must lie strictly between 0 and 1.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    center = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Exact at the ends, where rounding would leave 1e-17 or 0.9999999999999999.
    low = 0.0 if successes == 0 else (center - half) / scale
    high = 1.0 if successes == n else (center + half) / scale
    return low, high


class McNemar(NamedTuple):
    fixed: int  # failed before, succeeded after
    broke: int  # succeeded before, failed after
    p: float  # two-sided, exact (binomial on the discordant pairs); 1.0 when there are none


def mcnemar(before: ArrayLike, after: ArrayLike) -> McNemar:
    """McNemar's exact test of paired outcomes. before, after: bool [n], the same episode at the same position."""
    b, a = np.asarray(before), np.asarray(after)
    if b.ndim != 1 or b.shape != a.shape or b.dtype != bool or a.dtype != bool:
        got = f"{b.dtype} {list(b.shape)} and {a.dtype} {list(a.shape)}"
        raise RecapError(f"paired outcomes must be two bool [n] of equal length; got {got}.")
    if not b.size:
        raise RecapError("there are no paired episodes to compare.")
    fixed, broke = int((~b & a).sum()), int((b & ~a).sum())
    n = fixed + broke
    tail = sum(math.comb(n, k) for k in range(min(fixed, broke) + 1))
    return McNemar(fixed, broke, min(1.0, 2 * tail / 2**n))  # whole numbers until the one division


def bootstrap_mean(values: Sequence[float], level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over seeds (Efron 1979): (low, high); the same value twice for one seed.

    values: one number a seed. Resampling is seeded, so the interval is a function of the values.
    """
    from scipy import stats  # most of its second of import is not needed elsewhere

    if len(values) < 2:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (np.asarray(values, float),),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def pair(before: Episodes, after: Episodes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """EpisodeFilter of two evaluations in the same order: success before, success after, bool [n] each.

    Episodes are paired by (task, initial_state, seed). Raises RecapError if the two sets differ or one holds an
    episode twice.
    """
    b, a = _outcomes(before, "before"), _outcomes(after, "after")
    if b.keys() != a.keys():
        only_b, only_a = sorted(b.keys() - a.keys()), sorted(a.keys() - b.keys())
        example = (only_b or only_a)[0]
        raise RecapError(
            f"the two evaluations cannot be paired: {len(only_b)} of {len(b)} episodes are only in the first and "
            f"{len(only_a)} of {len(a)} only in the second, e.g. task {example[0]!r}, initial_state {example[1]}, "
            f"seed {example[2]}. Evaluate both with the same env, episodes and seed."
        )
    keys = sorted(b)
    return np.array([b[k] for k in keys], bool), np.array([a[k] for k in keys], bool)


def compare(before: Episodes, after: Episodes) -> dict[str, Any]:
    """The paired test of two evaluations: {"fixed", "broke", "mcnemar_p"}, as in summary.json's comparisons."""
    test = mcnemar(*pair(before, after))
    return {"fixed": test.fixed, "broke": test.broke, "mcnemar_p": test.p}


def summarize(episodes: Episodes, fps: float) -> dict[str, Any]:
    """The fields of result.json that follow from the episodes; fps: control steps per second of robot time.

    successes_per_hour is throughput in robot time: successes / (all steps, failed ones too, / fps / 3600);
    mean_steps_to_success is None without a success.
    """
    if not episodes:
        raise RecapError("no episode was evaluated (0 episodes); set episodes to at least 1.")
    positive("fps", fps, "number of control steps per second")
    _outcomes(episodes, "evaluated")
    per_task: dict[str, dict[str, int]] = {}
    for episode in episodes:
        if episode["steps"] < 1:
            what = f"episode {episode.get('index')} of task {episode['task']!r} has {episode['steps']} steps"
            raise RecapError(f"{what}; it must have at least 1.")
        row = per_task.setdefault(episode["task"], {"episodes": 0, "successes": 0})
        row["episodes"] += 1
        row["successes"] += bool(episode["success"])
    return {
        "episodes": [dict(e) for e in episodes],
        "fps": fps,
        **rates(episodes, fps),
        "per_task": dict(sorted(per_task.items())),
    }


def rates(episodes: Episodes, fps: float) -> dict[str, Any]:
    """n, successes, success_rate, ci95, mean_steps_to_success and successes_per_hour, as `summarize` has them.

    Also of several evaluations together, whose initial states may be the same.
    """
    steps = [int(e["steps"]) for e in episodes if e["success"]]
    total = sum(int(e["steps"]) for e in episodes)
    n, successes = len(episodes), len(steps)
    return {
        "n": n,
        "successes": successes,
        "success_rate": successes / n,
        "ci95": list(wilson(successes, n)),
        "mean_steps_to_success": sum(steps) / successes if successes else None,
        "successes_per_hour": successes * fps * 3600 / total,
    }


def _outcomes(episodes: Episodes, name: str) -> dict[tuple[str, int, int], bool]:
    out: dict[tuple[str, int, int], bool] = {}
    for episode in episodes:
        key = (episode["task"], episode["initial_state"], episode["seed"])
        if key in out:
            what = f"task {key[0]!r}, initial_state {key[1]}, seed {key[2]} twice"
            raise RecapError(f"the {name} episodes hold {what}; delete that stage and run it again.")
        out[key] = bool(episode["success"])
    return out
