"""A data set's own words: where a picture is and what its task is, as stock lerobot reads them, or a refusal."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, KEY, LENGTHS, TASKS, edit, small_set, take
from hydra import compose, initialize_config_dir

from recap.config import TrainJob, typed
from recap.data.frames import Frames
from recap.utils.errors import RecapError

VIDEO = CAMERAS[0]
Table = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By lerobot's own writer: video and data roll over to a second file, not at the same episode."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("theirs") / "set"
    features: dict[str, Any] = {
        VIDEO: {"dtype": "video", "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
    }
    for key, size in (("observation.state", 8), ("action", 7)):
        features[key] = {"dtype": "float32", "shape": (size,), "names": None}
    stock = LeRobotDataset.create("recap/test", 10, features, root=root, use_videos=True)
    for e, length in enumerate(LENGTHS):
        for t in range(length):
            image = np.full((32, 32, 3), 20 + 9 * t, np.uint8)
            image[:16, :16] = (20 + 50 * e, 200, 100)
            numbers = {"observation.state": np.full(8, e, np.float32), "action": np.full(7, t, np.float32)}
            stock.add_frame({VIDEO: image, **numbers, "task": TASKS[e % 2]})
        stock.meta.info.video_files_size_in_mb = 1e-6 if e == 2 else 200  # type: ignore[assignment]
        stock.meta.info.data_files_size_in_mb = 1e-6 if e == 1 else 100  # type: ignore[assignment]
        stock.save_episode()
    stock.finalize()
    return root


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def copy(theirs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "copy"))


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
    assert len(list(theirs.glob("videos/*/*/*.mp4"))) == len(list(theirs.glob("data/*/*.parquet"))) == 2
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
    half = take(copy, action_freq=5)
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
    os.utime(copy / "meta/info.json")  # what has been read in this process is kept as long as this file is
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
        if here.any():  # of several files, one has it
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
    assert f"++{KEY}.episodes=[0,1,3]" in str(error.value)
    assert take(root, episodes=(0, 1, 3)).length.tolist() == [12, 5, 1]


def test_what_is_advised_can_be_typed(copy: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.scripts import lerobot_edit_dataset

    edit(copy, "data", put("task_index", in_episode(2, lambda i: [0] * (len(i) - 4) + [1] * 4)))
    with pytest.raises(RecapError) as error:
        take(copy)
    command, _, override = (
        str(error.value).partition("lerobot-edit-dataset ")[2].partition(", or leave out what is wrong: ")
    )
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        there = ["data.demonstrator=null", f"+{KEY}.root={copy}"]
        cfg = typed(compose("train", ["policy=pi0", "stage=sft", *there, override]), TrainJob)
    assert cfg.data.sources["mine"].episodes == [0, 1, 3]
    monkeypatch.setattr("sys.argv", ["lerobot-edit-dataset", *shlex.split(command)])
    lerobot_edit_dataset.edit_dataset()
    os.utime(copy / "meta/info.json", ns=(1, 1))
    assert take(copy).task_index.tolist() == np.repeat(take(copy).task, LENGTHS).tolist()


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
    with pytest.raises(RecapError, match=rf"0\.2 s apart, which are 5 .* fps=10; .*\+\+{KEY}\.fps=5"):
        take(root, action_freq=20)
    assert take(root, fps=5, action_freq=10).length.tolist() == [23, 9, 17, 1]
