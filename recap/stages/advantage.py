"""The advantage stage: from stored values to N-step advantages, ε and indicators of all frames. Seconds, on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recap.config import Config, StageKind
from recap.data.frames import UNKNOWN, Frames
from recap.data.labels import Thresholds, write_labels, write_thresholds
from recap.method import advantage as equations
from recap.method.config import AdvantageConfig, SourceKind, Threshold, Within
from recap.method.returns import rewards
from recap.policies.value.splits import held_out
from recap.stages.base import Inputs, Say, Stage
from recap.stages.inputs import (
    attempts_of,
    episodes_of,
    normalized_returns,
    pooled_episodes,
    read_normalizers,
    read_values,
    sources,
)
from recap.utils.errors import RecapError
from recap.utils.ranks import WHOLE, Share


@dataclass(frozen=True, kw_only=True)
class Advantage(Stage):
    """`training`: of the policy, by which the labels are read."""

    kind = "advantage"
    keys = ("data", "advantage")
    reads_data = True

    training: StageKind

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        before = used["advantage"].pop("sft")
        if not self.reads_corrections:
            used["advantage"].pop("correction_prefix", None)
        settings = used["advantage"] | (before if self.training is StageKind.sft else {})
        read = ("aggregation", "uncertainty_penalty")
        value = {key: values["value"][key] for key in read if key in values["value"]}
        return {**used, "advantage": settings, "value": value}

    def run(self, say: Say, share: Share = WHOLE) -> None:
        advantage(self.cfg, self.read, self.out, say, stage=self.training)


def advantage(cfg: Config, inputs: Inputs, out: Path, say: Say, *, stage: StageKind) -> None:
    """Advantages, ε and indicators of all frames; `stage`: of the policy's training that will read them."""
    data, settings = sources(cfg, inputs), cfg.advantage
    norm = read_normalizers(inputs["value_inference"])
    before = stage is StageKind.sft
    n_step = settings.sft.n_step if before else settings.n_step
    fraction = settings.sft.positive_fraction if before else settings.positive_fraction
    if not any(frames.success.any() for frames in data):
        raise RecapError(no_success([frames.name for frames in data], fraction, before))
    tables = [_advantages(cfg, frames, read_values(inputs["value_inference"], frames), norm, n_step) for frames in data]
    pooled = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    tasks, kinds = pooled["task"].tolist(), pooled["source"].tolist()
    scope: Literal["per_task", "all"] = "per_task" if settings.threshold is Threshold.per_task else "all"
    forced = sorted(_forced(settings, data))
    free = equations.unforced(tasks, kinds, forced)
    named, shares = pooled["task"][free].tolist(), (fraction, settings.positive_fraction_by_task)
    epsilon = equations.thresholds(pooled["advantage"][free], named, shares[0], scope, shares[1])
    if settings.within is not None:
        binned = settings.within is Within.value_bin
        group = equations.value_bins(pooled["value"], tasks, settings.value_bins) if binned else same_start(data)
        relative = equations.group_relative(pooled["advantage"][free], named, group[free], epsilon, *shares)
        pooled["advantage"][free] = relative
    pooled["indicator"] = equations.indicator(pooled["advantage"], tasks, epsilon, kinds, forced)
    if settings.shuffle:
        pooled["indicator"] = equations.shuffled(pooled["indicator"], pooled["dataset"].tolist(), cfg.seed)
    start = 0
    for frames, table in zip(data, tables, strict=True):
        table |= {key: pooled[key][start : start + len(frames)] for key in ("advantage", "indicator")}
        start += len(frames)
        (out / frames.name).mkdir(exist_ok=True)
        write_labels(out / frames.name, table, frames.recording)
    success = pooled["success"]
    thresholds = Thresholds(
        epsilon=epsilon,
        wanted_positive=fraction,
        achieved_positive=equations.positive_shares(pooled["indicator"], kinds, success),
        achieved_positive_per_task=equations.positive_shares_per_task(pooled["indicator"], tasks, kinds, success),
        n_step=n_step,
        normalizer=norm,
        c_fail=settings.c_fail,
        percentiles=equations.percentiles(pooled["advantage"]),
        forced=forced,
    )
    write_thresholds(out, thresholds)
    say(describe(thresholds))
    for text in doubts(data, thresholds, cfg.gate.share_tolerance if before else 1.0):
        say(f"warning: {text}")


def _forced(settings: AdvantageConfig, data: list[Frames]) -> set[str]:
    """Sources that are positive by definition; corrections of which no outcome is known cannot be anything else."""
    unjudged = any(not frames.outcomes for frames in data)
    return {kind.name for kind in settings.force_positive} | ({SourceKind.correction.name} if unjudged else set())


def _advantages(
    cfg: Config, frames: Frames, values: np.ndarray, norm: dict[str, float], n_step: int | None
) -> dict[str, np.ndarray]:
    """The label columns of one data set, but for the indicator. values: float64 [members, N]."""
    settings, of_episode = cfg.advantage, frames.episode
    tasks, parts = np.asarray(frames.tasks, dtype=object)[frames.task], attempts_of(frames, settings)
    out_by = np.stack([held_out(frames, cfg.value, cfg.seed, member) for member in range(len(values))])[:, of_episode]
    penalty = cfg.value.uncertainty_penalty
    value, unseen = equations.read_value(values, out_by, cfg.value.aggregation.value, penalty)
    found = [
        equations.advantages(
            rewards(int(length), bool(won), settings.c_fail), value[start : start + length], n_step, norm[task]
        )
        for start, task, length, won in zip(parts.start, tasks[parts.episode], parts.length, parts.success, strict=True)
    ]
    return {
        "dataset": np.full(len(frames), frames.name, dtype=object),
        "episode_index": frames.episode_index,
        "frame_index": frames.frame_index,
        "value": value,
        "return": normalized_returns(frames, norm, settings),
        "advantage": np.concatenate(found),
        "held_out": unseen,
        "source": frames.source_of_frame(),
        "success": parts.of_frames(),
        "task": tasks[of_episode],
    }


def same_start(data: list[Frames]) -> np.ndarray:
    """int [frames of all data]: which initial state a frame's episode began in; all that began alone are one more."""
    begun: list[tuple[str, str, int]] = []
    for frames in data:
        tasks = episodes_of(frames)[0]
        begun += [(task, frames.name, int(state)) for task, state in zip(tasks, frames.initial_state, strict=True)]
    tries = Counter(begun)
    group = [key if tries[key] > 1 and key[2] != UNKNOWN else key[0] for key in begun]
    number = {key: place for place, key in enumerate(dict.fromkeys(group))}
    return np.repeat([number[key] for key in group], np.concatenate([frames.length for frames in data]))


def doubts(data: list[Frames], thresholds: Thresholds, tolerance: float) -> Iterator[str]:
    """Where labels mean less than they seem to, which the gate cannot tell: of the pre-training there is none."""
    tasks, _, success = pooled_episodes(data)
    for task in sorted(set(tasks)):
        won = [good for name, good in zip(tasks, success, strict=True) if name == task]
        share = thresholds.achieved_positive_per_task[task]["all"] or 0.0
        if len(won) == 1:
            yield f"{task!r} has one episode: its {share:.0%} positive frames are better than nothing else"
        elif not any(won):
            yield (
                f"none of {len(won)} episodes of {task!r} succeeded: its {share:.0%} positive frames are those of "
                "failures. Fix: add successes of it, or leave its data out"
            )
    achieved = thresholds.achieved_positive["all"] or 0.0
    if achieved < thresholds.wanted_positive - tolerance:
        yield (
            f"{achieved:.0%} of the frames are positive, {thresholds.wanted_positive:.0%} were wanted: many advantages "
            "are equal, because V is nearly constant. Fix: value.sft.steps, or look at value_curve in the report"
        )


def describe(thresholds: Thresholds) -> str:
    """Percentiles, ε and achieved shares as they are printed."""

    def shares(achieved: Mapping[str, float | None]) -> str:
        return "  ".join(f"{name} {share:.0%}" for name, share in achieved.items() if share is not None)

    lines = ["advantage percentiles  " + "  ".join(f"{k}:{v:+.3f}" for k, v in thresholds.percentiles.items())]
    for task, epsilon in thresholds.epsilon.items():
        lines.append(f"ε = {epsilon:+.4f}  {task}: positive {shares(thresholds.achieved_positive_per_task[task])}")
    lines.append(f"positive {shares(thresholds.achieved_positive)} (wanted {thresholds.wanted_positive:.0%})")
    return "\n".join(lines)


def no_success(names: Sequence[str], fraction: float, before: bool = True) -> str:
    """What to say of labels of data in which nothing ever succeeds; before: those of the pre-training."""
    else_ = "train without labels (policy.sft.indicator=ignore)" if before else "collect more (rollout.episodes)"
    return (
        f"no episode of {', '.join(names)} succeeded: {fraction:.0%} of the frames of failures would be labelled "
        f"positive, and imitated. Fix: add demonstrations that succeed (+data.sources.good.root=<a folder>), or {else_}"
    )
