"""Reading data sets into arrays: what was recorded comes back, and what is broken is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, EPISODES, TASKS

from recap.data.config import SourceConfig
from recap.data.frames import UNKNOWN, load_frames
from recap.data.images import encode_png
from recap.method.config import SourceKind
from recap.utils.errors import RecapError


def test_frames_hold_what_was_recorded(data_set: Path) -> None:
    frames = load_frames(data_set, "rollouts", SourceKind.rollout)
    assert (len(frames), frames.fps, frames.cameras, frames.tasks) == (50, 10, CAMERAS, list(TASKS))
    assert frames.start.tolist() == [0, 12, 13, 43]
    assert frames.length.tolist() == [12, 1, 30, 7]
    assert frames.success.tolist() == [True, False, True, False]
    assert frames.task.tolist() == [0, 1, 0, 1]
    assert frames.initial_state.tolist() == [100, 101, 102, 103]
    assert frames.seed.tolist() == [2**40 + i for i in range(4)]
    assert frames.frame_index[12:15].tolist() == [0, 0, 1]
    for array, name in ((frames.state, "state"), (frames.action, "action")):
        assert np.array_equal(array, np.concatenate([getattr(episode, name) for episode in EPISODES]))
    for key in CAMERAS:
        assert np.array_equal(frames.images(key), np.concatenate([episode.images[key] for episode in EPISODES]))
    stats = frames.stats()
    assert stats["action"]["mean"] == pytest.approx(frames.action.mean(0), abs=1e-6)
    assert stats["observation.state"]["std"] == pytest.approx(frames.state.std(0), abs=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        frames.action[0] = 0


def test_loading_again_is_free_until_the_data_set_changes(copy: Path) -> None:
    first = load_frames(copy, "a", SourceKind.rollout)
    assert load_frames(copy, "a", SourceKind.rollout) is first
    assert first.images(CAMERAS[0]) is first.images(CAMERAS[0])
    assert load_frames(copy, "a", SourceKind.rollout, SourceConfig(cameras=[*CAMERAS[:1]])).cameras == CAMERAS[:1]
    os.utime(copy / "meta/info.json", ns=(1, 1))
    assert load_frames(copy, "a", SourceKind.rollout) is not first


def test_chunks_end_with_their_episode(data_set: Path) -> None:
    frames = load_frames(data_set, "rollouts", SourceKind.rollout)
    rows, is_pad = frames.chunk_indices(np.array([[0, 10], [12, 42]]), 3)
    assert rows.tolist() == [[[0, 1, 2], [10, 11, 11]], [[12, 12, 12], [42, 42, 42]]]
    assert is_pad.tolist() == [[[False] * 3, [False, False, True]], [[False, True, True]] * 2]
    assert frames.chunk_indices(43, 7)[0].tolist() == list(range(43, 50))


def test_a_third_party_data_set(copy: Path) -> None:
    (copy / "meta/recap.json").unlink()
    frames = load_frames(copy, "theirs", SourceKind.demonstration)
    assert frames.success.tolist() == [True, False, True, False]  # from next.success
    assert frames.seed.tolist() == [UNKNOWN] * 4
    assert load_frames(copy, "theirs", SourceKind.demonstration, SourceConfig(all_succeed=True)).success.all()
    edit_info(copy, lambda info: info["features"].pop("next.success"))
    with pytest.raises(RecapError, match=r"does not say which episodes succeeded.*all_succeed=true"):
        load_frames(copy, "theirs", SourceKind.demonstration)


def test_interventions_are_corrections(copy: Path) -> None:
    edit_data(copy, lambda table: table.append_column("is_intervention", pa.array(np.arange(len(table)) % 5 == 0)))
    edit_info(copy, lambda info: info["features"].update({"is_intervention": {"dtype": "bool", "shape": [1]}}))
    frames = load_frames(copy, "theirs", SourceKind.rollout, SourceConfig(interventions="is_intervention"))
    assert frames.corrected.tolist() == [k % 5 == 0 for k in range(len(frames))]
    assert frames.source_of_frame()[:6].tolist() == ["correction", *["rollout"] * 4, "correction"]
    assert set(load_frames(copy, "theirs", SourceKind.rollout).source_of_frame()) == {"rollout"}
    with pytest.raises(RecapError, match="no column 'human' of interventions"):
        load_frames(copy, "theirs", SourceKind.rollout, SourceConfig(interventions="human"))


def edit_info(root: Path, change) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    change(info)
    (root / "meta/info.json").write_text(json.dumps(info))


def edit_data(root: Path, change, path: str = "data/chunk-000/file-000.parquet") -> None:
    pq.write_table(change(pq.read_table(root / path)), root / path)


def set_nan(table: pa.Table) -> pa.Table:
    values = table["observation.state"].to_pylist()
    values[15][3] = float("nan")
    return table.set_column(
        table.column_names.index("observation.state"), "observation.state", pa.array(values, pa.list_(pa.float32(), 8))
    )


def set_image(data: bytes | None):
    def change(table: pa.Table) -> pa.Table:
        rows = table[CAMERAS[0]].to_pylist()
        rows[20]["bytes"] = data
        return table.set_column(0, CAMERAS[0], pa.array(rows, table.schema.field(0).type))

    return change


def truncate(path: Path, keep: float = 0.7) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DATA, EPISODES_META = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
BROKEN = {
    "missing folder": (shutil.rmtree, "there is no such folder"),
    "not a data set": (
        lambda root: shutil.rmtree(root / "meta"),
        r"no meta/info.json, the folder holds \['README.md', 'data'\]",
    ),
    "v2.1": (
        lambda root: edit_info(root, lambda i: i.update(codebase_version="v2.1")),
        "lerobot.scripts.convert_dataset_v21_to_v30",
    ),
    "v4": (lambda root: edit_info(root, lambda i: i.update(codebase_version="v4.0")), "only LeRobotDataset v3"),
    "info truncated": (lambda root: truncate(root / "meta/info.json"), "meta/info.json is damaged or truncated"),
    "info not an object": (lambda root: (root / "meta/info.json").write_text("[]"), "no JSON object"),
    "info lacks a key": (lambda root: edit_info(root, lambda i: i.pop("fps")), r"no \['fps'\]"),
    "data truncated": (lambda root: truncate(root / DATA), "file-000.parquet is damaged or truncated"),
    "data gone": (lambda root: (root / DATA).unlink(), "holds no frames"),
    "episodes truncated": (lambda root: truncate(root / EPISODES_META), "meta/episodes.*damaged"),
    "tasks truncated": (lambda root: truncate(root / "meta/tasks.parquet"), "meta/tasks.parquet is damaged"),
    "tasks gone": (lambda root: (root / "meta/tasks.parquet").unlink(), "meta/tasks.parquet is damaged"),
    "recap truncated": (lambda root: truncate(root / "meta/recap.json"), "meta/recap.json is damaged"),
    "NaN": (lambda root: edit_data(root, set_nan), "observation.state is not finite in episode 2, frame 2"),
    "frames missing": (
        lambda root: edit_data(root, lambda t: t.slice(0, 45)),
        "episode 3 has 2 frames, but meta/episodes says 7",
    ),
    "frame missing": (
        lambda root: edit_data(root, lambda t: pa.concat_tables([t.slice(0, 20), t.slice(21)])),
        "frames of episode 2 are missing or doubled around frame 8",
    ),
    "episode missing": (lambda root: edit_data(root, lambda t: t.slice(12)), "not 0, 1, 2"),
    "episode count": (lambda root: edit_info(root, lambda i: i.update(total_episodes=5)), "data/ has 4.*info.json 5"),
    "frame count": (
        lambda root: edit_info(root, lambda i: i.update(total_frames=51)),
        "50 frames, but info.json says 51",
    ),
    "empty": (lambda root: edit_data(root, lambda t: t.slice(0, 0)), "holds no frames"),
    "no action": (lambda root: edit_info(root, lambda i: i["features"].pop("action")), r"it has no \['action'\]"),
    "column gone": (lambda root: edit_data(root, lambda t: t.drop_columns("action")), r"has no column \['action'\]"),
    "video": (
        lambda root: edit_info(root, lambda i: [i.pop("video_path"), i["features"][CAMERAS[0]].update(dtype="video")]),
        "has no column",
    ),
    "task unknown": (
        lambda root: edit_data(root, lambda t: t.slice(0, 1), "meta/tasks.parquet"),
        "task_index 1 is none of 1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_sets_are_refused_by_name(copy: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(copy)
    with pytest.raises(RecapError, match=message) as error:
        load_frames(copy, "mine", SourceKind.rollout)
    assert "data set 'mine'" in str(error.value)
    assert str(copy) in str(error.value)


def test_damaged_images_and_wrong_requests_are_refused(copy: Path, data_set: Path) -> None:
    frames = load_frames(data_set, "mine", SourceKind.rollout)
    with pytest.raises(RecapError, match=r"no camera 'wrist'; it has \['observation.images.image'"):
        frames.images("wrist")
    with pytest.raises(RecapError, match=r"no camera \['wrist'\]"):
        load_frames(data_set, "mine", SourceKind.rollout, SourceConfig(cameras=["wrist"]))
    with pytest.raises(RecapError, match="all_succeed=true, but 2 of its 4 episodes"):
        load_frames(data_set, "mine", SourceKind.rollout, SourceConfig(all_succeed=True))
    small = encode_png(np.zeros((1, 3, 3, 3), np.uint8))[0]
    for data, message in (
        (b"no image", "image 20 cannot be decoded"),
        (None, "not stored"),
        (small, r"is \(3, 3, 3\)"),
    ):
        edit_data(copy, set_image(data))
        os.utime(copy / "meta/info.json")
        with pytest.raises(RecapError, match=message):
            load_frames(copy, "mine", SourceKind.rollout).images(CAMERAS[0])
    again = Path(shutil.copytree(data_set, copy.parent / "flipped"))
    flip_byte(again / DATA)
    frames = load_frames(again, "mine", SourceKind.rollout)
    with pytest.raises(RecapError, match="damaged"):
        _ = [frames.images(key) for key in CAMERAS]
