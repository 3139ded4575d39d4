import numpy as np
import pytest

from recap.method.returns import (
    Bins,
    c_fail_floor,
    cost,
    normalize,
    normalizers,
    returns,
    rewards,
)
from recap.utils.errors import RecapError


def test_rewards_of_a_success_and_a_failure():
    assert rewards(4, success=True, c_fail=10).tolist() == [-1, -1, -1, 0]
    assert rewards(3, success=False, c_fail=10).tolist() == [-1, -1, -10]
    assert rewards(1, success=True, c_fail=10).tolist() == [0]
    assert rewards(1, success=False, c_fail=10).tolist() == [-10]


@pytest.mark.parametrize("c_fail", [0, -1000, float("nan"), float("inf")])
def test_c_fail_must_be_positive(c_fail):
    with pytest.raises(RecapError, match=r"advantage\.c_fail"):
        rewards(3, success=False, c_fail=c_fail)


def test_an_episode_needs_a_step():
    with pytest.raises(RecapError, match="0 steps"):
        rewards(0, success=True, c_fail=1)


def test_returns_are_suffix_sums():
    assert returns(rewards(4, success=True, c_fail=10)).tolist() == [-3, -2, -1, 0]
    assert returns(rewards(3, success=False, c_fail=10)).tolist() == [-12, -11, -10]


@pytest.mark.parametrize("bad", [[], [0.0, float("nan")], [[0.0]]])
def test_returns_refuse_what_is_no_episode(bad):
    with pytest.raises(RecapError, match="rewards"):
        returns(bad)


def test_the_normalizer_is_the_longest_episode_of_each_task():
    assert normalizers(["b", "a", "b"], [30, 50, 80]) == {"a": 50.0, "b": 80.0}
    assert normalizers(["b", "a", "b"], [30, 50, 80], constant=1600) == {"a": 1600.0, "b": 1600.0}


@pytest.mark.parametrize("constant", [0, -5, float("nan")])
def test_the_constant_normalizer_must_be_positive(constant):
    with pytest.raises(RecapError, match=r"advantage\.normalizer"):
        normalizers(["a"], [5], constant=constant)


def test_normalizers_need_episodes():
    with pytest.raises(RecapError, match="0 tasks"):
        normalizers([], [])


def test_successes_stay_above_minus_one_and_failures_are_clipped_to_it():
    longest = normalizers(["a", "a"], [4, 3])["a"]
    assert normalize(returns(rewards(4, success=True, c_fail=4)), longest).tolist() == [-0.75, -0.5, -0.25, 0]
    failure = normalize(
        returns(rewards(3, success=False, c_fail=4)), longest
    )  # C_fail = maximum length: each frame is clipped
    assert failure.tolist() == [-1, -1, -1]
    assert Bins().encode(failure).tolist() == [0, 0, 0]
    # With C_fail below the maximum length the end of a failure lies above the lowest bin, as documented.
    assert normalize(returns(rewards(3, success=False, c_fail=2)), longest).tolist() == [-1, -0.75, -0.5]


def test_the_cost_of_an_episode_is_the_first_return():
    for success in (True, False):
        assert cost(15, success, 35) == -returns(rewards(15, success, 35))[0]
    assert cost([4, 3], [True, False], 10).tolist() == [3, 12]


def test_c_fail_floor_is_slowest_success_minus_fastest_failure():
    lengths, success = [50, 20, 15, 60], [True, True, False, False]
    assert c_fail_floor(lengths, success) == 35
    assert c_fail_floor([50, 20], [True, True]) == 0
    assert c_fail_floor([10, 50], [True, False]) == 0
    # At the floor the two returns tie: -(15 - 1) - 35 = -(50 - 1).
    assert returns(rewards(15, success=False, c_fail=35))[0] == returns(rewards(50, success=True, c_fail=35))[0]


@pytest.mark.parametrize("n", [2, 3, 11, 201, 256])
def test_a_center_is_its_own_class(n):
    bins = Bins(n)
    index = np.arange(n)
    assert (bins.encode(bins.centers[index]) == index).all()
    assert (bins.centers[bins.encode(bins.centers)] == bins.centers).all()
    assert bins.centers[0] == -1
    assert bins.centers[-1] == 0


def test_encode_takes_the_nearest_center():
    bins = Bins(201)  # 0.005 apart
    assert bins.encode([-1, -0.9976, -0.9974, -0.5, -0.0024, -0.0026, 0]).tolist() == [0, 0, 1, 100, 200, 199, 200]
    assert bins.encode([-7.0, 0.3]).tolist() == [0, 200]
    assert bins.encode(-0.5).shape == ()
    values = np.linspace(-1, 0, 100_001)
    assert np.abs(bins.centers[bins.encode(values)] - values).max() <= 0.0025 + 1e-12  # half a bin, never a whole one
    with pytest.raises(RecapError, match="NaN"):
        bins.encode([float("nan")])


def test_bins_refuse_an_impossible_support():
    with pytest.raises(RecapError, match=r"value\.bins"):
        Bins(1)
