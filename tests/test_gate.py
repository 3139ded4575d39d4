"""The gate's statistics against scipy, each check on labels that ask for it, and the stage in a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny_run import RUN, read, tiny

from recap.method.advantage import advantages, threshold
from recap.method.config import GateAction, GateConfig
from recap.method.gate import ALL, Check, Labelled, judge
from recap.method.ranking import Episodes, excess, outcome_auc, rank_correlation
from recap.method.returns import normalize, returns, rewards

TASK, OTHER = "put the moka pot on the stove", "push the button"
LIMITS = GateConfig(
    action=GateAction.stop,
    min_rank=0.4,
    min_auc=0.6,
    max_over_fit=0.3,
    min_spread=0.15,
    max_saturation=0.2,
    max_clipped=0.9,
    max_misplaced=0.01,
    share_tolerance=0.02,
    min_success_lead=0.0,
    min_episodes=10,
)
Value = Callable[[np.random.Generator, np.ndarray, bool, bool], np.ndarray]


def episodes(length: list[int], success: list[bool], task: list[str] | None = None) -> Episodes:
    """Episodes of these lengths, one after the other; their mean values are to be filled in."""
    rows = np.split(np.arange(sum(length)), np.cumsum(length)[:-1])
    tasks = np.array(task or [TASK] * len(length), dtype=object)
    return Episodes(rows, np.zeros(len(rows)), np.array(success), tasks, np.full(len(rows), "rollout", dtype=object))


def healthy(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    """Knows half of the difference between episodes, whoever looks."""
    return 0.5 * target - 0.3 + rng.normal(0, 0.05, len(target)) + rng.normal(0, 0.05)


def labelled(value: Value = healthy, seed: int = 0, task: str = TASK, **changes: Any) -> Labelled:
    """80 demonstrations and 120 rollouts of which half fail, a fifth held out: the labels of a value function."""
    rng, c_fail, normalizer = np.random.default_rng(seed), 50.0, 100.0
    column: dict[str, list[np.ndarray]] = {key: [] for key in COLUMNS}
    for number in range(200):
        demonstration, success, held = number < 80, number % 2 == 0 or number < 80, number % 5 == 0
        length = int(rng.integers(30, 90)) if demonstration else int(rng.integers(20, 50)) if success else 50
        reward = rewards(length, success, c_fail)
        target = normalize(returns(reward), normalizer)
        guess = np.clip(value(rng, target, success, held), -1, 0)
        kind = "demonstration" if demonstration else "rollout"
        of_frames = (guess, target, advantages(reward, guess, 5, normalizer), number, held, success, kind)
        for key, entry in zip(COLUMNS, of_frames, strict=True):
            column[key].append(np.broadcast_to(np.asarray(entry), length))
    found = {key: np.concatenate(parts) for key, parts in column.items()}
    epsilon = threshold(found["advantage"], 0.3)
    labels = Labelled(
        **found,
        indicator=found["advantage"] > epsilon,
        task=np.full(len(found["value"]), task, dtype=object),
        epsilon={task: epsilon},
        normalizer={task: normalizer},
        wanted={task: 0.3},
        c_fail=c_fail,
        bins=201,
        clipped=True,
    )
    return replace(labels, **changes)


COLUMNS = ("value", "returns", "advantage", "episode", "held_out", "success", "source")


def answers(labels: Labelled, **limits: float) -> dict[str, Check]:
    return {check.name: check for check in judge(labels, replace(LIMITS, **limits))}


def failed(labels: Labelled, **limits: float) -> set[str]:
    return {name for name, check in answers(labels, **limits).items() if not check.passed}


# ---------------------------------------------------------------------------------------------------- statistics
def test_rank_correlation_is_scipys_and_long_episodes_count_as_much_as_short_ones() -> None:
    rng = np.random.default_rng(0)
    of = episodes([20, 20, 7, 13], [True, False, True, True])
    value, target = rng.normal(size=60), rng.normal(size=60)
    found = rank_correlation(value, target, of)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(value, target).statistic, abs=1e-12)
    assert (found.low < found.value < found.high, found.episodes) == (True, 4)
    longer = [np.repeat(x, 3) for x in (value[:20], target[:20])]  # 60 frames of the same curve: 20 of them count
    stretched = rank_correlation(
        np.concatenate([longer[0], value[20:]]),
        np.concatenate([longer[1], target[20:]]),
        episodes([60, 20, 7, 13], [True] * 4),
    )
    assert stretched is not None
    assert stretched.value == pytest.approx(found.value, abs=0.05)


def test_rank_correlation_of_tasks_is_their_mean_by_episodes() -> None:
    rng = np.random.default_rng(1)
    of = episodes([10] * 5, [True] * 5, [TASK, TASK, TASK, OTHER, OTHER])
    value, target = rng.normal(size=50), np.concatenate([rng.normal(size=30), rng.normal(size=20) - 5])
    apart = [stats.spearmanr(value[part], target[part]).statistic for part in (slice(0, 30), slice(30, 50))]
    found = rank_correlation(value, target, of)
    assert found is not None
    assert found.value == pytest.approx(0.6 * apart[0] + 0.4 * apart[1], abs=1e-12)
    assert rank_correlation(np.zeros(50), target, of).value == 0  # type: ignore[union-attr]  # a constant ranks nothing
    assert rank_correlation(value, np.zeros(50), of) is None
    assert rank_correlation(value[:10], target[:10], episodes([10], [True])) is None


def test_the_interval_of_a_rank_correlation_holds_for_other_episodes() -> None:
    """Against the spread over many drawings of 30 episodes, in which frames of an episode share an error."""
    drawn = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        target = np.concatenate([np.linspace(-rng.uniform(0.3, 1), 0, 25) for _ in range(30)])
        value = target + np.repeat(rng.normal(0, 0.4, 30), 25) + rng.normal(0, 0.1, 750)
        drawn.append(rank_correlation(value, target, episodes([25] * 30, [True] * 30)))
    errors = [(found.high - found.low) / (2 * 1.96) for found in drawn if found]
    assert np.mean(errors) == pytest.approx(np.std([found.value for found in drawn if found]), rel=0.25)


def test_auc_is_mann_whitneys_u_over_the_pairs_within_tasks() -> None:
    rng = np.random.default_rng(2)
    score, success = rng.normal(size=40).round(1), rng.random(40) < 0.4  # rounded: ties
    task = np.where(np.arange(40) < 25, TASK, OTHER)
    of = replace(episodes([3] * 40, success.tolist(), task.tolist()), value=score)
    u = pairs = 0.0
    for name in (TASK, OTHER):
        won, lost = score[success & (task == name)], score[~success & (task == name)]
        u, pairs = u + stats.mannwhitneyu(won, lost).statistic, pairs + len(won) * len(lost)
    found = outcome_auc(of)
    assert found is not None
    assert found.value == pytest.approx(u / pairs, abs=1e-12)
    assert outcome_auc(of.only(success)) is None
    assert outcome_auc(replace(of, value=np.zeros(40))).value == 0.5  # type: ignore[union-attr]


def test_the_interval_of_an_auc_is_the_bootstraps() -> None:
    rng = np.random.default_rng(3)
    score = np.concatenate([rng.normal(0.8, 1, 30), rng.normal(0, 1, 40)])
    of = replace(episodes([2] * 70, [True] * 30 + [False] * 40), value=score)
    found = outcome_auc(of)
    again = stats.bootstrap(
        (score[:30], score[30:]),
        lambda won, lost, axis: stats.mannwhitneyu(won, lost, axis=axis).statistic / (30 * 40),
        n_resamples=1500,
        method="percentile",
        rng=4,
    )
    assert found is not None
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(again.standard_error, rel=0.1)


# ---------------------------------------------------------------------------------------------------- checks
@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_value_function_passes(seed: int) -> None:
    found = answers(labelled(seed=seed))
    assert all(check.passed and not check.unknown for check in found.values()), found


def constant(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    return np.full(len(target), -0.5) + rng.normal(0, 1e-4, len(target))


def shuffled(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    """As far apart as returns are, and nothing to do with them."""
    return rng.uniform(-1, 0, len(target))


def wrong_sign(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    return -1 - healthy(rng, target, success, held_out)


def over_fitted(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    """By heart what it trained on; elsewhere it sees progress, and guesses the rest."""
    if held_out:
        return np.linspace(0, 0.3, len(target)) + rng.uniform(-0.9, -0.2)
    return target + rng.normal(0, 0.01, len(target))


def saturated(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
    return np.where(target > -0.5, 0.0, -1.0)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (constant, {"rank", "spread"}),
        (shuffled, {"rank"}),
        (wrong_sign, {"rank", "outcome_auc"}),
        (over_fitted, {"over_fit"}),
        (saturated, {"saturated_values"}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_each_broken_value_function_is_named(value: Value, named: set[str], seed: int) -> None:
    assert named <= failed(labelled(value, seed))


def test_too_few_or_one_sided_held_out_episodes_are_said_not_judged() -> None:
    few = labelled(wrong_sign)
    few = replace(few, held_out=few.held_out & (few.episode % 40 == 0))
    found = answers(few)
    assert {name for name, check in found.items() if check.unknown} == {"rank", "outcome_auc", "over_fit"}
    assert "5 of 200 episodes can be judged, 10 are needed" in found["rank"].text
    assert found["rank"].passed
    won = labelled()
    won = replace(won, held_out=won.held_out & won.success)
    assert answers(won)["outcome_auc"].unknown
    assert not answers(won)["rank"].unknown
    out_of_fold = replace(labelled(), held_out=np.ones(len(won.value), dtype=bool))
    assert answers(out_of_fold)["over_fit"].passed
    assert "no value comes from a function that trained on the episode" in answers(out_of_fold)["over_fit"].text


def test_demonstrations_do_not_stand_in_for_successes_of_the_policy() -> None:
    def style(rng: np.random.Generator, target: np.ndarray, success: bool, held_out: bool) -> np.ndarray:
        """Knows demonstrations, which here are longer than 50 steps, and nothing else."""
        return np.full(len(target), -0.1 if len(target) > 50 else -0.8) + rng.normal(0, 0.02, len(target))

    labels = labelled(style)
    by_style = outcome_auc(labels.episodes.only(labels.unseen))
    assert by_style is not None
    assert by_style.value > 0.65
    assert answers(labels)["outcome_auc"].value == pytest.approx(0.5, abs=0.1)


def test_a_failure_that_scores_like_a_success_is_counted_within_its_task() -> None:
    labels = labelled()
    length = labels.episodes.length
    floor = int(length.max()) - 50  # slow demonstrations, and failures of 50 steps: here they tie
    assert answers(replace(labels, c_fail=floor))["c_fail"].value > 0
    assert answers(replace(labels, c_fail=floor + 1))["c_fail"].value == 0
    found = answers(replace(labels, c_fail=25.0))["c_fail"]
    assert (found.passed, found.knob) == (False, f"advantage.c_fail (above {floor})")
    won, lost = length[labels.episodes.success], length[~labels.episodes.success]
    assert found.value == np.mean([w - 1 >= f - 1 + 25 for w in won for f in lost])
    fast = replace(labels, task=np.where(labels.success, OTHER, TASK).astype(object))
    fast = replace(fast, epsilon=dict.fromkeys((TASK, OTHER), 0.0), normalizer=dict.fromkeys((TASK, OTHER), 100.0))
    assert answers(replace(fast, c_fail=1.0))["c_fail"].unknown, "no task has both"


def test_bin_range_of_opentaus_two_settings() -> None:
    labels = replace(labelled(), clipped=False, c_fail=1000.0)
    assert answers(replace(labels, normalizer={TASK: 1600.0}))["bin_range"].passed
    found = answers(replace(labels, normalizer={TASK: 400.0}))["bin_range"]  # its example: failures fall outside
    assert (found.passed, found.value) == (False, pytest.approx(60 / 200))
    assert "at least 1049" in found.knob  # 49 steps and C_fail
    assert answers(replace(labels, normalizer={TASK: 1049.0}))["bin_range"].passed
    per_task = replace(labels, normalizer={TASK: 89.0}, clipped=True)
    assert answers(per_task)["bin_range"].passed, "the paper clips failures on purpose"
    assert not answers(replace(per_task, normalizer={TASK: 40.0}))["bin_range"].passed, "but no successes"


def test_returns_that_are_nearly_all_clipped_teach_nothing() -> None:
    labels = labelled()
    assert failed(replace(labels, returns=np.full(len(labels.value), -1.0))) >= {"saturated_returns"}


def test_ties_that_take_the_positive_share_away() -> None:
    labels = labelled()
    tied = np.where(labels.advantage > 0, 0.1, labels.advantage)
    assert (tied == 0.1).mean() > 0.35
    found = answers(replace(labels, advantage=tied, epsilon={TASK: threshold(tied, 0.3)}))["positive_share"]
    assert found.passed is False, "no number of numpy's, which JSON would not take"
    assert "0.0% of the frames are positive, 30.0% wanted" in found.text
    other = replace(labels, wanted={TASK: 0.1})  # a fraction of its own, and an ε that is not for it
    assert failed(other) == {"positive_share"}
    together = replace(labels, wanted={ALL: 0.3})
    assert answers(together)["positive_share"].passed


def test_failures_should_not_be_more_positive_than_successes() -> None:
    labels = labelled()
    upside_down = replace(labels, advantage=-labels.advantage, epsilon={TASK: threshold(-labels.advantage, 0.3)})
    found = answers(upside_down)["sources"]
    assert not found.passed
    forced = replace(labels, indicator=labels.indicator | (labels.source == "demonstration"))
    assert "demonstration 100%" in answers(forced)["sources"].text
    assert answers(forced)["positive_share"].passed, "what is forced is no tie"


def test_a_task_of_which_nothing_is_judged() -> None:
    """An operator acted in all of its frames, which are left out."""
    found = answers(replace(labelled(), wanted={TASK: 0.3, "another": 0.3}))["positive_share"]
    assert found.passed
    assert "another" not in found.text


def test_a_gap_has_the_errors_of_both() -> None:
    labels = labelled()
    known, unseen = (
        rank_correlation(labels.value, labels.returns, labels.episodes.only(which))
        for which in (~labels.unseen, labels.unseen)
    )
    assert known is not None
    assert unseen is not None
    gap = excess(known, unseen)
    assert gap.value == known.value - unseen.value
    assert gap.high - gap.low == pytest.approx(np.hypot(known.high - known.low, unseen.high - unseen.low))


# ---------------------------------------------------------------------------------------------------- the stage
STRICT = ["gate.min_spread=100", "gate.action=stop"]


def test_a_failed_gate_ends_the_loop_and_the_same_command_with_warn_goes_on(work: Path) -> None:
    run = work / RUN
    for path in (run / "iter_01/gate", run / "iter_01/policy", run / "iter_01/eval"):
        shutil.rmtree(path)
    (run / "config.yaml").unlink()  # the limits are the run's
    stopped = tiny("loop", "+iterations=1", *STRICT, cwd=work)
    assert stopped.code == 1
    for said in ("spread: V spreads", "(limit: at least 100)", "value.finetune.steps", "gate.png", "gate.action=warn"):
        assert said in stopped.err
    gate, policy = run / "iter_01/gate", run / "iter_01/policy"
    assert read(gate / "gate.json")["passed"] is False
    assert (gate / "gate.png").read_bytes().startswith(b"\x89PNG")
    assert not (gate / "manifest.json").exists()
    assert not policy.exists(), "no policy was trained"
    assert "The value gate stopped iteration 1 before a policy was trained" in " ".join(stopped.out.split())
    assert any("V spreads" in finding["problem"] for finding in read(run / "summary.json")["advice"])
    assert "stopped the run</span>" in (run / "report.html").read_text(), "the report is written all the same"
    by_hand = tiny("train", "policy=pi0", "stage=finetune", "data=moka+rollouts", *STRICT, cwd=work)
    assert "iter_01/policy needs iter_01/gate" in by_hand.err
    assert "`python advantage.py iteration=1`" in by_hand.err
    warned = tiny("advantage", "data=moka+rollouts", STRICT[0], "gate.action=warn", cwd=work)
    assert warned.code == 0, warned.err
    assert "failed: spread" in warned.out
    assert "warning: rank: not enough to tell" in warned.out, "few episodes are never passed over in silence"
    found = read(gate / "gate.json")
    assert (found["passed"], found["action"]) == (False, "warn")
    assert {"name", "value", "limit", "passed", "knob", "text"} == set(found["checks"][0])
    went_on = tiny("loop", "+iterations=1", STRICT[0], "gate.action=warn", cwd=work)
    assert went_on.code == 0, went_on.err
    assert (run / "iter_01/eval/result.json").exists()
    assert set(read(policy / "manifest.json")["inputs"]) >= {"labels", "gate"}


def test_labels_of_other_values_are_judged_beside_them(work: Path) -> None:
    pickier = ["advantage.positive_fraction=0.1", "result=other/pickier"]
    seen = tiny("advantage", "data=moka+rollouts", *pickier, cwd=work)
    assert seen.code == 0, seen.err
    share = next(
        check for check in read(work / "other/pickier_gate/gate.json")["checks"] if check["name"] == "positive_share"
    )
    assert "10.0% wanted" in share["text"]
    again = tiny("advantage", "data=moka+rollouts", *pickier, cwd=work)
    assert again.out.count("  kept") == 3
