"""What each stage does: a function of (configuration, input directories) that fills an output directory.

Called by `recap.pipeline`, which knows when; a stage called again on a half-filled directory goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recap import advantage as equations
from recap.config import (
    Config,
    IndicatorMode,
    Normalization,
    PI0Config,
    PolicyKind,
    PolicyTrainConfig,
    Prompt,
    SourceKind,
    StageKind,
    ValueConfig,
)
from recap.data.frames import Frames, load_frames
from recap.data.labels import Labels, Thresholds, read_labels, write_labels, write_thresholds
from recap.data.mixture import Mixture, Picked
from recap.data.recorder import assemble
from recap.envs import EpisodeSpec, make_env
from recap.errors import RecapError
from recap.evaluation import summarize
from recap.graph import DEMONSTRATIONS
from recap.policies.acting import ActionChunks
from recap.policies.checkpoint import Checkpoint, build_pi0, build_value, device_name, features
from recap.policies.pi0 import RecapPI0Policy
from recap.policies.value import RecapValuePolicy
from recap.pool import Pool
from recap.returns import Bins, check_bin_range, check_c_fail, normalize, normalizers, returns, rewards
from recap.rollout import demonstrate, roll
from recap.rundir import write_text
from recap.training import policy_batches, tensors, train, value_batches

Inputs = Mapping[str, Path]  # role -> directory of a finished stage
Say = Callable[[str], None]

STATES_PER_SEED = 10_000_000  # runs with different seeds never share an initial state
STATES_PER_ITERATION = 100_000
VALUE_BATCH = 256  # frames in one pass of the value function
INDICATOR = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}


def checkpoint_of(stage: Path) -> Path:
    """The newest checkpoint of a training stage; a checkpoint folder given by hand stands for itself."""
    return stage / "checkpoints" / "last" if (stage / "checkpoints").is_dir() else stage


# ---------------------------------------------------------------------------------------------------- data
def plan(cfg: Config, episodes: int, first_state: int, stream: int) -> list[EpisodeSpec]:
    """Episodes over the tasks in turn. Seeds depend on the run's seed, the stream and the position alone."""
    seeds = np.random.SeedSequence([cfg.seed, stream]).generate_state(episodes, np.uint32)
    tasks = cfg.env.tasks
    start = cfg.seed * STATES_PER_SEED + first_state
    return [EpisodeSpec(i, tasks[i % len(tasks)], start + i // len(tasks), int(seed)) for i, seed in enumerate(seeds)]


def publish(cfg: Config, out: Path, source: SourceKind, checkpoint: Path | None) -> None:
    """Turns the finished episode files into the stage's data set."""
    env = make_env(cfg.env)
    assemble(
        out / "episodes",
        out / "dataset",
        fps=env.fps,
        source=source.name,
        checkpoint=None if checkpoint is None else str(checkpoint),
        env={"type": cfg.env.type.name, "tasks": list(cfg.env.tasks), "max_steps": cfg.env.max_steps},
        robot_type=cfg.env.type.name,
        state_names=env.state_names,
        action_names=env.action_names,
    )
    env.close()
    shutil.rmtree(out / "episodes")


def sources(cfg: Config, inputs: Inputs) -> list[Frames]:
    """The data sets a stage reads: demonstrations first, then rollouts by iteration."""
    found = []
    if DEMONSTRATIONS not in inputs:
        if cfg.data.root is None:
            raise RecapError(
                f"data.repo_id={cfg.data.repo_id}: only local data sets are read in this version. Fix: data.root=<its folder>"
            )
        found.append(load_frames(Path(cfg.data.root), DEMONSTRATIONS, SourceKind.demonstration, cfg.data.all_succeed))
    for role, stage in inputs.items():
        if role == DEMONSTRATIONS or role.startswith("rollouts_"):
            kind = SourceKind.demonstration if role == DEMONSTRATIONS else SourceKind.rollout
            found.append(load_frames(stage / "dataset", role, kind))
    return found


def episodes_of(frames: Frames) -> tuple[list[str], list[int], list[bool]]:
    """Task, length and success of every episode."""
    return [frames.tasks[t] for t in frames.task], [int(n) for n in frames.length], [bool(s) for s in frames.success]


def task_normalizers(cfg: Config, data: list[Frames]) -> dict[str, float]:
    """Steps by which returns are divided, per task; warns where failures leave the bins."""
    tasks, lengths, success = (sum(column, []) for column in zip(*map(episodes_of, data), strict=True))
    constant = cfg.advantage.normalizer if cfg.advantage.normalization is Normalization.constant else None
    return normalizers(tasks, lengths, constant)


def normalized_returns(frames: Frames, norm: dict[str, float], c_fail: float) -> np.ndarray:
    """R_t of every frame, in [-1, 0]: float64 [N]."""
    episodes = zip(*episodes_of(frames), strict=True)
    return np.concatenate(
        [normalize(returns(rewards(length, success, c_fail)), norm[task]) for task, length, success in episodes]
    )


# ---------------------------------------------------------------------------------------------------- stages
def demonstrations(cfg: Config, inputs: Inputs, out: Path, say: Say) -> None:
    """The scripted demonstrator records its episodes."""
    scripted = cfg.data.demonstrator
    assert scripted is not None
    if not (out / "dataset").is_dir():
        env = type(cfg.env)(**{**vars(cfg.env), "max_steps": scripted.max_steps})
        with Pool(env, cfg.workers.processes, cfg.workers.processes) as pool:
            results = demonstrate(pool, plan(cfg, scripted.episodes, 0, stream=0), scripted, record=out / "episodes")
        say(f"{len(results)} demonstrations, {np.mean([r.steps for r in results]):.0f} steps on average")
        publish(cfg, out, SourceKind.demonstration, None)


def train_stage(
    cfg: Config,
    inputs: Inputs,
    out: Path,
    say: Say,
    *,
    policy: PolicyKind,
    stage: StageKind,
    indicator: IndicatorMode | None = None,
) -> None:
    """SFT or fine-tuning of either policy; fine-tuning restarts from the pre-trained checkpoint."""
    data = sources(cfg, inputs)
    settings: PolicyTrainConfig | Any = getattr(getattr(cfg, policy.name), stage.name)
    if indicator is not None:
        settings = type(settings)(**{**vars(settings), "indicator": indicator})
    kind = RecapPI0Policy if policy is PolicyKind.pi0 else RecapValuePolicy
    if "pretrained" in inputs:
        checkpoint = Checkpoint.load(checkpoint_of(inputs["pretrained"]), kind, device_name(cfg.device))
    else:
        checkpoint = _new(cfg, policy, data[0])
    check_fit(checkpoint, data[0])
    share = settings.demonstration_share if len(data) > 1 else 1.0
    if policy is PolicyKind.pi0:
        mixture = Mixture(data, share, settings.outcomes)
        labels = [indicators(inputs, source) for source in data] if settings.indicator is IndicatorMode.use else None
        batches = policy_batches(mixture, cfg.pi0, settings, cfg.seed, labels)
    else:
        norm = task_normalizers(cfg, data)
        write_text(out / "normalizers.json", json.dumps(norm, indent=2) + "\n")
        bins = Bins(cfg.value.bins)
        targets = [bins.encode(normalized_returns(source, norm, cfg.advantage.c_fail)) for source in data]
        batches = value_batches(Mixture(data, share), settings, cfg.seed, targets)
    last = train(
        checkpoint,
        batches,
        settings,
        out,
        label=out.name if policy.name == out.name else f"{policy.name} {stage.name}",
        precision=cfg.precision,
    )
    say(f"{settings.steps} steps on {', '.join(f'{len(s.length)} {s.name}' for s in data)} -> {last}")


def _new(cfg: Config, policy: PolicyKind, data: Frames) -> Checkpoint:
    """A policy to pre-train: from given weights, or from scratch."""
    size: PI0Config | ValueConfig = getattr(cfg, policy.name)
    device = device_name(cfg.device)
    if size.pretrained is not None:
        kind = RecapPI0Policy if policy is PolicyKind.pi0 else RecapValuePolicy
        return Checkpoint.load(Path(size.pretrained), kind, device)
    spec = features(
        {key: shape[:2] for key, shape in data.image_shapes.items()}, data.state.shape[1], data.action.shape[1]
    )
    torch.manual_seed(cfg.seed)
    model = build_pi0(size, spec, device) if isinstance(size, PI0Config) else build_value(size, spec, device)
    return Checkpoint.new(model, data.stats())


def check_fit(checkpoint: Checkpoint, data: Frames) -> None:
    """Raises RecapError where the data set has other cameras, state or action sizes than the policy."""
    config = checkpoint.policy.config
    wanted = {
        key: feature.shape for key, feature in {**config.input_features, **(config.output_features or {})}.items()
    }
    for key, size in (("observation.state", data.state.shape[1]), ("action", data.action.shape[1])):
        if key in wanted and wanted[key] != (size,):
            raise RecapError(
                f"data set '{data.name}' has {key} of dimension {size}, the checkpoint was trained with {wanted[key][0]}. "
                "Fix: use data of the same robot, or train from SFT on."
            )
    missing = [key for key in config.image_features if key not in data.cameras]
    if missing:
        raise RecapError(
            f"data set '{data.name}' lacks camera {missing[0]} of the checkpoint; it has {', '.join(data.cameras)}."
        )


def indicators(inputs: Inputs, frames: Frames) -> np.ndarray:
    """I_t of every frame of a data set, from the advantage stage's file."""
    labels: Labels = read_labels(inputs["labels"] / frames.name)
    return labels.lookup(frames.episode_index, frames.frame_index)["indicator"]


def rollout(
    cfg: Config,
    inputs: Inputs,
    out: Path,
    say: Say,
    *,
    iteration: int,
    episodes: int,
    videos: int,
    prompt: Prompt,
    beta: float,
) -> None:
    """Experience: the current policy on seeded placements that are never evaluated, time-outs kept."""
    if (out / "dataset").is_dir():
        return
    episode_plan = plan(cfg, episodes, iteration * STATES_PER_ITERATION, stream=iteration)
    results = _act(
        cfg,
        inputs,
        episode_plan,
        "collection",
        prompt,
        beta,
        record=out / "episodes",
        videos=out / "videos",
        video_episodes=videos,
        progress="rollout",
    )
    say(f"{sum(r.success for r in results)} of {len(results)} rollouts succeeded")
    publish(cfg, out, SourceKind.rollout, checkpoint_of(inputs["policy"]))


def evaluate(
    cfg: Config, inputs: Inputs, out: Path, say: Say, *, episodes: int, videos: int, prompt: Prompt, beta: float
) -> None:
    """Held-out initial states, the same ones and the same noise for every policy of the run."""
    results = _act(
        cfg,
        inputs,
        plan(cfg, episodes, 0, stream=1_000_000),
        "evaluation",
        prompt,
        beta,
        journal=out / "episodes.jsonl",
        videos=out / "videos",
        video_episodes=videos,
        progress="evaluation",
    )
    listed = [vars(result) for result in results]
    numbers = summarize(listed, cfg.env.fps)
    result = {
        "checkpoint": str(checkpoint_of(inputs["policy"])),
        "prompt": prompt.name,
        "beta": beta,
        "fps": cfg.env.fps,
        **numbers,
        "episodes": listed,
    }
    write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    low, high = numbers["ci95"]
    say(f"success {numbers['successes']}/{numbers['n']} = {numbers['success_rate']:.0%} [{low:.0%}, {high:.0%}]")


def _act(
    cfg: Config, inputs: Inputs, episodes: list[EpisodeSpec], split: str, prompt: Prompt, beta: float, **options: Any
) -> list[Any]:
    with Pool(cfg.env, cfg.workers.processes, cfg.workers.slots) as pool:
        checkpoint = Checkpoint.load(checkpoint_of(inputs["policy"]), RecapPI0Policy, device_name(cfg.device))
        config = checkpoint.policy.config
        config.num_inference_steps = cfg.pi0.num_inference_steps
        act = ActionChunks(checkpoint, INDICATOR[prompt], beta)
        return roll(pool, episodes, split, act, cfg.pi0.n_action_steps, **options)


def advantage(cfg: Config, inputs: Inputs, out: Path, say: Say) -> None:
    """Values of all frames, N-step advantages, ε, and the indicator of every frame."""
    data = sources(cfg, inputs)
    checkpoint = Checkpoint.load(checkpoint_of(inputs["value"]), RecapValuePolicy, device_name(cfg.device))
    check_fit(checkpoint, data[0])
    norm = _normalizers(cfg, inputs["value"], data)
    settings = cfg.advantage
    tables = [
        _advantages(frames, values(checkpoint, frames), norm, settings.look_ahead, settings.c_fail) for frames in data
    ]
    pooled = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    tasks, kinds = pooled["task"].tolist(), pooled["source"].tolist()
    epsilon = equations.thresholds(pooled["advantage"], tasks, settings.positive_fraction, settings.threshold.name)
    forced = [kind.name for kind in settings.force_positive]
    pooled["indicator"] = equations.indicator(pooled["advantage"], tasks, epsilon, kinds, forced)
    start = 0
    for frames, table in zip(data, tables, strict=True):
        table["indicator"] = pooled["indicator"][start : start + len(frames)]
        start += len(frames)
        (out / frames.name).mkdir(exist_ok=True)
        write_labels(out / frames.name, table, frames.fps)
    success = pooled["success"]
    thresholds = Thresholds(
        epsilon=epsilon,
        wanted_positive=settings.positive_fraction,
        achieved_positive=equations.positive_shares(pooled["indicator"], kinds, success),
        achieved_positive_per_task=equations.positive_shares_per_task(pooled["indicator"], tasks, kinds, success),
        look_ahead=settings.look_ahead,
        normalizer=norm,
        c_fail=settings.c_fail,
        percentiles=equations.percentiles(pooled["advantage"]),
    )
    write_thresholds(out, thresholds)
    for warning in _warnings(cfg, data, norm):
        say(f"warning: {warning}")
    say(describe(thresholds))


def _normalizers(cfg: Config, value: Path, data: list[Frames]) -> dict[str, float]:
    """Those the value function was trained with."""
    path = value / "normalizers.json"
    norm = json.loads(path.read_text()) if path.is_file() else task_normalizers(cfg, data)
    missing = {task for frames in data for task in episodes_of(frames)[0]} - set(norm)
    if missing:
        raise RecapError(
            f"{path} has no normalizer for task {sorted(missing)[0]!r}: the value function never saw it. Fix: fine-tune it on this data."
        )
    return norm


@torch.no_grad()
def values(checkpoint: Checkpoint, frames: Frames) -> np.ndarray:
    """V(o_t, l) of every frame: float64 [N]."""
    mixture, found = Mixture([frames], 1.0), []
    for start in range(0, len(frames), VALUE_BATCH):
        rows = np.arange(start, min(start + VALUE_BATCH, len(frames)))
        batch = tensors(mixture.gather(Picked(np.zeros_like(rows), rows)))
        found.append(checkpoint.policy.value(checkpoint.prepare(batch)).double().cpu().numpy())
    return np.concatenate(found)


def _advantages(
    frames: Frames, value: np.ndarray, norm: dict[str, float], look_ahead: int, c_fail: float
) -> dict[str, np.ndarray]:
    """The label columns of one data set, but for the indicator."""
    tasks, lengths, success = episodes_of(frames)
    found = [
        equations.advantages(rewards(length, won, c_fail), value[start : start + length], look_ahead, norm[task])
        for start, task, length, won in zip(frames.start, tasks, lengths, success, strict=True)
    ]
    of_episode = frames.episode_index
    return {
        "dataset": np.full(len(frames), frames.name, dtype=object),
        "episode_index": of_episode,
        "frame_index": frames.frame_index,
        "value": value,
        "return": normalized_returns(frames, norm, c_fail),
        "advantage": np.concatenate(found),
        "source": np.full(len(frames), frames.kind.name, dtype=object),
        "success": frames.success[of_episode],
        "task": np.asarray(tasks, dtype=object)[of_episode],
    }


def _warnings(cfg: Config, data: list[Frames], norm: dict[str, float]) -> list[str]:
    tasks, lengths, success = (sum(column, []) for column in zip(*map(episodes_of, data), strict=True))
    found = [check_c_fail(tasks, lengths, success, cfg.advantage.c_fail)]
    if cfg.advantage.normalization is Normalization.constant:
        found.append(check_bin_range(tasks, lengths, success, cfg.advantage.c_fail, norm))
    return [text for text in found if text]


def describe(thresholds: Thresholds) -> str:
    """Percentiles, ε and achieved shares as they are printed."""

    def shares(achieved: Mapping[str, float | None]) -> str:
        return "  ".join(f"{name} {share:.0%}" for name, share in achieved.items() if share is not None)

    lines = ["advantage percentiles  " + "  ".join(f"{k}:{v:+.3f}" for k, v in thresholds.percentiles.items())]
    for task, epsilon in thresholds.epsilon.items():
        lines.append(f"ε = {epsilon:+.4f}  {task}: positive {shares(thresholds.achieved_positive_per_task[task])}")
    lines.append(f"positive {shares(thresholds.achieved_positive)} (wanted {thresholds.wanted_positive:.0%})")
    return "\n".join(lines)


STAGES: dict[str, Callable[..., None]] = {
    "demonstrations": demonstrations,
    "train": train_stage,
    "rollout": rollout,
    "advantage": advantage,
    "evaluate": evaluate,
}
