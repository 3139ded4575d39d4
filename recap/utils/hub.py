"""What is on this machine of the Hugging Face hub, and getting it once, before any stage runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["model", "dataset"]
UNREACHABLE = "the hub cannot be reached from here"
SECONDS = 6.0  # for the hub to say something about a repository


@dataclass(frozen=True)
class Need:
    """A repository, or a folder, that a configuration names.

    files: patterns of what must be there; only: of what is fetched, None for all. instead: what else would do, where
    that is not another value of the key.
    """

    key: str
    name: str
    kind: Kind
    files: tuple[str, ...]
    revision: str | None = None
    only: tuple[str, ...] | None = None
    instead: str = ""

    def folder(self) -> Path | None:
        """Where it is on this machine, None if it is not, or not whole."""
        folder = find(self.name, self.kind, self.revision, self.files)
        return folder if folder and all(any(folder.glob(pattern)) for pattern in self.files) else None

    def command(self) -> str:
        return download(self.name, self.kind, self.revision)


def find(name: str, kind: Kind, revision: str | None = None, files: Sequence[str] = ()) -> Path | None:
    """The folder on this machine, or None: never asks the network.

    name: a folder, or `owner/name` of a repository in the hub's cache or (data sets) in lerobot's. files: patterns of
    those that are wanted of a repository that was fetched in part; all by default.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    lerobot = Path(os.environ.get("HF_LEROBOT_HOME") or Path(HF_HOME) / "lerobot").expanduser()  # as lerobot has it
    if kind == "dataset" and revision is None and (lerobot / name / "meta/info.json").is_file():
        return lerobot / name
    for cache in (None, lerobot / "hub") if kind == "dataset" else (None,):
        where: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": cache, "local_files_only": True}
        with suppress(LocalEntryNotFoundError, HFValidationError):
            return Path(snapshot_download(name, allow_patterns=list(files) or None, **where))
    return None


def download(name: str, kind: Kind, revision: str | None = None) -> str:
    """The command that brings a repository onto this machine."""
    options = ["--repo-type dataset"] if kind == "dataset" else []
    options += [f"--revision {revision}"] if revision else []
    return " ".join(["hf download", *options, name])


def refusals(needs: Sequence[Need]) -> dict[Need, str]:
    """Why the hub would not give each of these, "" if it would. Asks for all at once, and waits only some seconds."""
    found = dict.fromkeys(needs, UNREACHABLE)
    if not needs:
        return found
    from huggingface_hub import HfApi  # noqa: F401  once, and not in the time that the hub has

    def ask(need: Need) -> None:
        found[need] = _refusal(need)

    # Daemons, because looking up a name without a network can take a minute, and nobody waits for it.
    threads = [threading.Thread(target=ask, args=(need,), daemon=True) for need in needs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def _refusal(need: Need) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        api = HfApi()
        api.repo_info(need.name, repo_type=need.kind, revision=need.revision, timeout=SECONDS)
        api.auth_check(need.name, repo_type=need.kind)
    except GatedRepoError:
        return f"gated: accept its licence on huggingface.co/{need.name}, then `hf auth login`"
    except RevisionNotFoundError:
        return f"the hub has no revision {need.revision} of it"
    except (RepositoryNotFoundError, HFValidationError):
        return "neither a folder nor a repository that the hub shows to you"
    except (HfHubHTTPError, OSError):  # offline, no network, no answer
        return UNREACHABLE
    except Exception as error:  # noqa: BLE001  httpx and its kin have error classes of their own
        said = (str(error).splitlines() or [""])[0]
        return UNREACHABLE if "Connect" in type(error).__name__ else f"the hub says {type(error).__name__} {said}"
    return ""


def fetch(need: Need) -> Path:
    """Downloads a repository into the hub's cache, with progress bars; what is there already is kept."""
    from huggingface_hub import snapshot_download

    print(f"── fetching {need.name} from the hub ({need.key})", flush=True)
    only = list(need.only) if need.only else None
    return Path(snapshot_download(need.name, repo_type=need.kind, revision=need.revision, allow_patterns=only))
