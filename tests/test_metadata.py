"""Types and ranges of what a data set says of itself: one error, and nothing is read outside of its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, edit, make_episode, small_set, take

from recap.data.lerobot_writer import assemble, write_episode
from recap.utils.errors import RecapError

CAMERA = CAMERAS[0]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def copy(ours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ours, tmp_path / "copy"))


def number(root: Path, key: str, value: Any) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    *path, last = key.split("/")
    at = info
    for name in path:
        at = at[name]
    at[last] = value
    (root / "meta/info.json").write_text(json.dumps(info))


OUTSIDE = "{video_key}/{chunk_index}/{file_index}.mp4"
INFO: list[tuple[str, Any, str]] = [
    *[("fps", value, "fps=") for value in (0, "ten", -1, float("nan"), True, None, [10], 10**400)],
    *[("total_frames", value, "total_frames=") for value in ("50", 1.5, -1, None, 10**400)],
    ("total_episodes", {}, "total_episodes="),
    *[("video_path", value, "video_path=") for value in ("/" + OUTSIDE, "../" + OUTSIDE, "v/../../" + OUTSIDE)],
    *[
        ("video_path", "v/" + value, "video_path=")
        for value in ("{x}" + OUTSIDE, "{video_key}", "{0}", "{", "\0" + OUTSIDE)
    ],
    ("video_path", OUTSIDE.replace("video_key", "video_key.__class__"), "video_path="),
    ("video_path", OUTSIDE.replace("_index}", "_index:999999999d}"), "video_path="),
    ("video_path", 3, "video_path=3 should be a valid string"),
    ("data_path", "/data/{chunk_index}/{file_index}", "data_path="),
    ("data_path", None, "data_path=None"),
    *[
        ("features", value, "features=")
        for value in ([], "x", None, {"../x": {"dtype": "float32"}}, {"a/b": {"dtype": "float32"}})
    ],
    ("features/action", [], "features.action="),
    ("features/action/dtype", "flaot", "features.action.dtype='flaot' should be image, video, string"),
    ("features/action/shape", [8], "action of dimension 7 in data/ has shape"),
    ("features/action/shape", "seven", "features.action.shape='seven' should be a valid list"),
    (f"features/{CAMERA}/dtype", "imgae", f"features.{CAMERA}.dtype='imgae'"),
    (f"features/{CAMERA}/dtype", 3, f"features.{CAMERA}.dtype=3"),
    (f"features/{CAMERA}/shape", [4, 4], f"{CAMERA} (its shape is [4, 4]): not read"),
    *[(f"features/{CAMERA}/shape", value, f"{CAMERA}.shape") for value in ([0, 4, 3], [-4, 4, 3], ["4", 4, 3], None)],
]


@pytest.mark.parametrize(("key", "value", "says"), INFO, ids=[f"{key}-{i}" for i, (key, *_) in enumerate(INFO)])
def test_info_of_the_wrong_type_or_range(copy: Path, key: str, value: Any, says: str) -> None:
    number(copy, key, value)
    with pytest.raises(RecapError) as error:
        take(copy)
    assert says in str(error.value)
    assert len(str(error.value)) < 600


def test_a_video_is_not_looked_for_outside(tmp_path: Path) -> None:
    """Not even where the path is one that exists."""
    write_episode(tmp_path / "episodes", make_episode(0, 3), video_fps=10)
    root = assemble(tmp_path / "episodes", tmp_path / "set", fps=10, source="rollout")
    take(root).check_videos()
    (tmp_path / CAMERA / "000").mkdir(parents=True)
    shutil.copy(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", tmp_path / CAMERA / "000/000.mp4")
    for path in (str(tmp_path), ".."):
        number(root, "video_path", path + "/{video_key}/{chunk_index:03d}/{file_index:03d}.mp4")
        with pytest.raises(RecapError, match=r"video_path=.* should be a path in the data set with \{video_key\}"):
            take(root)


def test_what_lerobot_fills_in_is_filled_in(copy: Path) -> None:
    info = json.loads((copy / "meta/info.json").read_text())
    del info["video_path"], info["data_path"]
    (copy / "meta/info.json").write_text(json.dumps(info | {"more": 1}))
    (copy / "meta/stats.json").write_text("not read: statistics are those of the frames")
    assert len(take(copy)) == 27


COLUMNS = {
    "text": ("data", "timestamp", pa.array(["a"] * 27), "timestamp holds string, no numbers"),
    "halves": ("data", "task_index", pa.array([0.5] * 27), r"task_index is 0\.5 in some frames, no whole number"),
    "gaps": ("data", "index", pa.array([None, *range(26)]), "index has missing numbers"),
    "ragged": ("data", "action", pa.array([[0.0] * 6, [0.0] * 8] + [[0.0] * 7] * 25), "action has missing numbers"),
    "tables": ("data", "action", pa.array([[[0.0]] * 7] * 27), "action holds list<.*no numbers"),
    "lengths": ("meta/episodes", "length", pa.array(["12", "5", "9", "1"]), "length holds string, no numbers"),
    "numbers": ("meta/episodes", "episode_index", pa.array([0, 1, None, 3]), "episode_index has missing numbers"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_the_wrong_type(copy: Path, case: str) -> None:
    folder, key, values, says = COLUMNS[case]
    edit(copy, folder, lambda table: table.set_column(table.column_names.index(key), key, values))
    with pytest.raises(RecapError, match=says):
        take(copy)


@pytest.mark.parametrize("texts", [[3, 4], ["push the button", None]])
def test_instructions_that_are_no_text(copy: Path, texts: list) -> None:
    pq.write_table(pa.table({"task_index": [0, 1], "task": texts}), copy / "meta/tasks.parquet")
    with pytest.raises(RecapError, match=r"task_index [01] in meta/tasks\.parquet is (3|None); give"):
        take(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"success": "yes"}, r"episodes\.0\.success='yes' should be a valid boolean"),
        ({"seed": 2**70}, r"episodes\.0\.seed="),
        ({"initial_state": None}, r"episodes\.0\.initial_state=None"),
        (None, "episodes=7 should be a valid list"),
    ],
)
def test_notes_of_the_wrong_type(copy: Path, change: dict | None, says: str) -> None:
    path = copy / "meta/recap.json"
    notes = json.loads(path.read_text())
    notes["episodes"] = 7 if change is None else [notes["episodes"][0] | change, *notes["episodes"][1:]]
    path.write_text(json.dumps(notes))
    with pytest.raises(RecapError, match=rf"meta/recap\.json: {says}"):
        take(copy)
