"""The rounds of a rollout: half of the slots execute actions while the policy computes those of the other half."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recap.envs import EpisodeSpec
from recap.rollout.operator import ValueWatch
from recap.rollout.pool import Pool, Worker
from recap.rollout.worker import EpisodeResult, Job, Observation, describe
from recap.utils.errors import RecapError


class ActFn(Protocol):
    """The policy. S = slots of the larger half, always: the batch shape is constant, idle rows are zeros.

    observation: {camera: uint8 [S, H, W, 3], "observation.state": float32 [S, D], "task": S strings}.
    noise_keys: S pairs (episode seed, chunk number), of which alone each row's randomness must be made.
    Returns actions float32 [S, chunk, A] in [-1, 1].
    """

    def __call__(self, observation: dict[str, Any], noise_keys: list[tuple[int, int]]) -> np.ndarray: ...


def rounds(
    pool: Pool, job: Job, todo: Sequence[EpisodeSpec], act: ActFn, n_action_steps: int, watch: ValueWatch | None
) -> Iterator[list[EpisodeResult]]:
    """Yields the episodes that ended in each round of a half: new episodes, one policy call, n_action_steps.

    A half has processes of its own, so neither waits for the other; a single process serves both one after the other.
    They take turns, and a half is served when its whole round has come back, in slot order: which slot plays what,
    beside which others, depends neither on timing nor on the number of processes. A slot that begins an episode does so
    while the others act, and joins them in the next round.
    """
    queue = deque(todo)
    if queue:
        pool.begin(job)
    every = pool.halves()
    halves = [_Half(pool, slots, max(map(len, every)), act, n_action_steps, watch) for slots in every]
    while queue or any(half.playing for half in halves):
        for half in halves:
            yield half.ended()
            half.send_starts(queue, share=len(halves))
            half.send_actions()
            if pool.processes == 1:
                half.receive()


@dataclass
class _Half:
    """Slots whose actions are computed in one batch of `rows`, and executed together."""

    pool: Pool
    slots: list[int]
    rows: int
    act: ActFn
    n_action_steps: int
    watch: ValueWatch | None
    playing: dict[int, EpisodeSpec] = field(default_factory=dict)
    chunks: dict[int, int] = field(default_factory=dict)
    observations: dict[int, Observation] = field(default_factory=dict)  # of the slots that wait for actions
    starting: list[Worker] = field(default_factory=list)
    acting: list[Worker] = field(default_factory=list)
    finished: dict[int, EpisodeResult] = field(default_factory=dict)

    def receive(self) -> None:
        """Waits for what was sent to be done, in the order in which a process does it."""
        for seen in self.pool.replies(self.starting):
            self.observations |= seen
        for ended, going_on in self.pool.replies(self.acting):
            self.finished |= ended
            self.observations |= going_on
        self.starting, self.acting = [], []

    def ended(self) -> list[EpisodeResult]:
        """The episodes that ended with the actions that were sent."""
        self.receive()
        finished, self.finished = self.finished, {}
        for slot in finished:
            del self.playing[slot], self.pool.worker(slot).busy[slot]
        return [finished[slot] for slot in sorted(finished)]

    def send_starts(self, queue: deque[EpisodeSpec], share: int) -> None:
        """Begins episodes in its free slots, with a share of a queue that is too short for all."""
        free = [slot for slot in self.slots if slot not in self.playing]
        starts = {slot: queue.popleft() for slot in free[: -(-len(queue) // share)]}
        for slot, spec in starts.items():
            self.playing[slot] = self.pool.worker(slot).busy[slot] = spec
            self.chunks[slot] = 0
        self.starting = self.pool.scatter("start", starts)
        if self.watch is not None:
            self.watch.begin(starts)

    def send_actions(self) -> None:
        """One policy call. A slot whose operator is called is his to the end of the episode, within the round."""
        if not self.observations:
            return
        batch = self._batch()
        waiting = {slot: self.playing[slot] for slot in self.slots if slot in self.observations}
        called = [] if self.watch is None else self.watch.calls(batch, self.slots, waiting)
        actions = self._checked(self.act(batch, self._noise_keys()))
        rows = {slot: actions[row, : self.n_action_steps] for row, slot in enumerate(self.slots)}
        self.acting = self.pool.scatter("act", {slot: None if slot in called else rows[slot] for slot in waiting})
        self.observations = {}
        for slot in waiting:
            self.chunks[slot] += 1

    def _batch(self) -> dict[str, Any]:
        blank = {key: np.zeros_like(value) for key, value in next(iter(self.observations.values())).items()}
        rows = [self.observations.get(slot, blank) for slot in self.slots]
        rows += [blank] * (self.rows - len(rows))
        batch: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in blank}
        tasks = {slot: self.playing[slot].task for slot in self.slots if slot in self.observations}
        some = next(iter(tasks.values()))
        batch["task"] = [tasks.get(slot, some) for slot in self.slots] + [some] * (self.rows - len(self.slots))
        return batch

    def _noise_keys(self) -> list[tuple[int, int]]:
        keys = [(self.playing[s].seed, self.chunks[s]) if s in self.observations else (0, 0) for s in self.slots]
        return keys + [(0, 0)] * (self.rows - len(keys))

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions, dtype=np.float32)
        if actions.ndim != 3 or len(actions) != self.rows:
            raise RecapError(
                f"the policy returned actions of shape {actions.shape}, not [{self.rows} slots, chunk, dim]"
            )
        _, chunk, dim = actions.shape
        if dim != (takes := self.pool.facts.action_dim):
            fix = "use a checkpoint that was trained on data of this environment, or choose its environment with env=…"
            raise RecapError(f"the policy's actions have dimension {dim}, the environment takes {takes}: {fix}")
        if not 1 <= self.n_action_steps <= chunk:
            what = f"does not fit the policy's chunks of {chunk} actions: choose 1 to {chunk}"
            raise RecapError(f"n_action_steps={self.n_action_steps} {what}")
        for row, slot in enumerate(self.slots):
            if slot in self.observations and not np.isfinite(actions[row]).all():
                where = f"{describe(self.playing[slot])}, chunk {self.chunks[slot]}"
                fix = "its checkpoint or its normalisation statistics are broken"
                raise RecapError(f"the policy returned NaN or infinite actions in {where}: {fix}")
        return actions
