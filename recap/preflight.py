"""Everything that can be known before the first stage runs, checked at once and reported as one list."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from recap.config import Config, EnvKind
from recap.errors import RecapError

GIGABYTES = {
    "tiny": 1,
    "full": 200,
}  # a run's checkpoints and data: 3 full-size checkpoints with optimiser state, and rollouts


def preflight(cfg: Config) -> None:
    """Raises RecapError with everything that would stop the run later."""
    found = list(_problems(cfg))
    if found:
        raise RecapError(
            found[0] if len(found) == 1 else "before the first stage:\n" + "\n".join(f"- {text}" for text in found)
        )


def _problems(cfg: Config) -> Iterator[str]:
    yield from _disk(cfg)
    for check in (_device, _environment, _data):
        try:
            check(cfg)
        except RecapError as error:
            yield str(error)
    for name in ("pi0", "value"):
        size = getattr(cfg, name)
        if size.pretrained is not None and not (Path(size.pretrained) / "model.safetensors").is_file():
            yield f"{name}.pretrained={size.pretrained}: not a local checkpoint folder. Fix: download it and name the folder, or size=tiny, which needs none."


def _disk(cfg: Config) -> Iterator[str]:
    folder = Path(cfg.output).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        yield f"output={cfg.output}: {folder} is a file. Fix: choose output=<a folder>."
    elif not os.access(folder, os.W_OK):
        yield f"output={cfg.output}: {folder} cannot be written. Fix: choose output=<a folder of yours>."
    elif (free := shutil.disk_usage(folder).free) < (need := GIGABYTES.get(cfg.size, 1) * 1e9):
        yield f"output={cfg.output}: {free / 1e9:.1f} GB free, size={cfg.size} needs about {need / 1e9:.0f} GB. Fix: free some, or output=<another disk>."


def _device(cfg: Config) -> None:
    from recap.policies.checkpoint import device_name

    device_name(cfg.device)


def _environment(cfg: Config) -> None:
    from recap.envs import make_env

    if cfg.env.type is EnvKind.moka:
        from recap.envs.moka.rendering import choose_gl

        choose_gl()
    make_env(cfg.env).close()


def _data(cfg: Config) -> None:
    if cfg.data.demonstrator is None and cfg.data.root is None:
        raise RecapError(
            f"data.repo_id={cfg.data.repo_id}: only local data sets are read in this version. Fix: download it and set data.root=<its folder>."
        )
