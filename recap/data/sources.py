"""Data sets that the configuration names, as frames."""

from __future__ import annotations

from pathlib import Path

from recap.data.config import DataConfig
from recap.data.frames import Frames, load_frames
from recap.utils.errors import RecapError
from recap.utils.hub import download, find


def load_source(config: DataConfig, name: str) -> Frames:
    """A source of the configuration, from its folder or from the hub's cache on this machine.

    Raises RecapError if it is not here, and as `load_frames` does.
    """
    source, key = config.sources[name], f"data.sources.{name}"
    root = source.root and Path(source.root)
    if not root:
        assert source.repo_id is not None  # see recap.config.checks
        root = find(source.repo_id, "dataset", source.revision)
    if root is None:
        raise RecapError(
            f"{key}.repo_id={source.repo_id}: is not on this machine. "
            f"Fix: {download(source.repo_id or '', 'dataset', source.revision)}, or {key}.root=<its folder>"
        )
    return load_frames(root, name, source.kind, source, config.action_freq, config.vector_resample_strategy)
