"""What is on this machine of the Hugging Face hub, and getting it once, before any stage runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]


def find(name: str, kind: Kind, revision: str | None = None) -> Path | None:
    """The folder of a hub repository or of a local path, None if it is not on this machine; never asks the network.

    name: a folder, or `owner/name` of a repository that is in the hub's cache or, a data set, in lerobot's.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    if kind == "dataset" and revision is None and (HF_LEROBOT_HOME / name / "meta/info.json").is_file():
        return HF_LEROBOT_HOME / name
    for cache in (None, HF_LEROBOT_HUB_CACHE) if kind == "dataset" else (None,):
        try:
            return Path(snapshot_download(name, repo_type=kind, revision=revision, cache_dir=cache, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            continue
    return None
