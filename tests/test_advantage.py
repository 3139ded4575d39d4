import time

import numpy as np
import pytest

from recap.method.advantage import (
    advantages,
    awr_weights,
    certainty_weights,
    group_relative,
    indicator,
    percentiles,
    positive_shares,
    positive_shares_per_task,
    read_value,
    threshold,
    thresholds,
    value_bins,
)
from recap.method.returns import returns, rewards
from recap.utils.errors import RecapError


def share(a, epsilon):
    return float((np.asarray(a) > epsilon).mean())


# ---------------------------------------------------------------------------------------------------- advantages
def test_two_steps_ahead_in_a_success():
    # r/L = -1/4, -1/4, -1/4, 0. t=0: -2/4 - 0.25 + 0.5; t=1: -2/4 + 0 + 0.5; t=2: -1/4 + 0.25 (past the end); t=3: 0
    a = advantages(rewards(4, success=True, c_fail=9), [-0.5, -0.5, -0.25, 0], 2, normalizer=4)
    assert a.tolist() == [-0.25, 0, 0, 0]


def test_two_steps_ahead_in_a_failure():
    # t=0: -0.2 - 0.9 + 0.6; t=1: (-1 - 10)/10 + 0.8; t=2: -10/10 + 0.9
    a = advantages(rewards(3, success=False, c_fail=10), [-0.6, -0.8, -0.9], 2, normalizer=10)
    assert a == pytest.approx([-0.5, -0.3, -0.1], abs=1e-15)


def test_the_whole_episode_is_return_minus_value():
    r, v = rewards(6, success=False, c_fail=20), np.linspace(-0.9, -0.1, 6)
    whole = advantages(r, v, None, normalizer=8)
    assert whole == pytest.approx(returns(r) / 8 - v, abs=1e-15)
    assert (advantages(r, v, 6, normalizer=8) == whole).all()
    assert (advantages(r, v, 500, normalizer=8) == whole).all()


def test_one_step_ahead_is_the_td_error():
    r, v = rewards(3, success=True, c_fail=9), np.array([-0.9, -0.5, -0.4])
    assert advantages(r, v, 1, normalizer=2) == pytest.approx([-0.5 - 0.5 + 0.9, -0.5 - 0.4 + 0.5, 0.4], abs=1e-15)


def test_rewards_may_come_normalised_and_values_as_float32():
    r, v = rewards(5, success=True, c_fail=9), np.array([-0.5, -0.4, -0.3, -0.2, -0.1], np.float32)
    assert advantages(r / 5, v, 3) == pytest.approx(advantages(r, v, 3, normalizer=5), abs=1e-15)
    assert advantages(r, v, 3, normalizer=5).dtype == np.float64


def test_a_perfect_value_function_of_a_success_has_no_advantage():
    r = rewards(40, success=True, c_fail=9)
    assert advantages(r, returns(r) / 40, 7, normalizer=40) == pytest.approx(np.zeros(40), abs=1e-15)


@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("n", [1, 3, 10, 11, 50])
def test_agrees_with_a_plain_loop(success, n):
    length, c_fail, normalizer = 11, 30.0, 13.0
    r, v = rewards(length, success, c_fail), np.random.default_rng(n).uniform(-1, 0, length)
    expected = []
    for t in range(length):
        total = sum(r[k] for k in range(t, min(t + n, length)))
        bootstrap = v[t + n] if t + n < length else 0.0
        expected.append(total / normalizer + bootstrap - v[t])
    assert advantages(r, v, n, normalizer) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("r", "v", "n", "message"),
    [
        ([], [], 2, "empty"),
        ([-1.0, 0.0], [-0.5], 2, "2 rewards but 1 values"),
        ([-1.0, 0.0], [-0.5, float("nan")], 2, r"values holds 1 NaN.*\[1\]"),
        ([[-1.0]], [[-0.5]], 2, "dimension"),
        ([-1.0, 0.0], [-0.5, -0.5], 0, "n_step is 0"),
    ],
)
def test_advantages_refuse(r, v, n, message):
    with pytest.raises(RecapError, match=message):
        advantages(r, v, n)


def test_libero_size_takes_well_under_a_second():
    lengths = np.full(1693, 161)  # 272,573 frames, as lerobot/libero
    v = np.random.default_rng(0).uniform(-1, 0, 161)
    start = time.process_time()
    a = np.concatenate([advantages(rewards(n, success=True, c_fail=500), v, 50, normalizer=520) for n in lengths])
    threshold(a, 0.3)
    assert time.process_time() - start < 1.0
    assert len(a) == 272_573


# ---------------------------------------------------------------------------------------------------- thresholds
def test_thirty_percent_positive_is_the_seventieth_percentile_not_the_thirtieth():
    a = np.arange(1.0, 11.0)
    assert threshold(a, 0.3) == 7.5
    assert share(a, threshold(a, 0.3)) == 0.3
    assert share(a, np.percentile(a, 30)) == 0.7  # the misreading


def test_the_share_is_the_closest_one_not_above():
    assert threshold([1, 2, 3, 4, 5, 6, 7], 0.3) == 5.5  # 2 of 7 = 0.286; 3 of 7 would be above
    assert threshold([3, 1, 2], 0.3) > 3  # not even one of three
    a = np.arange(100.0)
    for fraction in (0.29, 0.57, 0.58, 0.07):  # whose product with 100 floats just below the whole number
        assert share(a, threshold(a, fraction)) == fraction


def test_tied_frames_go_together():
    assert threshold([0] * 7 + [1] * 3, 0.3) == 0.5
    assert threshold([0, 1, 1, 1, 1, 1, 1, 1, 2, 2], 0.3) == 1.5  # 2 of 10: the seven tied ones would be too many
    epsilon = threshold([0] * 6 + [1] * 4, 0.3)  # 4 of 10 are too many
    assert share([0] * 6 + [1] * 4, epsilon) == 0


def test_all_tied_marks_nothing_under_either_comparison():
    a = np.full(50, -0.1)
    epsilon = threshold(a, 0.3)
    assert not (a > epsilon).any()
    assert not (a >= epsilon).any()
    assert epsilon == pytest.approx(-0.1, abs=1e-15)


def test_a_collapsed_value_function_does_not_make_most_frames_positive():
    # V = -0.5 everywhere, N = 10: all windows inside an episode tie at -10/L; only the last 10 of 100 frames stand out.
    a = np.concatenate(
        [advantages(rewards(100, success=True, c_fail=9), np.full(100, -0.5), 10, normalizer=97) for _ in range(20)]
    )
    assert share(a, threshold(a, 0.3)) == 0.1
    assert (a >= np.percentile(a, 70)).mean() == 1.0  # what ">=" at the 70th percentile would have done


def test_both_comparisons_choose_the_same_frames():
    a = np.random.default_rng(0).normal(size=1001)
    epsilon = threshold(a, 0.3)
    assert ((a > epsilon) == (a >= epsilon)).all()
    assert ((a > epsilon) == (a.astype(np.float32) > epsilon)).all()
    assert (a > epsilon).sum() == 300


def test_neighbouring_floats_are_still_told_apart():
    a = [1.0, np.nextafter(1.0, 2.0)]
    assert share(a, threshold(a, 0.5)) == 0.5


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 30, float("nan")])
def test_the_fraction_must_lie_between_0_and_1(fraction):
    with pytest.raises(RecapError, match=r"advantage\.positive_fraction"):
        threshold([1.0, 2.0], fraction)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [[1.0]]])
def test_threshold_refuses(bad):
    with pytest.raises(RecapError, match="advantages"):
        threshold(bad, 0.3)


def test_thresholds_per_task_or_global():
    a, tasks = np.array([1.0, 2, 3, 4, 11, 12, 13, 14]), ["a"] * 4 + ["b"] * 4
    assert thresholds(a, tasks, 0.25) == {"a": 3.5, "b": 13.5}
    assert thresholds(a, tasks, 0.25, scope="all") == {"a": 12.5, "b": 12.5}
    with pytest.raises(RecapError, match="per_task, all"):
        thresholds(a, tasks, 0.25, scope="global")  # type: ignore[arg-type]
    with pytest.raises(RecapError, match="7 task names"):
        thresholds(a, tasks[:-1], 0.25)


# ---------------------------------------------------------------------------------------------------- within a task
def test_value_bins_are_quantiles_of_each_task():
    v = [-0.9, -0.8, -0.2, -0.1, -0.4, -0.3, -0.2, -0.1]
    assert value_bins(v, ["a"] * 4 + ["b"] * 4, 2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert value_bins([-0.5] * 6 + [-0.1], ["a"] * 7, 3).tolist() == [0] * 6 + [2], "equal values share a bin"


def test_each_group_has_its_share_of_positives():
    """Where late frames have the larger advantages, a common ε names hardly any early one positive."""
    rng = np.random.default_rng(0)
    v = rng.uniform(-1, 0, 1000)
    a, tasks = v + rng.normal(0, 0.1, 1000), ["a"] * 500 + ["b"] * 500
    epsilon = thresholds(a, tasks, 0.3, by_task={"b": 0.1})
    bins = value_bins(v, tasks, 5)
    before = [share(a[bins == g], epsilon["a"]) for g in range(5)]
    assert (before[0], before[-1] > 0.8) == (0.0, True)
    moved = group_relative(a, tasks, bins, epsilon, 0.3, {"b": 0.1})
    assert [share(moved[bins == g], epsilon["a"]) for g in range(5)] == pytest.approx([0.3] * 5)
    assert [share(moved[bins == g], epsilon["b"]) for g in range(5, 10)] == pytest.approx([0.1] * 5)
    inside = bins == 2
    assert moved[inside] - a[inside] == pytest.approx(np.full(inside.sum(), moved[inside][0] - a[inside][0]))


def test_groups_in_any_order_keep_their_own_order():
    a, group = np.array([4.0, 11, 3, 12, 2, 13, 1, 14]), [9, 7] * 4
    epsilon = thresholds(a, ["a"] * 8, 0.5)
    moved = group_relative(a, ["a"] * 8, group, epsilon, 0.5)
    assert (moved > epsilon["a"]).tolist() == [True, False, True, False, False, True, False, True]
    assert (np.diff(moved[::2]) == np.diff(a[::2])).all()


def test_tied_frames_of_a_group_are_not_carried_over_the_threshold():
    for level in np.random.default_rng(0).uniform(-1, 0, 200):
        moved = group_relative(np.full(9, level), ["a"] * 9, np.zeros(9), {"a": 0.01}, 0.3)
        assert not (moved > 0.01).any()


# ---------------------------------------------------------------------------------------------------- indicator
def test_indicator_uses_the_tasks_own_epsilon_strictly():
    flags = indicator([1, 2, 2, 3], ["a", "a", "b", "b"], {"a": 1, "b": 2}, ["rollout"] * 4)
    assert flags.tolist() == [False, True, False, True]
    assert flags.dtype == bool


def test_forced_sources_are_positive_whatever_their_advantage():
    source = ["demonstration", "rollout", "correction"]
    args = ([-1, -1, -1], ["a"] * 3, {"a": 0.0}, source)
    assert indicator(*args).tolist() == [False] * 3
    assert indicator(*args, force_positive=["correction"]).tolist() == [False, False, True]
    assert indicator(*args, force_positive=["correction", "demonstration"]).tolist() == [True, False, True]


def test_indicator_refuses():
    with pytest.raises(RecapError, match="no threshold ε for task 'b'"):
        indicator([1.0], ["b"], {"a": 0.0}, ["rollout"])
    with pytest.raises(RecapError, match=r"'demos'.*demonstration, rollout, correction"):
        indicator([1.0], ["a"], {"a": 0.0}, ["rollout"], force_positive=["demos"])
    with pytest.raises(RecapError, match="unknown source 'demo'"):
        indicator([1.0], ["a"], {"a": 0.0}, ["demo"])
    with pytest.raises(RecapError, match="NaN"):
        indicator([1.0], ["a"], {"a": float("nan")}, ["rollout"])
    with pytest.raises(RecapError, match="2 sources"):
        indicator([1.0], ["a"], {"a": 0.0}, ["rollout"] * 2)


# ---------------------------------------------------------------------------------------------------- what is printed
def test_percentiles_from_0_to_100_in_fives():
    p = percentiles(np.arange(101.0)[::-1])
    assert list(p) == list(range(0, 101, 5))
    assert list(p.values()) == pytest.approx(list(range(0, 101, 5)), abs=1e-12)


def test_shares_per_source():
    source = np.array(["demonstration"] * 2 + ["rollout"] * 6)
    won = np.array([True, True, True, True, False, False, False, False])
    flags = np.array([True, False, True, True, True, False, False, False])
    assert positive_shares(flags, source, won) == {"all": 0.5, "demonstration": 0.5, "success": 1.0, "failure": 0.25}
    assert positive_shares(flags[2:4], source[2:4], won[2:4]) == {
        "all": 1.0,
        "demonstration": None,
        "success": 1.0,
        "failure": None,
    }
    source[0] = "correction"
    assert positive_shares(flags, source, won)["correction"] == 1.0
    assert positive_shares(flags, source, won)["demonstration"] == 0.0


def test_shares_per_task():
    flags, won = np.array([True, False, False]), np.array([True, True, False])
    per_task = positive_shares_per_task(flags, ["a", "b", "b"], ["rollout"] * 3, won)
    assert per_task["a"] == {"all": 1.0, "demonstration": None, "success": 1.0, "failure": None}
    assert per_task["b"] == {"all": 0.0, "demonstration": None, "success": 0.0, "failure": 0.0}


def test_shares_refuse_what_is_not_bool():
    with pytest.raises(RecapError, match="bool"):
        positive_shares(np.array([1, 0]), ["rollout"] * 2, np.array([True, False]))
    with pytest.raises(RecapError, match="no frames"):
        positive_shares(np.zeros(0, bool), [], np.zeros(0, bool))


# ---------------------------------------------------------------------------------------------------- other uses
def test_fractions_of_single_tasks():
    a, tasks = np.arange(20.0), ["slow"] * 10 + ["fast"] * 10
    epsilon = thresholds(a, tasks, 0.3, by_task={"fast": 0.1})
    assert [share(a[:10], epsilon["slow"]), share(a[10:], epsilon["fast"])] == [0.3, 0.1]
    with pytest.raises(RecapError, match="'other', which has no frames; there are 'slow', 'fast'"):
        thresholds(a, tasks, 0.3, by_task={"other": 0.1})


def test_several_value_functions_are_read_as_one():
    v, out = [[-0.2, -0.4, -0.6], [-0.4, -0.2, -0.2]], [[True, False, True], [False, True, False]]
    mean, unseen = read_value(v, out, "mean")
    assert mean == pytest.approx([-0.3, -0.3, -0.4])
    assert not unseen.any()
    assert read_value(v, out, "worst")[0].tolist() == [-0.4, -0.4, -0.6]
    assert read_value(v, out, "lower_bound", 2.0)[0] == pytest.approx([-0.5, -0.5, -0.8])
    assert read_value(v, out, "lower_bound", 9.0)[0] == pytest.approx([-1, -1, -1]), "never below the lowest bin"
    fold, unseen = read_value(v, out, "out_of_fold")
    assert fold.tolist() == [-0.2, -0.2, -0.6]
    assert unseen.all()
    assert read_value(v, [[True, True, False]] * 2, "mean")[1].tolist() == [True, True, False]
    with pytest.raises(RecapError, match="left out by exactly one member"):
        read_value(v, [[True, True, False]] * 2, "out_of_fold")


def test_awr_weighs_by_the_exponential_of_the_advantage():
    weights = awr_weights([-0.1, 0.0, 0.1], 0.1)
    assert weights.mean() == pytest.approx(1)
    assert weights[1:] / weights[:-1] == pytest.approx([np.e, np.e])
    clipped = awr_weights([0.0] * 99 + [10.0], 0.1)
    assert clipped[-1] / clipped[0] == pytest.approx(20 / np.exp(-1.0)), "clipped at 20"
    with pytest.raises(RecapError, match="awr_temperature is 0"):
        awr_weights([0.0, 1.0], 0)


def test_unsure_labels_weigh_less():
    a, positive = np.array([-0.3, -0.1, 0.1, 0.12, 0.5]), np.array([False, False, False, True, True])
    weights = certainty_weights(a, np.full(5, 0.1), positive, 0.1)
    sigmoid = 1 / (1 + np.exp(-(a - 0.1) / 0.1))
    assert weights.mean() == pytest.approx(1)
    assert weights / weights[0] == pytest.approx(np.abs(2 * sigmoid - 1) / np.abs(2 * sigmoid - 1)[0])
    assert weights[2] == 0, "at ε the label is a guess"
    forced = certainty_weights(a, np.full(5, 0.1), np.ones(5, bool), 0.1)
    assert (forced[:3] == forced.max()).all(), "forced labels are sure"
    with pytest.raises(RecapError, match="indicator_temperature is 0"):
        certainty_weights(a, np.full(5, 0.1), positive, 0)
