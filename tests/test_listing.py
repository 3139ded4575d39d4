"""A data set's own words: where a picture is and what its task is, as stock lerobot reads them, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, TASKS, make_episode

from recap.config import SourceKind
from recap.data.frames import Frames, Taken, load_frames
from recap.data.recorder import Episode, assemble, write_episode
from recap.errors import RecapError

LENGTHS = (12, 5, 9, 1)
VIDEO = CAMERAS[0]
KEY = "data.sources.mine"
Table = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By lerobot's own writer: videos of two episodes each, data of one, so that both roll over to further files."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("theirs") / "set"
    features: dict[str, Any] = {
        VIDEO: {"dtype": "video", "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
    }
    for key, size in (("observation.state", 8), ("action", 7)):
        features[key] = {"dtype": "float32", "shape": (size,), "names": None}
    stock = LeRobotDataset.create("recap/test", 10, features, root=root, use_videos=True)
    stock.meta.info.video_files_size_in_mb, stock.meta.info.data_files_size_in_mb = 0.012, 0.0001  # type: ignore[assignment]
    for e, length in enumerate(LENGTHS):
        for t in range(length):
            image = np.full((32, 32, 3), 20 + 9 * t, np.uint8)
            image[:16, :16] = (20 + 50 * e, 200, 100)
            numbers = {"observation.state": np.full(8, e, np.float32), "action": np.full(7, t, np.float32)}
            stock.add_frame({VIDEO: image, **numbers, "task": TASKS[e % 2]})
        stock.save_episode()
    stock.finalize()
    return root


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    for e, length in enumerate(LENGTHS):
        episode = make_episode(e, length)
        small = {key: images[:, ::6, ::6].copy() for key, images in episode.images.items()}
        write_episode(folder / "episodes", Episode(**{**vars(episode), "images": small}))
    return assemble(folder / "episodes", folder / "set", fps=10, source="rollout")


@pytest.fixture
def copy(theirs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "copy"))


def take(root: Path, **options: Any) -> Frames:
    kind = SourceKind.demonstration
    return load_frames(root, "mine", kind, taken=Taken(**{"all_succeed": True, "key": KEY, **options}))


def edit(root: Path, folder: str, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in sorted((root / folder).glob("*/*.parquet")):
        table = change(pq.read_table(path, partitioning=None))
        pq.write_table(table, path) if len(table) else path.unlink()


def put(key: str, change: Callable[[Table], Any], columns: tuple[str, ...] = ("episode_index",)) -> Callable:
    """New values of a column, from old ones of it and of `columns`."""

    def changed(table: pa.Table) -> pa.Table:
        old = {name: np.array(table[name].to_pylist()) for name in {*columns, key}}
        return table.set_column(table.column_names.index(key), key, pa.array(change(old), table.schema.field(key).type))

    return changed


def same_as_lerobot(frames: Frames, root: Path, episodes: list[int] | None = None) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stock = LeRobotDataset("recap/test", root=root, episodes=episodes, video_backend="pyav", return_uint8=True)
    assert len(stock) == len(frames)
    pixels = frames.pixels(VIDEO, np.arange(len(frames)))
    for i, item in enumerate(stock[i] for i in range(len(stock))):
        assert np.array_equal(item[VIDEO].numpy().transpose(1, 2, 0), pixels[i]), i
        assert np.array_equal(item["action"].numpy(), frames.action[i])
        assert item["timestamp"].item() == frames.recording.timestamp[i]
        assert item["episode_index"].item() == frames.recording.episode_index[i] == frames.episode_index[i]
        assert item["task"] == frames.tasks[frames.task_index[i]] == frames.tasks[frames.task[frames.episode[i]]]


# ---------------------------------------------------------------------------------------------------- as lerobot reads
def test_files_that_roll_over(theirs: Path) -> None:
    assert len(list(theirs.glob("videos/*/*/*.mp4"))) in (2, 3)
    assert len(list(theirs.glob("data/*/*.parquet"))) > 1
    frames = take(theirs)
    frames.check_videos()
    same_as_lerobot(frames, theirs)


def cut(root: Path) -> None:
    """Frames 0-3 of episode 0 and 4-6 of episode 2 are taken out, the videos left as they are."""

    def without(table: pa.Table) -> pa.Table:
        e, t = (np.array(table[name]) for name in ("episode_index", "frame_index"))
        return table.filter(pa.array(~(((e == 0) & (t < 4)) | ((e == 2) & (t >= 4) & (t < 7)))))

    length = np.array([8, 5, 6, 1])
    first = np.cumsum(length) - length
    edit(root, "data", without)
    edit(
        root,
        "data",
        put("frame_index", lambda c: [np.sum(c["episode_index"][:i] == e) for i, e in enumerate(c["episode_index"])]),
    )
    edit(
        root,
        "data",
        put("index", lambda c: first[c["episode_index"]] + c["frame_index"], ("episode_index", "frame_index")),
    )
    for key, values in (("length", length), ("dataset_from_index", first), ("dataset_to_index", first + length)):
        edit(root, "meta/episodes", put(key, lambda c, values=values: values[c["episode_index"]]))
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"total_frames": int(length.sum())}))


def test_frames_that_were_cut_out(copy: Path) -> None:
    cut(copy)
    frames = take(copy)
    assert frames.action[:, 0].tolist() == [*range(4, 12), *range(5), 0, 1, 2, 3, 7, 8, 0]
    frames.check_videos()
    same_as_lerobot(frames, copy)
    half = take(copy, pace=5)
    assert half.action[:4, 0].tolist() == [4, 6, 8, 10], "time is counted in frames"
    assert half.action[half.start[2] :, 0].tolist() == [0, 2, 7, 0], "not in the seconds of what was cut out"
    assert np.array_equal(half.recording.timestamp, frames.recording.timestamp), "every recorded frame has its key"
    assert half.recording.frame[:8].tolist() == [0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("spread", [False, True])
def test_episodes_listed_in_another_order(theirs: Path, copy: Path, *, spread: bool) -> None:
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path).take(pa.array([2, 0, 3, 1]))
    pq.write_table(table.slice(0, 1 if spread else 4), path)
    if spread:
        pq.write_table(table.slice(1), path.with_name("file-001.parquet"))
    right, found = take(theirs), take(copy)
    assert np.array_equal(found.pixels(VIDEO, np.arange(27)), right.pixels(VIDEO, np.arange(27)))
    assert (found.task.tolist(), found.length.tolist()) == ([0, 1, 0, 1], list(LENGTHS))


def test_a_part_that_was_downloaded(copy: Path) -> None:
    """Of three episodes the data, of two the video."""
    edit(copy, "data", lambda table: table.filter(pa.array(np.array(table["episode_index"]) != 1)))
    with pytest.raises(RecapError) as error:
        take(copy)
    assert "no frame of episode 1 (data/chunk-000/file-" in str(error.value)
    assert f"{KEY}.episodes=[0,2,3]" in str(error.value)
    frames = take(copy, episodes=(0, 2, 3))
    same_as_lerobot(frames, copy, [0, 2, 3])
    last = max(copy.glob("videos/*/*/*.mp4"))
    last.unlink()
    with pytest.raises(RecapError, match=rf"{last.name} is missing, the video of episode ") as error:
        take(copy, episodes=(0, 2, 3))
    advice = str(error.value).partition(f"{KEY}.episodes=")[2]
    same = take(copy, episodes=tuple(json.loads(advice)))
    assert np.array_equal(same.pixels(VIDEO, np.arange(12)), frames.pixels(VIDEO, np.arange(12)))


# ---------------------------------------------------------------------------------------------------- contradictions
def in_episode(number: int, new: Callable[[np.ndarray], Any]) -> Callable[[Table], Any]:
    """Values of one episode changed."""

    def change(columns: Table) -> list:
        key = next(name for name in columns if name != "episode_index")
        values, here = columns[key].copy(), columns["episode_index"] == number
        values[here] = new(values[here])
        return values.tolist()

    return change


FRAMES = {
    "backwards": ("timestamp", 2, lambda t: t[::-1], "episode 2: timestamp=0.7 in frame 1, after 0.8"),
    "standing still": ("timestamp", 2, lambda t: 0 * t, "episode 2: timestamp=0 in frame 1, after 0"),
    "no number": ("timestamp", 2, lambda t: t * np.nan, "episode 2: timestamp=nan in frame 0"),
    "index": ("index", 2, lambda i: i + 5, "episode 2: index=22 in frame 0, but dataset_from_index=17"),
    "frame index": ("frame_index", 2, lambda i: i + 1, "frames of episode 2 are missing or doubled around frame 1"),
    "task": (
        "task_index",
        2,
        lambda i: [0] * 4 + [1] * 5,
        "changes within episode 2, from 'put the moka pot on the stove' to",
    ),
    "task of the episode": ("task_index", 2, lambda i: i + 1, r"task of episode 2 is 'push the button' in its frames"),
}
EPISODES = {
    "length": ("length", lambda n: n + 1, "episode 2 has 9 frames, but meta/episodes says 10"),
    "from": ("dataset_from_index", lambda n: n - 3, "itself in episode 2: length=9, dataset_from_index=14"),
    "to": ("dataset_to_index", lambda n: 0 * n, "dataset_from_index=17 and dataset_to_index=0"),
    "too short": (
        f"videos/{VIDEO}/to_timestamp",
        lambda t: t - 0.2,
        "episode 2: its timestamps are from 0 to 0.8, but",
    ),
    "beyond": (f"videos/{VIDEO}/to_timestamp", lambda t: t * np.nan, "episode 2: its timestamps"),
    "negative": (f"videos/{VIDEO}/from_timestamp", lambda t: t - 99, "from_timestamp=-"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_that_contradict_are_refused_by_episode(ours: Path, tmp_path: Path, case: str) -> None:
    key, number, new, says = FRAMES[case]
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    edit(root, "data", put(key, in_episode(number, new)))
    refused(root, says)


@pytest.mark.parametrize("case", EPISODES)
def test_episodes_that_contradict_are_refused(copy: Path, case: str) -> None:
    key, new, says = EPISODES[case]
    edit(copy, "meta/episodes", put(key, in_episode(2, new)))
    refused(copy, says)


def refused(root: Path, says: str) -> None:
    """And read, as soon as the episode is left out as the message says."""
    with pytest.raises(RecapError, match=says) as error:
        take(root)
    assert f"{KEY}.episodes=[0,1,3]" in str(error.value)
    assert take(root, episodes=(0, 1, 3)).length.tolist() == [12, 5, 1]


@pytest.mark.parametrize(
    ("numbers", "says"),
    [([0, 1, 1, 3], "has episode 1 twice"), ([0, 1, 3, 4], "it lacks 2"), ([0, 1, 2], "data/ has 4, meta/episodes 3")],
)
def test_episodes_that_are_not_there_once_each(ours: Path, tmp_path: Path, numbers: list[int], says: str) -> None:
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    edit(root, "meta/episodes", lambda table: put("episode_index", lambda _: numbers)(table.slice(0, len(numbers))))
    with pytest.raises(RecapError, match=says):
        take(root)


def test_all_episodes_moved(ours: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    for folder, keys in (("data", ["index"]), ("meta/episodes", ["dataset_from_index", "dataset_to_index"])):
        for key in keys:
            edit(root, folder, put(key, lambda c, key=key: c[key] + 100))
    with pytest.raises(
        RecapError, match="episode 0: dataset_from_index=100 in meta/episodes, but 0 frames are before it"
    ):
        take(root)


@pytest.mark.parametrize(("shift", "says"), [(0.03, "has a picture at"), (5.0, "has a picture at")])
def test_pictures_that_are_not_in_the_video(copy: Path, shift: float, says: str) -> None:
    """Between two pictures, and beyond the last of the file, as where a roll-over was not noticed."""
    keys = [f"videos/{VIDEO}/{name}_timestamp" for name in ("from", "to")]
    for key in keys:
        edit(copy, "meta/episodes", put(key, in_episode(2, lambda t: t + shift)))
    frames = take(copy)
    with pytest.raises(RecapError, match=rf"episode 2 {says} .*{KEY}\.episodes=\[0,1,3\]"):
        frames.check_videos()
    take(copy, episodes=(0, 1, 3)).check_videos()


def test_timestamps_of_another_pace_matter_for_resampling_alone(ours: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    edit(root, "data", put("timestamp", lambda c: c["timestamp"] * 2))
    assert take(root).length.tolist() == list(LENGTHS), "images lie beside the numbers: as lerobot reads them"
    with pytest.raises(RecapError, match=rf"0\.2 s apart, which are 5 .* fps=10; .*{KEY}\.fps=5"):
        take(root, pace=20)
    assert take(root, fps=5, pace=10).length.tolist() == [23, 9, 17, 1]


# ---------------------------------------------------------------------------------------------------- types
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
    (f"features/{VIDEO}/dtype", "imgae", f"features.{VIDEO}.dtype='imgae'"),
    (f"features/{VIDEO}/dtype", 3, f"features.{VIDEO}.dtype=3"),
    *[
        (f"features/{VIDEO}/shape", value, f"{VIDEO}.shape")
        for value in ([4, 4], [0, 4, 3], [-4, 4, 3], ["4", 4, 3], None)
    ],
]


@pytest.mark.parametrize(("key", "value", "says"), INFO, ids=[f"{key}-{i}" for i, (key, *_) in enumerate(INFO)])
def test_info_of_the_wrong_type_or_range(ours: Path, tmp_path: Path, key: str, value: Any, says: str) -> None:
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    number(root, key, value)
    with pytest.raises(RecapError) as error:
        take(root)
    assert says in str(error.value)
    assert len(str(error.value)) < 600


def test_a_video_is_not_looked_for_outside(copy: Path, tmp_path: Path) -> None:
    """Not even where the path is one that exists."""
    video = min(copy.glob("videos/*/*/*.mp4"))
    (tmp_path / VIDEO / "000").mkdir(parents=True)
    shutil.copy(video, tmp_path / VIDEO / "000/000.mp4")
    for path in (str(tmp_path), ".."):
        number(copy, "video_path", path + "/{video_key}/{chunk_index:03d}/{file_index:03d}.mp4")
        with pytest.raises(RecapError, match=r"video_path=.* should be a path in the data set with \{video_key\}"):
            take(copy)


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
def test_columns_of_the_wrong_type(ours: Path, tmp_path: Path, case: str) -> None:
    folder, key, values, says = COLUMNS[case]
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    edit(root, folder, lambda table: table.set_column(table.column_names.index(key), key, values))
    with pytest.raises(RecapError, match=says):
        take(root)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"success": "yes"}, r"episodes\.0\.success='yes' should be a valid boolean"),
        ({"seed": 2**70}, r"episodes\.0\.seed="),
        ({"initial_state": None}, r"episodes\.0\.initial_state=None"),
        (None, "episodes=7 should be a valid list"),
    ],
)
def test_notes_of_the_wrong_type(ours: Path, tmp_path: Path, change: dict | None, says: str) -> None:
    root = Path(shutil.copytree(ours, tmp_path / "copy"))
    path = root / "meta/recap.json"
    notes = json.loads(path.read_text())
    notes["episodes"] = 7 if change is None else [notes["episodes"][0] | change, *notes["episodes"][1:]]
    path.write_text(json.dumps(notes))
    with pytest.raises(RecapError, match=rf"meta/recap\.json: {says}"):
        take(root)
