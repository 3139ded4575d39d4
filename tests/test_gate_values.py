"""Value functions that are really trained: each broken one is stopped, a healthy one passes whatever the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from value_helpers import configured, experience, judged

from recap.stages import train
from recap.stages.inputs import normalized_returns
from recap.utils.errors import RecapError

pytestmark = pytest.mark.slow

Returns = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return experience(tmp_path_factory.mktemp("experience"))


def shuffled(*args: Any) -> np.ndarray:
    return np.random.default_rng(0).permutation(normalized_returns(*args))


def upside_down(*args: Any) -> np.ndarray:
    return -1 - normalized_returns(*args)


@pytest.mark.parametrize(
    ("returns", "overrides", "named"),
    [
        pytest.param(normalized_returns, ["value.finetune.learning_rate=1e-9"], "spread", id="constant"),
        pytest.param(shuffled, [], "spread", id="shuffled labels"),
        pytest.param(upside_down, [], "rank", id="wrong sign"),
        pytest.param(
            normalized_returns, ["value.held_out=0.85", "value.finetune.random_shift=0"], "over_fit", id="over-fitted"
        ),
    ],
)
def test_a_broken_value_function_is_stopped(
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    returns: Returns,
    overrides: list[str],
    named: str,
) -> None:
    """It learns from other targets than the labels have, never learns, or sees a few episodes until it knows them."""
    monkeypatch.setattr(train, "normalized_returns", returns)
    with pytest.raises(RecapError, match="not good enough to train a policy on") as stopped:
        judged(tmp_path, data, configured(*overrides))
    assert f"\n  {named}: " in str(stopped.value), str(stopped.value)
    assert (tmp_path / "gate/gate.png").is_file()


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_value_function_passes(tmp_path: Path, seed: int) -> None:
    found = judged(tmp_path, experience(tmp_path, seed), configured(f"seed={seed}"))
    numbers = {check["name"]: check["value"] for check in found["checks"]}
    print(f"seed {seed}:", numbers)
    assert found["passed"], found
    assert None not in numbers.values(), "there was enough to tell"
