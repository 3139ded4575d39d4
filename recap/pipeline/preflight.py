"""Everything that can be known before the first stage runs, checked at once and reported as one list."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from recap.config import Config
from recap.data.cameras import choice
from recap.data.interventions import AUTO, COLUMNS, marked_by
from recap.data.mixture import Mixture
from recap.data.sources import load_source
from recap.envs import Env, instructions, make_env, registry
from recap.jobs import slurm
from recap.jobs.config import Resources
from recap.pipeline.limits import limits
from recap.pipeline.starts import start_needs, start_problems
from recap.policies.config import ReadsText
from recap.policies.folder import WEIGHTS
from recap.policies.memory import disk_bytes, weight_bytes
from recap.policies.registry import adapter_of
from recap.policies.roles import Role
from recap.policies.value.config import Start, StartedValueConfig
from recap.policies.words import BUILTIN
from recap.rollout.pool import Pool
from recap.stages.base import Stage
from recap.storage.manifest import CONFIG
from recap.tracking.config import TrackingKind
from recap.training.config import Sharding
from recap.utils.device import Device
from recap.utils.errors import RecapError
from recap.utils.hub import Need, fetch, refusals
from recap.utils.ranks import process

DATA = 1e9  # bytes of rollouts, videos and tables of a small run, and a tenth of the checkpoints beside large ones
LARGE = 8e9  # bytes of memory from which on a processor alone is taken for a mistake
GATED = {"google/paligemma-3b-pt-224", "google/gemma-3-270m"}  # said even where the hub cannot be asked


def preflight(cfg: Config, stages: Sequence[Stage], jobs: Mapping[str, Resources] | None = None) -> None:
    """Raises RecapError with everything that would stop these stages later.

    What is missing and the hub gives is fetched, but only when nothing else is wrong.

    jobs: what they ask of a cluster, by their names under `resources`; None: they run on this machine.
    """
    wanted = [need for need in _needs(cfg, stages) if need.folder() is None]
    remote = [need for need in wanted if not Path(need.name).is_dir()]
    found = list(_problems(cfg, stages, jobs, absent={need.key for need in wanted}))
    incomplete = [need for need in wanted if need not in remote]
    found += [f"{n.key}={n.name}: holds no {n.files[0]}. Fix: name the folder that does." for n in incomplete]
    found += [_missing(need, reason) for need, reason in refusals(remote).items() if reason]
    for text in slurm.warnings(Path(cfg.output)) if jobs is not None else ():
        print(f"warning: {text}", file=sys.stderr, flush=True)
    if not found:
        for need in remote:
            fetch(need)
        found = list(_problems(cfg, stages, jobs, absent=set())) if wanted else []
    if found:
        raise RecapError(
            found[0] if len(found) == 1 else "before the first stage:\n" + "\n".join(f"- {text}" for text in found)
        )
    for text in _corrections(cfg) if any(stage.reads_data for stage in stages) else ():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _problems(
    cfg: Config, stages: Sequence[Stage], jobs: Mapping[str, Resources] | None, absent: set[str]
) -> Iterator[str]:
    """absent: keys of what is not on this machine, of which nothing can be said yet."""
    trains, reads = any(stage.trains for stage in stages), any(stage.reads_data for stage in stages)
    simulated = any(stage.simulates for stage in stages)
    if cfg.tracking.tensorboard and trains and find_spec("tensorboard") is None:
        yield "tracking.tensorboard=true: is not installed. Fix: pip install tensorboard, or leave it out"
    if cfg.tracking.kind is TrackingKind.trackio and find_spec("trackio") is None:
        yield "tracking=trackio: is not installed. Fix: pip install trackio, or tracking=local"
    yield from () if jobs is None else slurm.problems(cfg, jobs)
    yield from start_problems(cfg, stages)
    sources = [f"data.sources.{name}" for name in cfg.data.sources]
    data_here = not absent & {f"{key}.repo_id" for key in sources}
    computes, simulates = jobs is None, simulated and (jobs is None or _renders())
    checks: list[Callable[[Config], object]] = []
    checks += [_device, _policy] if computes and any(stage.computes for stage in stages) else []
    checks += [_memory] if computes and trains else []
    checks += [_names] if simulates else []
    checks += [_environment] if simulates and not absent & {need.key for need in _of_environment(cfg)} else []
    checks += [_data] if reads and sources and data_here else []
    checks += [_fit] if simulated and reads and sources and data_here else []
    failed: set[object] = set()
    for check in checks:
        if failed & {_names, _data} and check in (_environment, _fit):
            continue  # it would only say it again
        try:
            check(cfg)
        except RecapError as error:
            failed.add(check)
            yield str(error)
    yield from _disk(cfg, stages)
    if not failed & {_names, _data, _fit}:
        data = [load_source(cfg.data, name) for name in cfg.data.sources] if _data in checks else []
        try:
            yield from limits(cfg, stages, jobs, data, _world(cfg) if simulated or not sources else None, absent)
        except RecapError as error:
            yield str(error)


# ---------------------------------------------------------------------------------------------------- the hub
def _needs(cfg: Config, stages: Sequence[Stage]) -> Iterator[Need]:
    """What the configuration takes from the hub, or from folders in its place."""
    yield from start_needs(cfg, stages)
    for role in Role if any(stage.trains for stage in stages) else ():
        name, size = role.name, cfg.network(role)
        for key, repository in size.needs():
            yield Need(f"{name}.{key}", repository, "model", (WEIGHTS, "config.json"))
        if isinstance(size, StartedValueConfig):
            continue  # its tokenizer is the policy's
        if isinstance(size, ReadsText) and size.tokenizer != BUILTIN:
            yield Need(f"{name}.tokenizer", size.tokenizer, "model", ("tokenizer*",), only=("*.json", "tokenizer*"))
    for name, source in cfg.data.sources.items() if any(stage.reads_data for stage in stages) else ():
        if source.root is None and source.repo_id is not None:
            files = ("meta/info.json", "data/*/*.parquet")
            yield Need(f"data.sources.{name}.repo_id", source.repo_id, "dataset", files, source.revision)
    if any(stage.simulates for stage in stages):
        yield from _of_environment(cfg)


def _of_environment(cfg: Config) -> list[Need]:
    try:
        found: list[Need] = getattr(registry.module(cfg.env.type), "needs", list)()
    except RecapError:  # it cannot be imported, which `_names` says
        return []
    return found


def _missing(need: Need, reason: str) -> str:
    instead = need.instead or f"{need.key}=<its folder>"
    if need.key.endswith(".repo_id"):
        instead = f"{need.key.removesuffix('repo_id')}root=<its folder>"
    gated = (
        " (gated: accept its licence and `hf auth login` first)" if need.name in GATED and "gated" not in reason else ""
    )
    return (
        f"{need.key}={need.name}: not on this machine, and {reason}. "
        f"Fix: {need.command()}{gated}, or {need.instead or instead}"
    )


# ---------------------------------------------------------------------------------------------------- this machine
def _disk(cfg: Config, stages: Sequence[Stage]) -> Iterator[str]:
    folder = Path(cfg.output).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        yield f"output={cfg.output}: {folder} is a file. Fix: choose output=<a folder>."
    elif not os.access(folder, os.W_OK):
        yield f"output={cfg.output}: {folder} cannot be written. Fix: choose output=<a folder of yours>."
    else:
        need = _disk_bytes(cfg, stages)
        if (Path(cfg.output) / CONFIG).is_file():  # a run that has begun holds most of it already
            need /= 20
        if (free := shutil.disk_usage(folder).free) < need:
            yield (
                f"output={cfg.output}: {free / 1e9:.1f} GB free, size={cfg.size} needs about {need / 1e9:.1f} GB. "
                "Fix: free some, or output=<another disk>."
            )


def _disk_bytes(cfg: Config, stages: Sequence[Stage]) -> float:
    """What these stages leave behind, about."""
    policies, values = (sum(stage.kind == kind for stage in stages) for kind in ("policy", "value"))
    if not policies + values:
        return DATA
    return max(DATA, 1.1 * disk_bytes([(cfg.policy, policies), (cfg.network(Role.value), values)]))


def _renders() -> bool:
    """Whether this machine can build environments; a cluster's login stage need not."""
    from recap.envs.rendering import choose_gl

    try:
        choose_gl()
    except RecapError:
        return False
    return True


def _device(cfg: Config) -> None:
    from recap.utils.device import device_name

    device_name(cfg.device)


def _policy(cfg: Config) -> None:
    """The code of a policy from elsewhere can be imported."""
    adapter_of(cfg.policy)


def _memory(cfg: Config) -> None:
    """Large networks are not trained on a processor, or in too little memory, by accident."""
    from recap.utils.device import device_name, memory

    shares = process().count if cfg.sharding is not Sharding.none else 1
    sizes = [cfg.network(role) for role in (Role if cfg.value.backbone is Start.policy else [Role.policy])]
    needs = [sum(weight_bytes(*size.weights(), size.sft.optimizer, shares).values()) for size in sizes]
    need, size = max(zip(needs, sizes, strict=True), key=lambda one: one[0])
    if need < LARGE or cfg.device is Device.cpu:
        return
    name = device_name(cfg.device)
    if (there := memory(name)) < need:
        raise RecapError(
            f"device={cfg.device.name}: {'no GPU here' if name == 'cpu' else f'a GPU of {there / 1e9:.0f} GB'}; "
            f"{size.named} of size={cfg.size} trains in about {need / 1e9:.0f} GB of GPU memory and its activations. "
            "Fix: experiment=demo learns on two CPU cores in minutes; for this size a machine with such a GPU, "
            f"{size.smaller}, or device=cpu if you mean it."
        )


def _names(cfg: Config) -> None:
    """The simulator is installed, and has the suite, the tasks and the sizes."""
    if check := getattr(registry.module(cfg.env.type), "check", None):
        check(cfg.env)
    instructions(cfg.env)


def _environment(cfg: Config) -> None:
    """A simulation process really starts and draws. One with a `check` needs no more than `_names` has seen."""
    if not hasattr(registry.module(cfg.env.type), "check"):
        with Pool(cfg.env, 1, 1) as pool:
            _ = pool.facts


# ---------------------------------------------------------------------------------------------------- data
def _data(cfg: Config) -> None:
    """Every source can be read, to the last frame of its videos, and they mix."""
    data = [load_source(cfg.data, name) for name in cfg.data.sources]
    Mixture(data, 1.0, fps=cfg.env.fps)
    for frames in data:
        frames.check_videos()


def _corrections(cfg: Config) -> Iterator[str]:
    """What becomes of corrections that people recorded, where it may not be what they expect."""
    for name, source in cfg.data.sources.items():
        frames, key = load_source(cfg.data, name), f"data.sources.{name}"
        if not frames.outcomes:
            yield (
                f"{key}: {len(frames.length)} corrections, and not how they ended: all their frames are positive, and "
                "the value function is not trained on them"
            )
        elif source.interventions is None and (mark := marked_by(frames.files, AUTO)):
            yield f"{key}: its column {mark!r} of interventions is not read. Fix: ++{key}.interventions=auto"
        elif source.interventions == AUTO and not marked_by(frames.files, AUTO):
            yield f"{key}.interventions=auto: finds none of {', '.join(COLUMNS)}. Fix: name the column"


def _world(cfg: Config) -> Env | None:
    """The environment's sizes and instructions; None where it cannot be built, which others say."""
    try:
        env = make_env(cfg.env)
    except RecapError:
        return None
    env.close()
    return env


def _fit(cfg: Config) -> None:
    """Data from elsewhere mixes with what the environment records."""
    env = make_env(cfg.env)
    env.close()
    for name in cfg.data.sources:
        frames = load_source(cfg.data, name)
        for what, theirs, ours in (
            ("cameras", sorted(frames.cameras), sorted(env.cameras)),
            ("images of", sorted(set(frames.image_shapes.values())), [(cfg.env.image_size, cfg.env.image_size, 3)]),
            ("observation.state of dimension", frames.state.shape[1], env.state_dim),
            ("action of dimension", frames.action.shape[1], env.action_dim),
            ("fps", frames.fps, env.fps),
        ):
            if theirs != ours:
                fix = "name a data set recorded in this environment, or choose its environment with env=…"
                if what == "fps":
                    fix = f"data.action_freq={env.fps} to resample it, or {fix}"
                if what == "cameras" and set(env.cameras) <= set(frames.files.features):
                    fix = choice(name, env.cameras)
                raise RecapError(
                    f"data.sources.{name}: has {what} {theirs}, but env={cfg.env.type} has {ours}. Fix: {fix}"
                )
