"""The statistics that normalise states and actions, kept usable where a number never moves.

Dividing by the spread of a number that stood still turns a change of a tenth of a millimetre into thousands of
standard deviations. What is bounded here is saved with the policy, so lerobot normalises with the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recap.data.episodes import ACTION
from recap.utils.errors import RecapError

Array = np.ndarray
STILL = np.float32(1e-4)  # spread below which a number counts as one that never moves: 0.1 mm, 0.006°
SPREAD = {  # lerobot's modes of normalisation: (from, to)
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
QUANTILES = {"min": 0.0, "max": 1.0, "q01": 0.01, "q99": 0.99, "q10": 0.1, "q90": 0.9}


def bounded(key: str, stats: dict[str, Any], mode: str = "MEAN_STD") -> tuple[dict[str, Any], Array]:
    """Statistics of one feature with no spread near 0, and which of its numbers never move: bool, in their shape.

    An observation that never moves is divided by 1, or by its own size if that is larger: it stays near 0 also where
    it does move one day. An action gets the smallest spread that counts, so that it stays what it was.

    Args:
        mode: lerobot's name of the normalisation; others than SPREAD and MEAN_STD are left alone.

    Raises:
        RecapError: a statistic is NaN or infinite.
    """
    names = SPREAD.get(mode, ("mean", "std"))
    if mode not in (*SPREAD, "MEAN_STD") or any(stats.get(name) is None for name in names):
        return stats, np.zeros(0, bool)
    low, high = (np.asarray(stats[name], np.float32) for name in names)
    for name, array in zip(names, (low, high), strict=True):
        if not np.isfinite(array).all():
            raise RecapError(
                f"the {name} of {key}, by which it is normalised, is {array.ravel().tolist()}: not finite. "
                "Fix: copy the checkpoint again, or train from SFT on."
            )
    spread = high if mode == "MEAN_STD" else (high - low) / 2
    still = spread < STILL
    instead = STILL if key == ACTION else np.maximum(np.float32(1), np.abs(low))
    wide = np.where(still, instead, spread).astype(np.float32)
    return {**stats, names[1]: wide if mode == "MEAN_STD" else np.where(still, low + 2 * wide, high)}, still


def adopted(action: dict[str, Any], data: dict[str, Array]) -> tuple[dict[str, Any], Array]:
    """Mean and std of the actions, with those of new data for what never moved before and moves now; bool [D]: which.

    A policy has learned nothing of such a number, and would have to reach thousands of its standard deviations.
    """
    mean, std = (np.asarray(action[name], np.float32) for name in ("mean", "std"))
    moves = (std <= STILL) & (data["std"] > 10 * STILL)  # not what a policy's own noise adds to a bounded action
    return {**action, "mean": np.where(moves, data["mean"], mean), "std": np.where(moves, data["std"], std)}, moves


def listed(which: Array, names: Any = None) -> str:
    """The chosen numbers of a vector in words: their names where there is one for each, or else their positions."""
    if isinstance(names, dict):  # older data sets have {"motors": [...]}
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    named = isinstance(names, list | tuple) and len(names) == which.size
    chosen = [str(names[i]) if named else f"number {i}" for i in np.flatnonzero(which)]
    return ", ".join(chosen[:12]) + (f" and {len(chosen) - 12} more" if len(chosen) > 12 else "")
