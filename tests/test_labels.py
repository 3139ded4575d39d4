import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recap.data.labels import (
    Thresholds,
    read_labels,
    read_thresholds,
    write_labels,
    write_thresholds,
)
from recap.data.resample import Recording
from recap.method.advantage import shuffled
from recap.utils.errors import RecapError

LENGTHS = (3, 5, 2)  # frames of the episodes 0, 4, 9


def make_table():
    episode = np.repeat([0, 4, 9], LENGTHS)
    frame = np.concatenate([np.arange(n) for n in LENGTHS])
    advantage = episode * 0.01 + frame * 0.001
    return {
        "dataset": np.array(["moka"] * 10),
        "episode_index": episode,
        "frame_index": frame,
        "value": -advantage,
        "return": -0.5 - advantage,
        "advantage": advantage,
        "indicator": advantage > 0.04,
        "held_out": episode == 9,
        "source": np.array(["demonstration"] * 3 + ["rollout"] * 7),
        "success": episode != 4,
        "task": np.array(["put the moka pot on the stove"] * 10),
    }


def recorded(table, fps=10):
    """Each labelled frame as recorded, where no frame was cut out."""
    frame = np.asarray(table["frame_index"])
    return Recording(np.asarray(table["episode_index"]), (frame / fps).astype(np.float32), np.arange(len(frame)))


@pytest.fixture
def folder(tmp_path):
    write_labels(tmp_path / "moka", make_table(), recorded(make_table()))
    return tmp_path / "moka"


# ---------------------------------------------------------------------------------------------------- labels
def test_every_column_comes_back_exactly(folder):
    labels, table = read_labels(folder), make_table()
    assert labels.columns.keys() == table.keys()
    for name, column in table.items():
        assert labels[name].tolist() == column.tolist()


def test_lookup_in_any_order_with_repeats(folder):
    got = read_labels(folder).lookup([9, 0, 4, 4], [1, 2, 4, 4])
    assert got["advantage"].tolist() == [0.091, 0.002, 0.044, 0.044]
    assert got["indicator"].tolist() == [True, False, True, True]
    assert got["value"].tolist() == [-0.091, -0.002, -0.044, -0.044]
    assert got["indicator"].dtype == bool


def test_a_shuffled_table_is_looked_up_the_same(tmp_path):
    order = np.random.default_rng(0).permutation(10)
    table = {name: column[order] for name, column in make_table().items()}
    write_labels(tmp_path, table, recorded(table))
    assert read_labels(tmp_path).lookup([4, 0], [3, 1])["advantage"] == pytest.approx([0.043, 0.001])


# (0, 5) would fall on episode 1's first key, (3, 5) on episode 4's, if the frame were not checked by itself.
@pytest.mark.parametrize("key", [(0, 3), (0, 5), (3, 5), (1, 0), (10, 0), (4, 99), (4, -1), (-1, 5), (9, 2)])
def test_a_missing_key_is_an_error(folder, key):
    with pytest.raises(RecapError, match=rf"no label for 1 of 2 frames, the first is episode {key[0]}, frame {key[1]}"):
        read_labels(folder).lookup([0, key[0]], [0, key[1]])


def test_lookup_needs_pairs(folder):
    with pytest.raises(RecapError, match="equal length"):
        read_labels(folder).lookup([0, 1], [0])


def test_a_data_frame_will_do(tmp_path):
    write_labels(tmp_path, pd.DataFrame(make_table()), recorded(make_table()))
    assert read_labels(tmp_path)["advantage"].tolist() == make_table()["advantage"].tolist()


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    write_labels(tmp_path / "seed=0", make_table(), recorded(make_table()))
    assert read_labels(tmp_path / "seed=0").columns.keys() == make_table().keys()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("value", np.nan, "NaN.*'value'.*episode 0, frame 1"),
        ("return", np.inf, "infinite.*'return'"),
        ("advantage", np.nan, "NaN.*'advantage'"),
        ("frame_index", 0, "1 frames twice, the first is episode 0, frame 0"),
        ("frame_index", -1, "negative"),
        ("dataset", "libe", "mix the data sets 'libe', 'moka'"),
    ],
)
def test_bad_labels_are_not_written_and_the_old_ones_stay(folder, column, value, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    table = make_table()
    table[column][1] = value
    with pytest.raises(RecapError, match=message):
        write_labels(folder, table, recorded(table))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_missing_columns_wrong_lengths_no_frames_and_doubled_timestamps(tmp_path):
    table = make_table()
    with pytest.raises(RecapError, match="lack the column 'indicator'"):
        write_labels(tmp_path, {k: v for k, v in table.items() if k != "indicator"}, recorded(table))
    with pytest.raises(RecapError, match="do not fit"):
        write_labels(tmp_path, {**table, "value": table["value"][:4]}, recorded(table))
    with pytest.raises(RecapError, match="no frame"):
        write_labels(tmp_path, {k: v[:0] for k, v in table.items()}, recorded(table))
    with pytest.raises(RecapError, match="7 timestamps are there twice"):
        write_labels(tmp_path, table, recorded(table, np.inf))
    assert not list(tmp_path.iterdir())


def test_no_labels_yet(tmp_path):
    with pytest.raises(RecapError, match=r"advantages\.parquet does not exist\. Run advantage\.py"):
        read_labels(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_names_itself_and_the_fix(folder, keep):
    path = folder / "advantages.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(RecapError, match=r"moka/advantages\.parquet.*delete it and run advantage\.py again"):
        read_labels(folder)


def test_a_flipped_byte_never_changes_a_label(folder):
    path = folder / "advantages.parquet"
    data = path.read_bytes()
    caught = 0
    for position in range(4, len(data) // 2, 7):  # the pages; the footer follows
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            labels = read_labels(folder)
        except RecapError:
            caught += 1
        else:
            assert all(labels[name].tolist() == column.tolist() for name, column in make_table().items())
    assert caught > 50


def test_nan_or_a_missing_column_on_disk_is_found_on_reading(folder):
    path = folder / "advantages.parquet"
    good = pq.read_table(path)
    values = good["value"].to_numpy().copy()
    values[4] = np.nan
    pq.write_table(good.set_column(3, "value", pa.array(values)), path)
    with pytest.raises(RecapError, match=r"NaN.*'value'.*episode 4, frame 1; delete it and run advantage\.py again"):
        read_labels(folder)
    pq.write_table(good.set_column(3, "value", pa.array([None] + [0.0] * 9)), path)
    with pytest.raises(RecapError, match="1 empty entries in the column 'value'"):
        read_labels(folder)
    pq.write_table(good.drop_columns(["indicator"]), path)
    with pytest.raises(RecapError, match="have the columns"):
        read_labels(folder)


def test_a_disk_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecapError, match=r"cannot write .*file"):
        write_labels(tmp_path / "file", make_table(), recorded(make_table()))
    (tmp_path / "moka" / "advantages.parquet").mkdir(parents=True)  # the rename fails after the bytes are written
    with pytest.raises(RecapError, match="cannot write"):
        write_labels(tmp_path / "moka", make_table(), recorded(make_table()))
    assert not list((tmp_path / "moka").glob(".*"))  # no temporary file stays


# ---------------------------------------------------------------------------------------------------- OpenTau's file
def test_opentaus_reader_finds_each_frame_by_lerobots_timestamp(tmp_path):
    table = make_table()
    for fps in (10, 20, 30):
        write_labels(tmp_path, table, recorded(table, fps))
        stored = json.loads((tmp_path / "advantages.json").read_text())
        # as OpenTau's load_advantages parses it
        read = {(int(k.split(",")[0]), float(k.split(",")[1])): float(v) for k, v in stored.items()}
        assert len(read) == 10
        for episode, frame, advantage in zip(
            table["episode_index"].tolist(), table["frame_index"].tolist(), table["advantage"].tolist(), strict=True
        ):
            timestamp = np.array([frame / fps], np.float32)[0].item()  # what LeRobot's float32 column gives back
            assert read[(episode, timestamp)] == pytest.approx(advantage, rel=1e-8)


def test_opentaus_file_literally(folder):
    stored = json.loads((folder / "advantages.json").read_text())
    assert stored["4,0.10000000149011612"] == "0.041"
    assert stored["0,0.0"] == "0"


def test_opentaus_file_has_the_timestamps_of_the_data_set(tmp_path):
    """Also where frames were cut out, and where a recorded frame has no label of its own."""
    times = np.array([0.4, 0.5, 1.5, 1.6], np.float32)
    write_labels(tmp_path, make_table(), Recording(np.full(4, 4), times, np.array([3, 3, 5, 7])))
    stored = json.loads((tmp_path / "advantages.json").read_text())
    assert stored == {f"4,{t.item()}": a for t, a in zip(times, ("0.04", "0.04", "0.042", "0.044"), strict=True)}


# ---------------------------------------------------------------------------------------------------- thresholds
THRESHOLDS = Thresholds(
    epsilon={"put the moka pot on the stove": 0.1 + 0.2, "b": -0.01},
    wanted_positive=0.3,
    achieved_positive={"all": 0.3, "demonstration": 0.35, "success": None, "failure": 0.13},
    achieved_positive_per_task={"b": {"all": 0.25, "demonstration": None, "success": None, "failure": None}},
    n_step=5,
    normalizer={"put the moka pot on the stove": 50.0, "b": 80.0},
    c_fail=50.0,
    percentiles={0: -1.0, 50: 0.0, 100: 1.0},
)


def test_thresholds_come_back_exactly(tmp_path):
    whole = dataclasses.replace(THRESHOLDS, n_step=None)
    for wanted in (THRESHOLDS, whole):
        write_thresholds(tmp_path, wanted)
        assert read_thresholds(tmp_path) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["thresholds.json"]


def test_a_task_without_a_threshold_is_an_error():
    assert THRESHOLDS.epsilon_of("b") == -0.01
    with pytest.raises(RecapError, match="no threshold ε for task 'c'"):
        THRESHOLDS.epsilon_of("c")


def test_missing_thresholds_say_what_to_run(tmp_path):
    with pytest.raises(RecapError, match=r"thresholds\.json does not exist\. Run advantage\.py first"):
        read_thresholds(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "{}", '{"epsilon": {"a": 0.1}}'])
def test_corrupt_thresholds_name_the_file_and_the_fix(tmp_path, text):
    (tmp_path / "thresholds.json").write_text(text)
    with pytest.raises(RecapError, match=r"thresholds\.json.*delete it and run advantage\.py again"):
        read_thresholds(tmp_path)


@pytest.mark.parametrize("epsilon", [{}, {"a": float("nan")}, {"a": None}, [1]])
def test_thresholds_without_a_number_are_refused_on_reading(tmp_path, epsilon):
    write_thresholds(tmp_path, THRESHOLDS)
    data = json.loads((tmp_path / "thresholds.json").read_text())
    (tmp_path / "thresholds.json").write_text(json.dumps({**data, "epsilon": epsilon}))
    with pytest.raises(RecapError, match=r"thresholds\.json"):
        read_thresholds(tmp_path)


def test_nan_thresholds_are_not_written(tmp_path):
    with pytest.raises(RecapError, match="NaN"):
        write_thresholds(tmp_path, dataclasses.replace(THRESHOLDS, epsilon={"a": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_shuffled_labels_keep_each_data_sets_share() -> None:
    indicator = np.array([True] * 30 + [False] * 70 + [True] * 5 + [False] * 95)
    dataset = ["demonstrations"] * 100 + ["rollouts_01"] * 100
    found = [shuffled(indicator, dataset, seed) for seed in (0, 0, 1)]
    assert [(one[:100].sum(), one[100:].sum()) for one in found] == [(30, 5)] * 3
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
    assert (found[0] != indicator).any()
