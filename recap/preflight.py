"""Everything that can be known before the first stage runs, checked at once and reported as one list."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from recap import slurm
from recap.config import Config, EnvKind, Resources, SourceKind
from recap.data.frames import Frames, load_frames
from recap.envs import make_env
from recap.errors import RecapError
from recap.rundir import CONFIG

# A run's checkpoints and data: at full size 3 checkpoints with optimiser state, and rollouts.
GIGABYTES = {"tiny": 1, "full": 200}
ACTING = {"demonstrations", "rollout", "evaluate"}  # kinds of stages that simulate
READING = {"train", "advantage"}  # kinds of stages that read data sets


def preflight(cfg: Config, kinds: Collection[str], jobs: Mapping[str, Resources] | None = None) -> None:
    """Raises RecapError with everything that would stop stages of these kinds (`Node.kind`) later.

    jobs: what they ask of a cluster, by their names under `resources`; None: they run on this machine.
    """
    found = list(_problems(cfg, set(kinds), jobs))
    for text in slurm.warnings(Path(cfg.output)) if jobs is not None else ():
        print(f"warning: {text}", file=sys.stderr, flush=True)
    if found:
        raise RecapError(
            found[0] if len(found) == 1 else "before the first stage:\n" + "\n".join(f"- {text}" for text in found)
        )


def _problems(cfg: Config, kinds: set[str], jobs: Mapping[str, Resources] | None) -> Iterator[str]:
    yield from _disk(cfg)
    yield from () if jobs is None else slurm.problems(cfg, jobs)
    checks: list[Callable[[Config], object]] = [_device] if jobs is None and kinds - {"demonstrations"} else []
    checks += [_environment] if kinds & ACTING and (jobs is None or _renders()) else []
    checks += [_data] if kinds & READING and cfg.data.demonstrator is None else []
    checks += [_fit] if kinds & ACTING and kinds & READING and cfg.data.demonstrator is None else []
    for check in checks:
        try:
            check(cfg)
        except RecapError as error:
            yield str(error)
            if check in (_environment, _data):
                break  # _fit would only say it again
    for name in ("pi0", "value") if "train" in kinds else ():
        size = getattr(cfg, name)
        if size.pretrained is not None and not (Path(size.pretrained) / "model.safetensors").is_file():
            yield (
                f"{name}.pretrained={size.pretrained}: not a local checkpoint folder. "
                "Fix: download it and name the folder, or size=tiny, which needs none."
            )


def _disk(cfg: Config) -> Iterator[str]:
    folder = Path(cfg.output).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        yield f"output={cfg.output}: {folder} is a file. Fix: choose output=<a folder>."
    elif not os.access(folder, os.W_OK):
        yield f"output={cfg.output}: {folder} cannot be written. Fix: choose output=<a folder of yours>."
    else:
        need = GIGABYTES.get(cfg.size, 1) * 1e9
        if (Path(cfg.output) / CONFIG).is_file():  # a run that has begun holds most of it already
            need /= 20
        if (free := shutil.disk_usage(folder).free) < need:
            yield (
                f"output={cfg.output}: {free / 1e9:.1f} GB free, size={cfg.size} needs about {need / 1e9:.1f} GB. "
                "Fix: free some, or output=<another disk>."
            )


def _renders() -> bool:
    """Whether this machine can build environments; a cluster's login node need not."""
    from recap.envs.moka.rendering import choose_gl

    try:
        choose_gl()
    except RecapError:
        return False
    return True


def _device(cfg: Config) -> None:
    from recap.policies.checkpoint import device_name

    device_name(cfg.device)


def _environment(cfg: Config) -> None:
    if cfg.env.type is EnvKind.moka:
        from recap.envs.moka.rendering import choose_gl

        choose_gl()
    make_env(cfg.env).close()


def _data(cfg: Config) -> Frames:
    if cfg.data.root is None:
        raise RecapError(
            f"data.repo_id={cfg.data.repo_id}: only local data sets are read in this version. "
            "Fix: download it and set data.root=<its folder>."
        )
    return load_frames(Path(cfg.data.root), "demonstrations", SourceKind.demonstration, cfg.data.all_succeed)


def _fit(cfg: Config) -> None:
    """Demonstrations from elsewhere mix with what the environment records."""
    frames, env = _data(cfg), make_env(cfg.env)
    env.close()
    for what, theirs, ours in (
        ("cameras", sorted(frames.cameras), sorted(env.cameras)),
        ("images of", sorted(set(frames.image_shapes.values())), [(cfg.env.image_size, cfg.env.image_size, 3)]),
        ("observation.state of dimension", frames.state.shape[1], env.state_dim),
        ("action of dimension", frames.action.shape[1], env.action_dim),
        ("fps", frames.fps, env.fps),
    ):
        if theirs != ours:
            raise RecapError(
                f"data.root={cfg.data.root}: has {what} {theirs}, but env={cfg.env.type.name} has {ours}. "
                "Fix: name a data set recorded in this environment, or choose its environment with env=…"
            )
