import itertools
import json

import numpy as np
import pytest
from scipy import stats

from recap.method.success import bootstrap_mean, compare, mcnemar, pair, summarize, wilson
from recap.utils.errors import RecapError


def episode(index, success, steps=50, task="stove", initial_state=None, seed=7):
    state = index if initial_state is None else initial_state
    return {"index": index, "task": task, "initial_state": state, "seed": seed, "success": success, "steps": steps}


# ---------------------------------------------------------------------------------------------------- intervals
def test_wilson_by_hand():
    # z = 1.959964, z² = 3.841459; 5 of 10: centre 0.5, half-width z·sqrt(0.025 + z²/400) / (1 + z²/10) = 0.263406
    low, high = wilson(5, 10)
    assert low == pytest.approx(0.236593, abs=1e-6)
    assert high == pytest.approx(0.763407, abs=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 150), (50, 150), (149, 150), (150, 150), (3, 7)])
def test_wilson_agrees_with_scipy(k, n, level):
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    low, high = wilson(k, n, level)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses(k, n):
    with pytest.raises(RecapError, match="episodes"):
        wilson(k, n)


# ---------------------------------------------------------------------------------------------------- paired test
def outcomes(both, fixed, broke, neither):
    before = [True] * both + [False] * fixed + [True] * broke + [False] * neither
    after = [True] * both + [True] * fixed + [False] * broke + [False] * neither
    return np.array(before), np.array(after)


def test_mcnemar_by_hand():
    assert mcnemar(*outcomes(4, 3, 1, 2)) == (3, 1, 0.625)  # 2 (C(4,0) + C(4,1)) / 2^4
    assert mcnemar(*outcomes(0, 5, 0, 0)) == (5, 0, 0.0625)  # 2 / 2^5
    assert mcnemar(*outcomes(1, 0, 6, 1)) == (0, 6, 0.03125)
    assert mcnemar(*outcomes(5, 2, 2, 5)) == (2, 2, 1.0)
    assert mcnemar(*outcomes(5, 0, 0, 5)) == (0, 0, 1.0)


@pytest.mark.parametrize(("fixed", "broke"), [(60, 12), (12, 60), (31, 30), (1500, 1300)])
def test_mcnemar_agrees_with_the_binomial_test(fixed, broke):
    p = mcnemar(*outcomes(10, fixed, broke, 10)).p
    assert p == pytest.approx(stats.binomtest(fixed, fixed + broke).pvalue, rel=1e-9)


def test_mcnemar_refuses():
    with pytest.raises(RecapError, match="equal length"):
        mcnemar(np.array([True]), np.array([True, False]))
    with pytest.raises(RecapError, match="bool"):
        mcnemar([0.3, 0.4], [0.1, 0.2])
    with pytest.raises(RecapError, match="no paired"):
        mcnemar(np.zeros(0, bool), np.zeros(0, bool))


def test_pairing_ignores_the_order_of_episodes():
    before = [episode(0, success=True), episode(1, success=False), episode(2, success=False, task="sink")]
    after = [
        episode(0, success=True, task="sink", initial_state=2),
        episode(1, success=True),
        episode(2, success=False, initial_state=0),
    ]
    b, a = pair(before, after)
    # sorted by task and state: sink 2, stove 0, stove 1
    assert b.tolist() == [False, True, False]
    assert a.tolist() == [True, False, True]
    assert compare(before, after) == {"fixed": 2, "broke": 1, "mcnemar_p": 1.0}


@pytest.mark.parametrize("other", [{"initial_state": 9}, {"seed": 8}, {"task": "sink"}])
def test_different_episodes_cannot_be_paired(other):
    before = [episode(0, success=True), episode(1, success=True)]
    with pytest.raises(RecapError, match="1 of 2 episodes are only in the first and 1 of 2 only in the second"):
        compare(before, [episode(0, success=True), episode(1, success=True, **other)])
    with pytest.raises(RecapError, match="1 of 2 episodes are only in the first and 0 of 1"):
        compare(before, before[:1])


def test_an_episode_may_not_be_there_twice():
    with pytest.raises(RecapError, match="before episodes hold task 'stove', initial_state 0, seed 7 twice"):
        compare([episode(0, success=True), episode(1, success=False, initial_state=0)], [episode(0, success=True)])


# ---------------------------------------------------------------------------------------------------- result.json
def test_summary_by_hand():
    episodes = [
        episode(0, success=True, steps=20),
        episode(1, success=True, steps=40),
        episode(2, success=False, steps=50, task="sink"),
        episode(3, success=False, steps=50),
    ]
    out = summarize(episodes, fps=10)
    assert out["n"] == 4
    assert out["successes"] == 2
    assert out["success_rate"] == 0.5
    assert out["ci95"] == list(wilson(2, 4))
    assert out["mean_steps_to_success"] == 30.0
    assert out["successes_per_hour"] == 450.0  # 160 steps at 10 Hz are 16 s; 2 in 16 s
    assert out["per_task"] == {"sink": {"episodes": 1, "successes": 0}, "stove": {"episodes": 3, "successes": 2}}
    assert out["episodes"] == episodes
    assert json.loads(json.dumps(out)) == out


def test_summary_without_a_success():
    out = summarize([episode(0, success=False)], fps=20)
    assert out["mean_steps_to_success"] is None
    assert out["successes_per_hour"] == 0
    assert out["ci95"][0] == 0


def test_summary_refuses():
    with pytest.raises(RecapError, match="0 episodes"):
        summarize([], fps=10)
    with pytest.raises(RecapError, match="fps is 0"):
        summarize([episode(0, success=True)], fps=0)
    with pytest.raises(RecapError, match="0 steps"):
        summarize([episode(0, success=True, steps=0)], fps=10)
    with pytest.raises(RecapError, match="twice"):
        summarize([episode(0, success=True), episode(0, success=True)], fps=10)


def test_bootstrap_over_seeds_agrees_with_all_resamples() -> None:
    """Five values have 3125 resamples, so the percentiles are known, and 10,000 drawn ones come near them."""
    values = [-3.0, 1.0, 8.0, 2.5, 0.7]
    means = np.array([np.mean(picked) for picked in itertools.product(values, repeat=5)])
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.15)
    assert bootstrap_mean(values) == (low, high), "a function of the values"
    assert bootstrap_mean([4.0]) == (4.0, 4.0)
