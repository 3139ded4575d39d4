"""Keys of the record beside metrics.jsonl. Nothing here shows in a result."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from recap.utils.typed import Index, part


class TrackingKind(Enum):
    local = "local"
    wandb = "wandb"
    trackio = "trackio"


class TrackingMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@part
class TrackingConfig:
    kind: TrackingKind
    mode: TrackingMode
    project: str | None = None  # None: WANDB_PROJECT, or else recap
    entity: str | None = None  # None: WANDB_ENTITY, or else the account's default
    tags: list[str]
    videos: Index  # of each stage
    tensorboard: bool

    def problems(self, key: str) -> Iterator[str]:
        if self.kind is not TrackingKind.wandb and self.mode is not TrackingMode.disabled:
            kind = f"{key}={self.kind.name}"
            yield f"{key}.mode={self.mode.name}: {kind} has no W&B. Fix: {key}=wandb, or leave the mode out"
        if long := [tag for tag in self.tags if not 1 <= len(tag) <= 64]:
            yield f"{key}.tags={self.tags}: {long[0]!r} must have 1 to 64 characters"
