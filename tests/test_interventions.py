"""Corrections as data: by whom they were recorded, how they are labelled, and their share of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagger_robot
import numpy as np
import pyarrow as pa
import pytest
from data_helpers import load, make_episode
from demo_keys import demo
from test_frames import edit_data, edit_info
from tiny_run import RUN, read, results, tiny

from recap.config import ablated
from recap.data.config import EpisodeFilter
from recap.data.frames import Frames, load_frames
from recap.data.interventions import COLUMNS, attempts
from recap.data.labels import read_labels, read_thresholds
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.mixture import Mixture
from recap.method.advantage import thresholds, unforced
from recap.method.config import SourceKind
from recap.pipeline.graph import run_stages
from recap.policies.value.splits import left_out
from recap.utils.errors import RecapError

FRAMES = 50  # of the data set of `copy`
MARKS = np.arange(FRAMES) % 5 == 0


def mark(root: Path, column: str, values: pa.Array, dtype: str, shape: list[int]) -> None:
    """Adds a column to a data set as its writer declares it."""
    edit_data(root, lambda table: table.append_column(column, values))
    edit_info(root, lambda info: info["features"].update({column: {"dtype": dtype, "shape": shape, "names": None}}))


def mine(root: Path, **options: Any) -> Frames:
    return load(root, "mine", SourceKind.demonstration, **options)


# ---------------------------------------------------------------------------------------------------- who wrote them
@pytest.mark.parametrize(
    ("column", "values", "dtype", "shape"),
    [
        pytest.param("intervention", pa.array(MARKS), "bool", [1], id="lerobot's DAgger"),
        pytest.param("is_intervention", pa.array(MARKS.astype(np.int64)), "int64", [1], id="HIL-SERL"),
        pytest.param(
            "complementary_info.is_intervention",
            pa.FixedSizeListArray.from_arrays(pa.array(np.where(MARKS, 0.9, 0.4).astype(np.float32)), 1),
            "float32",
            [1],
            id="Evo-RL: a float in a list",
        ),
        pytest.param("intervene_flag", pa.array(MARKS), "bool", [], id="RLinf: no dimension"),
        pytest.param("is_expert", pa.array(MARKS.astype(np.float64)), "float64", [], id="PiperX"),
        pytest.param("task_is_policy", pa.array(~MARKS), "bool", [1], id="LeHome: inverted"),
    ],
)
def test_the_columns_of_others(copy: Path, column: str, values: pa.Array, dtype: str, shape: list[int]) -> None:
    mark(copy, column, values, dtype, shape)
    found = mine(copy, interventions="auto")
    assert found.corrected.tolist() == MARKS.tolist()
    by_name = f"not {column}" if column == "task_is_policy" else column
    assert by_name in COLUMNS
    assert mine(copy, interventions=by_name).corrected.tolist() == MARKS.tolist()
    assert not mine(copy, interventions=None).corrected.any(), "what is not asked for is not read"


def test_columns_of_ones_own(copy: Path) -> None:
    mark(copy, "robot_acts", pa.array(~MARKS), "bool", [1])
    assert not mine(copy, interventions="auto").corrected.any()
    assert mine(copy, interventions="not robot_acts").corrected.tolist() == MARKS.tolist()
    with pytest.raises(RecapError, match="no column 'robot' of interventions"):
        mine(copy, interventions="not robot")
    mark(copy, "is_expert", pa.array(MARKS), "bool", [1])
    mark(copy, "intervention", pa.array(MARKS), "bool", [1])
    with pytest.raises(RecapError, match=r"finds intervention, is_expert; choose one: .*interventions=intervention'"):
        mine(copy, interventions="auto")


def test_corrections_of_which_no_outcome_is_known(copy: Path) -> None:
    """Only where each frame is one; the value function never sees them."""
    (copy / "meta/recap.json").unlink()
    edit_info(copy, lambda info: info["features"].pop("next.success"))
    mark(copy, "intervention", pa.array(np.ones(FRAMES, bool)), "bool", [1])
    found = load(copy, "theirs", SourceKind.demonstration, interventions="auto")
    assert (found.outcomes, found.success.all(), found.corrected.all()) == (False, True, True)
    assert left_out(found, demo().value, 0, 0).all()
    assert load(copy, "theirs", SourceKind.demonstration, all_succeed=True, interventions="auto").outcomes
    assert load(copy, "theirs", SourceKind.correction, interventions=None).corrected.all()
    edit_data(copy, lambda table: table.drop_columns(["intervention"]))
    edit_info(copy, lambda info: info["features"].pop("intervention"))
    mark(copy, "intervention", pa.array(MARKS), "bool", [1])
    with pytest.raises(RecapError, match="does not say which episodes succeeded"):
        load(copy, "theirs", SourceKind.demonstration, interventions="auto")


# ---------------------------------------------------------------------------------------------------- attempts, batches
LENGTHS, SUCCESS, FROM = (12, 10, 8, 6), (True, True, False, True), (7, None, 3, 0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Rollouts: corrected and won, alone, corrected and lost, demonstrated from the start."""
    folder = tmp_path_factory.mktemp("watched")
    for index, (length, success, begin) in enumerate(zip(LENGTHS, SUCCESS, FROM, strict=True)):
        episode = vars(make_episode(index, length, success=success))
        write_episode(folder / "episodes", Episode(**{**episode, "corrected_from": begin, "watched": True}))
    return load_frames(
        assemble(folder / "episodes", folder / "set", fps=10, source="rollout"), "rollouts_01", SourceKind.rollout
    )


def test_attempts_end_where_an_operator_takes_over(watched: Frames) -> None:
    parts = attempts(watched, cut=True)
    assert parts.start.tolist() == [0, 7, 12, 22, 25, 30]
    assert parts.length.tolist() == [7, 5, 10, 3, 5, 6]
    assert parts.episode.tolist() == [0, 0, 1, 2, 2, 3]
    assert parts.success.tolist() == [False, True, True, False, False, True]
    whole = attempts(watched, cut=False)
    assert (whole.length.tolist(), whole.success.tolist()) == ([*LENGTHS], [*SUCCESS])


def drawn(mixture: Mixture, batches: int = 200, size: int = 10) -> np.ndarray:
    """[(source, frame)] of that many batches."""
    picked = [mixture.pick(0, step, size) for step in range(batches)]
    return np.concatenate([np.stack([one.source, one.frame], axis=1) for one in picked])


def test_corrections_have_a_share_of_their_own(watched: Frames, data_set: Path) -> None:
    demonstrations = load(data_set, "demonstrations", SourceKind.demonstration)
    data = [demonstrations, watched]
    rows = drawn(Mixture(data, 0.3, correction_fraction=0.4))
    operated = (rows[:, 0] == 1) & watched.corrected[rows[:, 1] % len(watched)]
    assert operated.mean() == 0.4, "exact, as all shares are"
    assert (rows[:, 0] == 0).mean() == pytest.approx(0.6 * 0.3, abs=1e-3)
    alone = drawn(Mixture([demonstrations], 1.0, correction_fraction=0.4))
    assert len(alone) == 2000, "there are none"
    as_before, same = (Mixture(data, 0.3, correction_fraction=None), Mixture(data, 0.3))
    assert (drawn(as_before) == drawn(same)).all()


def test_what_failed_before_the_take_over_is_no_success(watched: Frames) -> None:
    """Imitating successes alone leaves out what made the operator step in; he himself stays in."""
    for cut, left in ((True, [*range(7, 22), *range(30, 36)]), (False, [*range(22), *range(30, 36)])):
        rows = drawn(Mixture([watched], 0.0, EpisodeFilter.success, cut=cut))
        assert sorted(set(rows[:, 1].tolist())) == left


def test_epsilon_is_of_the_frames_that_it_decides() -> None:
    """Were the forced ones among them, they would be the positive ones alone."""
    rng = np.random.default_rng(0)
    source = ["rollout"] * 700 + ["correction"] * 300
    values = np.concatenate([rng.normal(size=700), rng.normal(5, 1, 300)])
    tasks = ["a"] * 1000
    free = unforced(tasks, source, ["correction"])
    assert free.tolist() == [True] * 700 + [False] * 300
    together, apart = (thresholds(values[rows], ["a"] * rows.sum(), 0.3)["a"] for rows in (np.ones(1000, bool), free))
    assert (values[:700] > together).mean() < 0.01
    assert (values[:700] > apart).mean() == pytest.approx(0.3)
    assert unforced(["a", "b", "b"], ["rollout", "correction", "correction"], ["correction"]).all(), "b has no other"
    assert unforced(tasks, source, []).all()


# ---------------------------------------------------------------------------------------------------- runs
def identities(stages: Any) -> dict[str, Any]:
    return {stage.path: stage.identity for stages in stages for stage in stages}


def test_without_corrections_no_key_of_theirs_decides_anything() -> None:
    """Runs from before there were any go on; and what never sees one is shared with the run."""
    plainly = identities(run_stages(demo(), 1))
    assert not [path for path, identity in plainly.items() if "correction" in json.dumps(identity)]
    cfg = demo()
    cfg = type(cfg)(
        **{
            **vars(cfg),
            "ablations": {"c": {"rollout.corrections.share": 0.5, "advantage.correction_prefix": "episode"}},
        }
    )
    own = {path for path in identities(run_stages(cfg, 1)) if path.startswith("ablations/c/")}
    stages = ("rollout", "value", "value_inference", "advantage", "policy", "eval")
    assert own == {f"ablations/c/iter_01/{stage}" for stage in stages}
    changed = {stage.path: stage for stage in run_stages(ablated(cfg, "c"), 1)[0]}
    assert changed["sft"].identity == plainly["sft"]
    assert changed["iter_01/rollout"].identity["corrections"]["when"] == "watchdog"
    assert changed["iter_01/value"].identity["advantage"]["correction_prefix"] == "episode"


def test_a_run_with_corrections(finished_run: Path, work: Path) -> None:
    """Beside a finished one: an operator takes over, or demonstrates instead, with as many episodes."""
    before = results(work / RUN)
    names = "ablation=[corrections,as_many_demonstrations]"
    seen = tiny("loop", "+iterations=1", names, "+ablations.watched={rollout.corrections: {share: 1.0}}", cwd=work)
    assert seen.code == 0, seen.err
    assert before.items() <= results(work / RUN).items(), "nothing is made again"
    head, taken = work / RUN / "ablations", {}
    for name in ("corrections", "as_many_demonstrations", "watched"):
        stage = head / name / "iter_01"
        episodes = read(stage / "rollout/dataset/meta/recap.json")["episodes"]
        taken[name] = {e["episode_index"]: e["corrected_from"] for e in episodes if "corrected_from" in e}
        alone = sum(e["success"] and "corrected_from" not in e for e in episodes)
        told = (stage / "rollout/log.txt").read_text()
        assert f"{alone} of 4 rollouts succeeded without an operator" in told
        assert f"an operator took over in {len(taken[name])}" in told
    assert taken["corrections"].keys() <= taken["as_many_demonstrations"].keys(), "the same episodes"
    assert set(taken["as_many_demonstrations"].values()) == {0}
    assert taken["watched"].keys() == {0, 1, 2, 3}
    assert taken["corrections"], "or the rest says nothing"

    labels = read_labels(head / "corrections/iter_01/advantage/rollouts_01")
    forced = labels["source"] == "correction"
    assert labels["indicator"][forced].all()
    found = read_thresholds(head / "corrections/iter_01/advantage")
    assert found.forced == ["correction"]
    free = [read_labels(path.parent) for path in (head / "corrections/iter_01/advantage").glob("*/*.parquet")]
    positive = np.concatenate([one["indicator"][one["source"] != "correction"] for one in free])
    assert 0.2 < positive.mean() <= 0.3
    watched = read_labels(head / "watched/iter_01/advantage/rollouts_01")
    assert not watched["success"][watched["source"] == "rollout"].any(), "failed where he took over"
    policy = (head / "corrections/iter_01/policy/config.yaml").read_text()
    assert "correction_fraction: 0.3" in policy
    assert "correction" not in (work / RUN / "iter_01/policy/config.yaml").read_text()


def test_corrections_by_stock_lerobot(tmp_path: Path) -> None:
    """Recorded by lerobot's own DAgger tool, in windows that nobody judged: read, labelled and trained on."""
    root = dagger_robot.record(tmp_path, episodes=3)
    info = json.loads((root / "meta/info.json").read_text())
    assert info["features"]["intervention"] == {"dtype": "bool", "shape": [1], "names": None}
    assert not (root / "meta/recap.json").exists()
    assert "next.success" not in info["features"]

    source = [f"+data.sources.dagger.root={root}", "+data.sources.dagger.interventions=auto"]
    seen = tiny("loop", "+iterations=1", *source, "policy.finetune.correction_fraction=0.5", cwd=tmp_path)
    assert seen.code == 0, seen.err
    assert "data.sources.dagger: 3 corrections, and not how they ended: all their frames are positive" in seen.err
    labels = read_labels(tmp_path / RUN / "iter_01/advantage/dagger")
    assert len(labels["source"]) == info["total_frames"]
    assert set(labels["source"]) == {"correction"}
    assert labels["indicator"].all()
    assert "dagger" in (tmp_path / RUN / "iter_01/policy/log.txt").read_text()

    unread = tiny("loop", "+iterations=1", source[0], "++data.sources.dagger.all_succeed=true", "name=b", cwd=tmp_path)
    assert "its column 'intervention' of interventions is not read. Fix: ++data.sources.dagger" in unread.err
