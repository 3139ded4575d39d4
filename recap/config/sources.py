"""Which values of a given data set make sense, before anybody looks into it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recap.config.schema import SourceConfig


def reserved(name: str) -> bool:
    """Whether a data set of this name is the run's own."""
    return bool(re.match(r"rollouts_|demonstrations$", name))


def source_problems(key: str, name: str, source: SourceConfig) -> Iterator[str]:
    """What is wrong with `data.sources.<name>`, one line each."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or reserved(name):
        yield f"{key}: names a folder of labels. Fix: letters, digits, _ and - only, not demonstrations or rollouts_…"
    if source.root is None and source.repo_id is None:
        yield f"{key}: names no data set. Fix: {key}.root=<a folder>, or {key}.repo_id=<owner/name on the hub>"
    chosen = source.episodes
    if chosen is not None and (not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
        yield f"{key}.episodes={chosen}: must list episode numbers from 0 on, each once. Fix: null takes all"
    cameras = source.cameras
    if cameras is not None and (not cameras or len(set(cameras)) < len(cameras)):
        yield f"{key}.cameras=[{','.join(cameras)}]: must name cameras, each once. Fix: null takes all"
