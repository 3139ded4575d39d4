"""Which frames make up batch number k: a pure function of (seed, k), so that a resumed training sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap.config import Outcomes, SourceKind
from recap.data.frames import Frames
from recap.errors import RecapError


@dataclass(frozen=True)
class Picked:
    """One batch as positions: `source` int [B] into `Mixture.sources`, `frame` int [B] into that source's frames."""

    source: np.ndarray
    frame: np.ndarray


class Mixture:
    """Data sets whose demonstrations keep a fixed share of each batch; within each side all frames are equally likely.

    Args:
        sources: in any order; all have the same cameras, state and action sizes.
        demonstration_share: share of the batch drawn from demonstrations where there are both kinds.
        outcomes: `success` leaves out the frames of failed rollouts.

    Raises:
        RecapError: nothing to draw from, or sources that do not fit together.
    """

    def __init__(
        self, sources: Sequence[Frames], demonstration_share: float, outcomes: Outcomes = Outcomes.all
    ) -> None:
        self.sources = list(sources)
        first = self.sources[0]
        for other in self.sources[1:]:
            for what, a, b in (
                ("cameras", tuple(sorted(first.cameras)), tuple(sorted(other.cameras))),
                ("image sizes", sorted(first.image_shapes.items()), sorted(other.image_shapes.items())),
                ("state size", first.state.shape[1], other.state.shape[1]),
                ("action size", first.action.shape[1], other.action.shape[1]),
                ("fps", first.fps, other.fps),
            ):
                if a != b:
                    raise RecapError(
                        f"data sets '{first.name}' and '{other.name}' do not mix: {what} {a} and {b}. "
                        "Fix: record one of them again."
                    )
        sides: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for number, source in enumerate(self.sources):
            demonstration = source.kind is SourceKind.demonstration
            keep = np.ones(len(source), dtype=bool)
            if outcomes is Outcomes.success and not demonstration:
                keep = source.success[source.episode_index]
            frames = np.flatnonzero(keep)
            sides[demonstration].append(np.stack([np.full(len(frames), number), frames], axis=1))
        self._sides = {side: np.concatenate(parts) for side, parts in sides.items() if parts and sum(map(len, parts))}
        if not self._sides:
            raise RecapError(
                "there is no frame to train on: the data sets are empty, or outcomes=success and no rollout succeeded."
            )
        self._share = demonstration_share

    def pick(self, seed: int, step: int, size: int) -> Picked:
        """Batch number `step`."""
        rng = np.random.default_rng([seed, step])
        if len(self._sides) == 1:
            counts = {next(iter(self._sides)): size}
        else:
            demonstrations = round(self._share * size)
            counts = {True: demonstrations, False: size - demonstrations}
        rows = np.concatenate(
            [self._sides[side][rng.integers(len(self._sides[side]), size=n)] for side, n in counts.items()]
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
            parts: dict[str, np.ndarray] = {key: source.images(key)[frames] for key in source.cameras}
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
