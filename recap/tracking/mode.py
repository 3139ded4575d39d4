"""Whether a run goes to W&B, decided without importing wandb, which takes seconds: from what W&B itself would read."""

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
VARIABLES = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL")
NAMES = {  # of WANDB_MODE
    "online": TrackingMode.online,
    "run": TrackingMode.online,
    "offline": TrackingMode.offline,
    "dryrun": TrackingMode.offline,
    "disabled": TrackingMode.disabled,
}
OTHERS = ("auto", "shared")  # of WANDB_MODE too, which leave it to the key


def decide(wanted: TrackingConfig, environ: Mapping[str, str] = os.environ) -> tuple[TrackingMode, str]:
    """What to do, and a line about it for the console, or "".

    `auto` and `online` stand for: online, if the server answers. What `tracking.mode` names goes before WANDB_MODE.
    """
    if wanted.kind is not TrackingKind.wandb:
        return TrackingMode.disabled, ""
    settings, mode = _settings(environ), wanted.mode
    if mode is TrackingMode.auto:
        disabled = settings.get("disabled", "").lower() in ("true", "1")
        mode = TrackingMode.disabled if disabled else NAMES.get(settings.get("mode", ""), mode)
    if mode in (TrackingMode.disabled, TrackingMode.offline) or _has_key(settings, environ):
        return mode, ""
    if mode is TrackingMode.online:
        return TrackingMode.offline, "W&B: online was asked for, but there is no key (wandb login): offline files"
    return TrackingMode.disabled, "W&B: no key (wandb login), so the record is local: metrics.jsonl and report.html"


def problem(wanted: TrackingConfig, environ: Mapping[str, str] = os.environ) -> str:
    """What is wrong with the mode that `auto` would take from W&B's own settings; "" for nothing."""
    if wanted.kind is not TrackingKind.wandb or wanted.mode is not TrackingMode.auto:
        return ""
    mode = _settings(environ).get("mode", "auto")
    if mode in (*NAMES, *OTHERS):
        return ""
    where, fix = f"mode = {mode} in W&B's settings file", "wandb online"
    if environ.get("WANDB_MODE"):
        where, fix = f"WANDB_MODE={mode}", "unset WANDB_MODE"
    return f"{where}: must be one of {', '.join(NAMES)}. Fix: {fix}, or tracking.mode=online, offline or off"


def _has_key(settings: Mapping[str, str], environ: Mapping[str, str]) -> bool:
    if settings.get("api_key") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(settings.get("base_url", SERVER)).hostname
    for path in [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if host in netrc.netrc(Path(path).expanduser()).hosts:
                return True
    return False


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    """W&B's: the user's file, the folder's (both written by `wandb login --host`, `wandb offline`), the variables."""
    found: dict[str, str] = {}
    folder = environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    for path in (Path(folder).expanduser() / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, "utf-8")
            found |= dict(parser["default"]) if "default" in parser else {}
    return found | {name.removeprefix("WANDB_").lower(): environ[name] for name in VARIABLES if environ.get(name)}
