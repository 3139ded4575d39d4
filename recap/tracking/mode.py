"""Whether a run goes to W&B, decided without importing wandb: that takes seconds.

What W&B itself would find is looked at: its environment variables, its settings files, and the netrc file.
"""

from __future__ import annotations

import configparser
import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from recap.tracking.config import TrackingConfig, TrackingKind, TrackingMode

SERVER = "https://api.wandb.ai"
NAMES = {  # of WANDB_MODE
    "online": TrackingMode.online,
    "run": TrackingMode.online,
    "offline": TrackingMode.offline,
    "dryrun": TrackingMode.offline,
    "disabled": TrackingMode.off,
}
OTHERS = ("auto", "shared")  # of W&B's, that say nothing about whether


def decide(wanted: TrackingConfig, environ: Mapping[str, str] = os.environ) -> tuple[TrackingMode, str]:
    """What to do, and a line about it that is worth saying, or "".

    `auto` and `online` stand for: online, if the server answers. What `tracking.mode` names goes before WANDB_MODE.
    """
    if wanted.kind is not TrackingKind.wandb or wanted.mode is TrackingMode.off:
        return TrackingMode.off, ""
    settings = {**_settings_file(environ), **_from(environ)}
    mode: TrackingMode = wanted.mode
    if mode is TrackingMode.auto and settings.get("disabled", "").lower() in ("true", "1"):
        return TrackingMode.off, ""
    if mode is TrackingMode.auto:
        mode = NAMES.get(settings.get("mode", ""), mode)
    if mode in (TrackingMode.off, TrackingMode.offline) or has_key(settings, environ):
        return mode, ""
    if mode is TrackingMode.online:
        return TrackingMode.offline, "W&B: online was asked for, but there is no key (wandb login): offline files"
    return TrackingMode.off, "W&B: no key (wandb login), so the record is local: metrics.jsonl and report.html"


def problem(wanted: TrackingConfig, environ: Mapping[str, str] = os.environ) -> str:
    """What is wrong with the mode that `auto` would take from W&B's own settings; "" for nothing."""
    if wanted.kind is not TrackingKind.wandb or wanted.mode is not TrackingMode.auto:
        return ""
    mode = {**_settings_file(environ), **_from(environ)}.get("mode", "auto")
    if mode in (*NAMES, *OTHERS):
        return ""
    where = f"WANDB_MODE={mode}" if environ.get("WANDB_MODE") else f"mode = {mode} in W&B's settings file"
    fix = "unset WANDB_MODE" if environ.get("WANDB_MODE") else "wandb online"
    return f"{where}: must be one of {', '.join(NAMES)}. Fix: {fix}, or tracking.mode=online, offline or off"


def has_key(settings: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B would find one for its server."""
    if settings.get("api_key") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(settings.get("base_url", SERVER)).hostname
    given = environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if host in netrc.netrc(path.expanduser()).hosts:
                return True
    return False


def _from(environ: Mapping[str, str]) -> dict[str, str]:
    names = {
        "WANDB_MODE": "mode",
        "WANDB_DISABLED": "disabled",
        "WANDB_API_KEY": "api_key",
        "WANDB_BASE_URL": "base_url",
    }
    return {key: environ[name] for name, key in names.items() if environ.get(name)}


def _settings_file(environ: Mapping[str, str]) -> dict[str, str]:
    """What `wandb login --host`, `wandb offline` and `wandb disabled` write: the user's file, then the folder's."""
    found: dict[str, str] = {}
    folder = environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    for path in (Path(folder).expanduser() / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, "utf-8")
            found |= dict(parser["default"]) if "default" in parser else {}
    return found
