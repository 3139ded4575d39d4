"""Which frames make up batch number k: a pure function of (seed, k), so that a resumed training sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap.data.cameras import choice
from recap.data.config import EpisodeFilter, reserved
from recap.data.frames import Frames
from recap.data.interventions import attempts
from recap.data.statistics import SPREAD
from recap.method.config import SourceKind
from recap.utils.errors import RecapError


@dataclass(frozen=True)
class Picked:
    """One batch as positions: `source` int [B] into `Mixture.sources`, `frame` int [B] into that source's frames."""

    source: np.ndarray
    frame: np.ndarray


class Mixture:
    """Data sets that keep fixed shares of the batches; within each of them all frames are equally likely.

    Frames in which an operator acted can have a share of their own, whichever data set they are of.

    Shares are exact: after any number of batches each has had its share of the samples to within one.

    Args:
        sources: in any order; all have the same cameras, state and action sizes.
        demo_fraction: share of the data sets with a `Frames.weight`, divided among them by it, if there are also
            collected ones (no weight), which are pooled.
        episode_filter: `success` leaves out failed episodes that are no demonstrations, `demonstrations` all others.
        cut: what the policy did before an operator took over had failed, whatever came of the episode.
        correction_fraction: share of the frames in which an operator acted; None: no share of their own.
        left_out: of each source, the frames that are never drawn: bool [N].
        fps: of the environment; the error about differing frame rates suggests it.

    Raises:
        RecapError: nothing to draw from, or sources that do not fit together.
    """

    def __init__(
        self,
        sources: Sequence[Frames],
        demo_fraction: float,
        episode_filter: EpisodeFilter = EpisodeFilter.all,
        left_out: Sequence[np.ndarray] | None = None,
        fps: float | None = None,
        *,
        cut: bool = False,
        correction_fraction: float | None = None,
    ) -> None:
        self.sources = list(sources)
        _check_together(self.sources, fps)
        groups: list[tuple[float, list[np.ndarray]]] = []  # (weight, rows (source, frame)); the collected ones last
        collected: list[np.ndarray] = []
        corrections: list[np.ndarray] = []
        for number, source in enumerate(self.sources):
            keep: np.ndarray = np.ones(len(source), dtype=bool)
            if source.kind is not SourceKind.demonstration and episode_filter is not EpisodeFilter.all:
                keep = attempts(source, cut=cut).of_frames() & (episode_filter is EpisodeFilter.success)
            if left_out is not None:
                keep = keep & ~left_out[number]
            if correction_fraction is not None:
                frames = np.flatnonzero(keep & source.corrected)
                corrections.append(np.stack([np.full(len(frames), number), frames], axis=1))
                keep = keep & ~source.corrected
            frames = np.flatnonzero(keep)
            rows = np.stack([np.full(len(frames), number), frames], axis=1)
            if len(frames) and source.weight is None:
                collected.append(rows)
            elif len(frames) and source.weight is not None:
                groups.append((source.weight, [rows]))
        total = sum(weight for weight, _ in groups)
        if groups and collected:
            groups = [(demo_fraction * weight / total, rows) for weight, rows in groups]
        if collected:
            groups.append((1 - demo_fraction if total else 1.0, collected))
        if correction_fraction is not None and any(len(rows) for rows in corrections):
            rest = sum(weight for weight, _ in groups)
            groups = [((1 - correction_fraction) * weight / rest, rows) for weight, rows in groups]
            groups.append((correction_fraction if groups else 1.0, corrections))
        if not groups:
            raise RecapError(
                "there is no frame to train on: the data sets are empty, or episode_filter leaves nothing."
            )
        self._groups = [np.concatenate(rows) for _, rows in groups]
        self._until = np.cumsum([weight for weight, _ in groups]) / sum(weight for weight, _ in groups)

    def pick(self, seed: int, step: int, size: int) -> Picked:
        """Batch number `step`."""
        rng = np.random.default_rng([seed, step])
        before, after = (np.floor(samples * self._until + 0.5) for samples in (step * size, (step + 1) * size))
        counts = np.diff(after - before, prepend=0).astype(int)
        rows = np.concatenate(
            [rows[rng.integers(len(rows), size=n)] for rows, n in zip(self._groups, counts, strict=True)]
        )
        return Picked(rows[:, 0], rows[:, 1])

    def gather(self, picked: Picked, chunk: int | None = None) -> dict[str, Any]:
        """The data of a batch: images uint8 [B, H, W, 3], `observation.state`, `task`.

        With `chunk` also `action` [B, chunk, A] and `action_is_pad` bool [B, chunk], True past the end of the episode.
        """
        batch: dict[str, Any] = {}
        size = len(picked.source)
        task = np.empty(size, dtype=object)
        for number in np.unique(picked.source):
            source, rows = self.sources[number], np.flatnonzero(picked.source == number)
            frames = picked.frame[rows]
            parts: dict[str, np.ndarray] = {key: source.pixels(key, frames) for key in source.cameras}
            parts["observation.state"] = source.state[frames]
            if chunk is not None:
                index, pad = source.chunk_indices(frames, chunk)
                parts["action"], parts["action_is_pad"] = source.action[index], pad
            task[rows] = np.asarray(source.tasks, dtype=object)[source.task_index[frames]]
            for key, values in parts.items():
                if key not in batch:
                    batch[key] = np.empty((size, *values.shape[1:]), dtype=values.dtype)
                batch[key][rows] = values
        return {**batch, "task": list(task)}


def _check_together(sources: Sequence[Frames], fps: float | None) -> None:
    """Raises RecapError where data sets do not fit into one batch, with what makes them fit if anything does."""
    first = sources[0]
    for other in sources[1:]:
        for what, a, b in (
            ("cameras", tuple(sorted(first.cameras)), tuple(sorted(other.cameras))),
            ("image sizes", sorted(first.image_shapes.items()), sorted(other.image_shapes.items())),
            ("state size", first.state.shape[1], other.state.shape[1]),
            ("action size", first.action.shape[1], other.action.shape[1]),
            ("fps", first.fps, other.fps),
        ):
            if a != b:
                fix = _same_cameras(sources) if what in ("cameras", "image sizes") else None
                if what == "fps" and fps is not None:
                    fix = f"data.action_freq={fps:g} resamples both to one frame rate"
                raise RecapError(
                    f"data sets '{first.name}' and '{other.name}' do not mix: {what} {a} and {b}. "
                    f"Fix: {fix or 'leave one of them out'}."
                )


def _same_cameras(sources: Sequence[Frames]) -> str | None:
    """The overrides with which all data sets have the same cameras; None where there are none."""
    shapes = [frames.image_shapes for frames in sources]
    shared = [key for key, shape in shapes[0].items() if all(other.get(key) == shape for other in shapes)]
    recorded = [frames for frames in sources if reserved(frames.name)]  # by the run: all its cameras are read
    wanted = list(recorded[0].cameras) if recorded else shared
    change = [frames for frames in sources if set(frames.cameras) != set(wanted)]
    possible = all(frames not in recorded and set(wanted) <= set(frames.files.features) for frames in change)
    return " ".join(choice(frames.name, wanted) for frames in change) if wanted and possible and change else None


def merged_stats(sources: Sequence[Frames]) -> dict[str, dict[str, np.ndarray]]:
    """`Frames.stats` of several data sets, by their weights: mean and std as a batch of them would have.

    A collected one (without a weight) counts as 1. Of quantiles the widest, as lerobot merges them.
    """
    weights = np.array([1.0 if source.weight is None else source.weight for source in sources])
    weights = weights / weights.sum()
    found = [source.stats() for source in sources]
    result = {}
    for key in found[0]:
        mean, std = (np.stack([stats[key][name] for stats in found]).astype(np.float64) for name in ("mean", "std"))
        merged = weights @ mean
        spread = np.sqrt(weights @ (std**2 + (mean - merged) ** 2))
        result[key] = {"mean": merged.astype(np.float32), "std": spread.astype(np.float32)}
        for names in SPREAD.values():
            for name, widest in zip(names, (np.min, np.max), strict=True):
                result[key][name] = widest([stats[key][name] for stats in found], axis=0)
    return result
