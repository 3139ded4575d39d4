"""The value gate: whether labels can be believed, before any policy is trained on them. Arrays in, sentences out.

What memorising would flatter is measured on episodes that the value function never trained on. A check of ranking fails
only when its whole 95 % interval lies beyond the limit. Where there is too little to tell, a check says so and passes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recap.method.advantage import indicator, positive_shares, unforced
from recap.method.config import GateConfig
from recap.method.ranking import Episodes, excess, outcome_auc, rank_correlation
from recap.method.returns import Bins, Floats, Ints, c_fail_floor, cost

ALL = "all tasks"
MINORITY = 3  # successes, and failures, below which an AUC says nothing


@dataclass(frozen=True)
class Check:
    """An answer. value: None where there is not enough to tell; limit: such as "at least 0.1"; knob: what to turn."""

    name: str
    value: float | None
    limit: str
    passed: bool
    knob: str
    text: str

    @property
    def unknown(self) -> bool:
        return self.value is None


@dataclass(frozen=True)
class Labelled:
    """All labelled frames [n], the episodes whole and distinct over all data sets, and what the labels were made with.

    epsilon, normalizer (steps): by task. wanted: positive share by task, or of ALL where they have one ε.
    clipped: returns below the lowest bin are meant, as with the paper's normalisation per task. forced: sources that
    are positive whatever ε is.
    """

    value: Floats
    returns: Floats  # normalised: the targets of V
    advantage: Floats
    indicator: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    success: NDArray[np.bool_]
    episode: Ints
    task: NDArray[Any]
    source: NDArray[Any]
    epsilon: Mapping[str, float]
    normalizer: Mapping[str, float]
    wanted: Mapping[str, float]
    c_fail: float  # steps
    bins: int
    clipped: bool
    forced: Collection[str] = ()

    @cached_property
    def episodes(self) -> Episodes:
        order = np.argsort(self.episode, kind="stable")
        rows = np.split(order, np.flatnonzero(np.diff(self.episode[order])) + 1)
        first = np.array([part[0] for part in rows])
        mean = np.array([self.value[part].mean() for part in rows])
        return Episodes(rows, mean, self.success[first], self.task[first], self.source[first])

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """Episodes that the value function never trained on, bool [e]."""
        return np.array([bool(self.held_out[rows].all()) for rows in self.episodes.rows])

    @cached_property
    def judged(self) -> Episodes:
        """Those whose outcomes V has to tell: unseen, and the policy's own where those have both outcomes.

        A demonstration always succeeds, and shows by its style that it is one.
        """
        unseen = self.episodes.only(self.unseen)
        own = unseen.only(unseen.source != "demonstration")
        return own if len(set(own.success.tolist())) == 2 else unseen

    @cached_property
    def above(self) -> NDArray[np.bool_]:
        """A > ε, whatever is forced positive: bool [n]."""
        return indicator(self.advantage, self.task.tolist(), self.epsilon, self.source.tolist())


def judge(labels: Labelled, limits: GateConfig) -> list[Check]:
    """All checks, those of the value function first."""
    return [
        *_ranking(labels, limits),
        _spread(labels, limits),
        *_saturation(labels, limits),
        _c_fail(labels, limits),
        _bin_range(labels, limits),
        *_positive(labels, limits),
    ]


# ---------------------------------------------------------------------------------------------------- value function
def _ranking(labels: Labelled, limits: GateConfig) -> Iterator[Check]:
    """On unseen episodes: the order of frames, that of outcomes, and how much better it is on those trained on."""
    unseen, known = labels.episodes.only(labels.unseen), labels.episodes.only(~labels.unseen)
    rank = rank_correlation(labels.value, labels.returns, unseen)
    at_least, knob = f"interval reaches {limits.min_rank:g}", "value.finetune.steps, value.use_state"
    if rank is None or rank.episodes < limits.min_episodes:
        yield _too_few("rank", at_least, len(unseen), len(labels.episodes), limits)
    else:
        text = f"rank correlation of V with the return {rank} on {rank.episodes} held-out episodes"
        yield Check("rank", rank.value, at_least, rank.high >= limits.min_rank, knob, text)
    yield _outcomes(labels, limits)
    at_most = f"interval reaches {limits.max_over_fit:g}"
    if not len(known):
        text = "no value comes from a function that trained on the episode"
        yield Check("over_fit", 0.0, at_most, passed=True, knob="value.aggregation", text=text)
        return
    of_known = rank_correlation(labels.value, labels.returns, known)
    if rank is None or of_known is None or min(rank.episodes, of_known.episodes) < limits.min_episodes:
        yield _too_few("over_fit", at_most, min(len(unseen), len(known)), len(labels.episodes), limits)
        return
    gap = excess(of_known, rank)
    text = f"rank correlation {of_known.value:.2f} on episodes trained on, {rank.value:.2f} on others: {gap} better"
    knob = "value.finetune.steps (fewer), rollout.episodes (more), value.aggregation=out_of_fold value.ensemble_size=5"
    yield Check("over_fit", gap.value, at_most, gap.low <= limits.max_over_fit, knob, text)


def _outcomes(labels: Labelled, limits: GateConfig) -> Check:
    judged, at_least = labels.judged, f"interval reaches {limits.min_auc:g}"
    won, lost = int(judged.success.sum()), int((~judged.success).sum())
    auc = outcome_auc(judged)
    if auc is None or min(won, lost) < MINORITY or len(judged) < limits.min_episodes:
        knob, text = "value.held_out, rollout.episodes", f"{won} successes and {lost} failures were held out"
        return _untold("outcome_auc", at_least, knob, text)
    text = f"a held-out success has a higher V than a failure in {auc} of all pairs ({won} and {lost} episodes)"
    knob = "value.finetune.demo_fraction (less: more failures are seen), rollout.episodes (more)"
    return Check("outcome_auc", auc.value, at_least, auc.high >= limits.min_auc, knob, text)


def _too_few(name: str, limit: str, count: int, of: int, limits: GateConfig) -> Check:
    text = f"{count} of {of} episodes can be judged, {limits.min_episodes} are needed"
    return _untold(name, limit, "value.held_out, rollout.episodes", text)


def _untold(name: str, limit: str, knob: str, text: str) -> Check:
    return Check(name, None, limit, passed=True, knob=knob, text=f"not enough to tell: {text}")


def _spread(labels: Labelled, limits: GateConfig) -> Check:
    """Within tasks: telling tasks apart is no merit of V."""
    inside = np.zeros(2)
    for task in labels.episodes.tasks():
        rows = labels.task == task
        inside += rows.sum() * np.array([labels.value[rows].var(), labels.returns[rows].var()])
    limit, knob = f"at least {limits.min_spread:g}", "value.finetune.steps, value.finetune.learning_rate"
    if inside[1] == 0:
        return _untold("spread", limit, "rollout.episodes", "all returns are equal")
    ratio = math.sqrt(inside[0] / inside[1])
    text = f"V spreads {ratio:.2f} times as much as the returns" + (": it is constant" if ratio < 0.01 else "")
    return Check("spread", ratio, limit, ratio >= limits.min_spread, knob, text)


def _saturation(labels: Labelled, limits: GateConfig) -> Iterator[Check]:
    """V in an end bin where its target is not; and targets in an end bin, which teach V nothing else."""
    ends = [np.isin(Bins(labels.bins).encode(of), (0, labels.bins - 1)) for of in (labels.value, labels.returns)]
    value, target = ends
    share = float((value & ~target).mean())
    text = f"{share:.1%} of V lie in the lowest or highest bin while their returns do not"
    knob = "value.finetune.learning_rate (lower), value.finetune.steps"
    limit = f"at most {limits.max_saturation:g}"
    yield Check("saturated_values", share, limit, share <= limits.max_saturation, knob, text)
    share = float(target.mean())
    text = f"{share:.1%} of the returns lie in the lowest or highest bin"
    knob = f"advantage.normalizer (now {_numbers(labels.normalizer)}), advantage.c_fail (now {labels.c_fail:g})"
    limit = f"at most {limits.max_clipped:g}"
    yield Check("saturated_returns", share, limit, share <= limits.max_clipped, knob, text)


def _numbers(by_task: Mapping[str, float]) -> str:
    low, high = min(by_task.values()), max(by_task.values())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# ---------------------------------------------------------------------------------------------------- returns
def _c_fail(labels: Labelled, limits: GateConfig) -> Check:
    """Whether a fast failure may score as well as a slow success of the same task."""
    episodes, limit = labels.episodes, f"at most {limits.max_misplaced:g}"
    pairs = wrong = floor = 0
    for task in episodes.tasks():
        here = episodes.task == task
        length, success = episodes.length[here], episodes.success[here]
        pairs += int(success.sum()) * int((~success).sum())
        costs = cost(length, success, labels.c_fail)
        wrong += int((costs[success][:, None] >= costs[~success]).sum())
        floor = max(floor, c_fail_floor(length.tolist(), success.tolist()))
    if not pairs:
        return _untold("c_fail", limit, "rollout.episodes", "no task has both successes and failures")
    share = wrong / pairs
    text = (
        f"with C_fail = {labels.c_fail:g} steps, a failure scores no worse than a success in {share:.1%} of all pairs; "
        f"above {floor} in none"
    )
    return Check("c_fail", share, limit, share <= limits.max_misplaced, f"advantage.c_fail (above {floor})", text)


def _bin_range(labels: Labelled, limits: GateConfig) -> Check:
    """Whether returns lie below the lowest bin. Per task, failures do so on purpose, and only successes count."""
    episodes, limit = labels.episodes, f"at most {limits.max_misplaced:g}"
    costs = cost(episodes.length, episodes.success, labels.c_fail)
    counted = episodes.success if labels.clipped else np.ones(len(episodes), bool)
    if not counted.any():
        return _untold("bin_range", limit, "rollout.episodes", "there is no success")
    outside = (costs > np.array([labels.normalizer[task] for task in episodes.task]))[counted]
    share, lowest = float(outside.mean()), float(costs[counted].max())
    text = (
        f"the returns of {share:.1%} of {len(outside)} {'successes' if labels.clipped else 'episodes'} reach below the "
        f"lowest bin: down to -{lowest:g} steps, divided by {_numbers(labels.normalizer)}"
    )
    knob = f"advantage.normalizer (at least {math.ceil(lowest)}), advantage.c_fail (less)"
    return Check("bin_range", share, limit, share <= limits.max_misplaced, knob, text)


# ---------------------------------------------------------------------------------------------------- the indicator
def _positive(labels: Labelled, limits: GateConfig) -> Iterator[Check]:
    """The share of A > ε against the wanted one, and against each other those of successes and failures."""
    misses: list[tuple[float, str]] = []
    free = unforced(labels.task.tolist(), labels.source.tolist(), labels.forced)
    for name, wanted in labels.wanted.items():
        rows = free if name == ALL else free & (labels.task == name)
        if not rows.any():  # an operator acted in all of it, and is not judged
            continue
        share = float(labels.above[rows].mean())
        beyond = max(0.0, abs(share - wanted) - 1 / int(rows.sum()))  # a share of whole frames
        misses.append((beyond, f"{share:.1%} of the frames are positive, {wanted:.1%} wanted ({name})"))
    worst, text = max(misses)
    if worst > limits.share_tolerance:
        text += ": many advantages are equal, because V is nearly constant"
    knob = "value.finetune.steps, advantage.n_step"
    limit = f"within {limits.share_tolerance:g}"
    yield Check("positive_share", worst, limit, worst <= limits.share_tolerance, knob, text)
    yield _sources(labels, limits)


def _sources(labels: Labelled, limits: GateConfig) -> Check:
    """Shares by source, as the policy will read them; successes of the policy should have more than its failures."""
    read = positive_shares(labels.indicator, labels.source.tolist(), labels.success)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in read.items() if share is not None)
    limit = f"at least {limits.min_success_lead:g}"
    own = labels.source != "demonstration"
    won, lost = labels.above[own & labels.success], labels.above[own & ~labels.success]
    counts = labels.episodes.only(labels.episodes.source != "demonstration").success
    if min(int(counts.sum()), int((~counts).sum())) < MINORITY:
        return _untold("sources", limit, "rollout.episodes", f"too few successes or failures. Positive: {listed}")
    lead = float(won.mean() - lost.mean())
    text = f"positive: {listed}; successes lead failures by {lead:.0%}"
    knob = "advantage.n_step (longer), value.finetune.demo_fraction (less)"
    return Check("sources", lead, limit, lead >= limits.min_success_lead, knob, text)
