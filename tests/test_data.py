"""Recording and assembling data sets, on small real files; lerobot itself judges the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, EPISODES, TASKS, make_episode
from PIL import Image

from recap.data import episodes as episode_files
from recap.data import lerobot_writer as recorder
from recap.data.frames import load_frames
from recap.data.images import decode_images, encode_png
from recap.data.lerobot_writer import Episode, assemble, finished, write_episode
from recap.envs import EpisodeSpec
from recap.method.config import SourceKind
from recap.utils.errors import RecapError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    for episode in (EPISODES[i] for i in (2, 0, 3, 1)):  # workers finish in any order
        write_episode(folder, episode)
    return folder


@pytest.fixture(scope="module")
def data_set(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assembled") / "dataset"
    return assemble(recorded, out, fps=10, source="rollout", checkpoint="sft/checkpoints/last", env={"type": "moka"})


# ------------------------------------------------------------------------------------------------ images
def test_png_is_lossless_for_others_and_for_us() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 9, 13, 3), np.uint8)
    images[0], images[1] = 0, 255
    files = encode_png(images)
    assert np.array_equal(images, np.stack([np.asarray(Image.open(BytesIO(file))) for file in files]))
    out = np.empty_like(images)
    with ThreadPoolExecutor(2) as pool:
        decode_images(files, out, pool)
        assert np.array_equal(images, out)
        with pytest.raises(ValueError, match="image 299"):
            decode_images([*files[:299], files[0][:40]], out, pool)


# ------------------------------------------------------------------------------------------------ episode files
def test_finished_lists_facts_and_ignores_what_a_killed_worker_left(recorded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(recorded, tmp_path / "episodes"))
    (folder / "000004.parquet.tmp").write_bytes(b"half an episode")
    done = finished(folder)
    assert list(done) == [0, 1, 2, 3]
    assert done[3] == {
        "episode_index": 3,
        "task": TASKS[1],
        "success": False,
        "steps": 7,
        "initial_state": 103,
        "seed": 2**40 + 3,
        "split": "collection",
        "source": "rollout",
        "image_shapes": {key: [24, 24, 3] for key in CAMERAS},
        "video_fps": None,
    }
    assert finished(folder / "nothing here") == {}


@pytest.mark.parametrize("damage", ["truncated", "empty", "no footer", "other parquet"])
def test_a_damaged_episode_is_recorded_again(recorded: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(recorded, tmp_path / "episodes"))
    path = folder / "000002.parquet"
    content = path.read_bytes()
    if damage == "other parquet":
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes({"truncated": content[:-100], "empty": b"", "no footer": content[:-60] + bytes(60)}[damage])
    assert list(finished(folder)) == [0, 1, 3]
    assert not path.exists()
    write_episode(folder, EPISODES[2])
    assert path.read_bytes() == content  # recording is deterministic


def test_kill_while_writing_leaves_whole_episodes_only(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from data_helpers import make_episode; from recap.data.lerobot_writer import write_episode\n"
        "for i in itertools.count(): write_episode(Path(sys.argv[1]), make_episode(i % 5, 40)); print(i, flush=True)\n"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path / "episodes"), str(here), str(here.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        for _ in range(7):
            assert process.stdout.readline()
        process.kill()
    done = finished(tmp_path / "episodes")
    assert list(done) == [0, 1, 2, 3, 4]
    out = assemble(tmp_path / "episodes", tmp_path / "out", fps=10, source="rollout")
    assert len(load_frames(out, "killed", SourceKind.rollout)) == 200


def test_recording_needs_no_torch_and_no_lerobot() -> None:
    code = "import sys, recap.data.lerobot_writer; print(*{'torch', 'lerobot', 'datasets', 'cv2'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    heavy = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True).stdout
    assert not heavy.split()


def test_bad_episodes_are_refused(tmp_path: Path) -> None:
    good = EPISODES[0]
    nan = good.action.copy()
    nan[5, 2] = np.nan
    cases = [
        ({"action": nan}, r"episode 0: action is not finite at frame 5"),
        ({"state": good.state[:-1]}, r"observation.state has 11 frames but action has 12"),
        ({"state": good.state.astype(np.float64)}, "must be float32"),
        ({"action": good.action[:0], "state": good.state[:0]}, "at least one step"),
        ({"images": {CAMERAS[0]: good.images[CAMERAS[0]].astype(np.float32)}}, "must be uint8"),
    ]
    for change, message in cases:
        with pytest.raises(RecapError, match=message):
            write_episode(tmp_path, Episode(**{**vars(good), **change}))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(RecapError, match="cannot write"):
        write_episode(tmp_path / "file", good)


# ------------------------------------------------------------------------------------------------ lerobot's eyes
def test_stock_lerobot_reads_it(data_set: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / 10 for i in range(5)]}
    stock = LeRobotDataset("recap/test", root=data_set, delta_timestamps=chunk)
    assert (stock.num_episodes, stock.num_frames, stock.fps) == (4, 50, 10)
    assert stock.meta.total_tasks == 2
    ours = load_frames(data_set, "rollouts", SourceKind.rollout)
    rows, is_pad = ours.chunk_indices(np.arange(50), 5)
    for i in range(50):
        item = stock[i]
        assert item["task"] == ours.tasks[ours.task_index[i]] == TASKS[item["episode_index"].item() % 2]
        assert np.array_equal(item["observation.state"].numpy(), ours.state[i])
        assert np.array_equal(item["action"].numpy(), ours.action[rows[i]])
        assert np.array_equal(item["action_is_pad"].numpy(), is_pad[i])
        for key in CAMERAS:
            pixels = (item[key].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert np.array_equal(pixels, ours.images(key)[i])
    assert item["timestamp"].item() == pytest.approx(0.6)
    assert item["next.done"].item()
    assert not item["next.success"].item()
    part = LeRobotDataset("recap/test", root=data_set, episodes=[1, 3])
    assert len(part) == 8
    assert part[1]["episode_seed"].item() == 2**40 + 3


def test_files_are_as_lerobot_records_them(data_set: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    info = json.loads((data_set / "meta/info.json").read_text())
    added = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    features = {key: feature for key, feature in info["features"].items() if key not in added}
    features = {key: {**feature, "shape": tuple(feature["shape"])} for key, feature in features.items()}
    stock = LeRobotDataset.create("recap/test", 10, features, root=tmp_path / "stock", use_videos=False)
    for episode in EPISODES[2:]:
        steps = len(episode.action)
        for i in range(steps):
            frame = {key: images[i] for key, images in episode.images.items()} | {"task": episode.spec.task}
            flags = {
                "next.success": np.array([episode.success and i == steps - 1]),
                "next.done": np.array([i == steps - 1]),
            }
            numbers = {
                "initial_state": np.array([episode.spec.initial_state]),
                "episode_seed": np.array([episode.spec.seed]),
            }
            stock.add_frame(
                {**frame, **flags, **numbers, "observation.state": episode.state[i], "action": episode.action[i]}
            )
        stock.save_episode()
    stock.finalize()
    folder = tmp_path / "episodes"
    for new, episode in enumerate(EPISODES[2:]):
        write_episode(
            folder, Episode(**{**vars(episode), "spec": EpisodeSpec(new, *list(vars(episode.spec).values())[1:])})
        )
    ours = assemble(folder, tmp_path / "ours", fps=10, source="rollout")

    for path in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        mine, theirs = pq.read_table(ours / path), pq.read_table(stock.root / path)
        assert set(mine.column_names) == set(theirs.column_names)
        assert all(mine.schema.field(name).type == theirs.schema.field(name).type for name in mine.column_names)
        for name in mine.column_names:
            if not name.startswith(("stats/", "observation.images")):
                assert mine[name].to_pylist() == theirs[name].to_pylist(), name
        if path.startswith("data"):
            assert mine.column_names == theirs.column_names
            key = b"huggingface"
            assert json.loads(mine.schema.metadata[key])["info"] == json.loads(theirs.schema.metadata[key])["info"]
            assert pq.read_metadata(ours / path).num_row_groups == 2
    assert json.loads((ours / "meta/info.json").read_text()) == json.loads((stock.root / "meta/info.json").read_text())

    mine, theirs = (json.loads((root / "meta/stats.json").read_text()) for root in (ours, stock.root))
    assert mine.keys() == theirs.keys()
    for key, stats in theirs.items():
        assert stats.keys() == mine[key].keys()
        for name, value in stats.items():
            spread = np.subtract(stats["max"], stats["min"])
            # lerobot's quantiles are read off histograms; exact ones lie between neighbouring samples
            tolerance = 0.25 * spread.max() + 1e-6 if name.startswith("q") else 1e-4 * max(1, np.abs(value).max())
            assert np.shape(value) == np.shape(mine[key][name])
            assert np.abs(np.subtract(value, mine[key][name])).max() <= tolerance, (key, name)


def test_large_recordings_are_spread_over_files(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setattr(recorder, "FILE_SIZE_MB", 0.05)
    monkeypatch.setattr(recorder, "FILES_PER_CHUNK", 2)
    out = assemble(recorded, tmp_path / "out", fps=10, source="rollout")
    files = [str(path.relative_to(out / "data")) for path in sorted((out / "data").rglob("*.parquet"))]
    assert files == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    frames = load_frames(out, "rollouts", SourceKind.rollout)
    expected = np.concatenate([episode.images[CAMERAS[1]] for episode in EPISODES])
    assert np.array_equal(frames.images(CAMERAS[1]), expected)
    stock = LeRobotDataset("recap/test", root=out)
    assert np.array_equal(stock[49]["action"].numpy(), EPISODES[3].action[-1])
    assert str(stock.meta.get_data_file_path(3)) == "data/chunk-001/file-000.parquet"


# ------------------------------------------------------------------------------------------------ assembling
def test_assemble_is_deterministic_and_atomic(recorded: Path, data_set: Path, tmp_path: Path) -> None:
    (tmp_path / "again.tmp/data").mkdir(parents=True)  # what a kill in the middle leaves
    (tmp_path / "again.tmp/data/old.parquet").write_bytes(b"old")
    keywords = {"fps": 10, "source": "rollout", "checkpoint": "sft/checkpoints/last", "env": {"type": "moka"}}
    again = assemble(recorded, tmp_path / "again", **keywords)
    names = sorted(str(path.relative_to(again)) for path in again.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(data_set)) for path in data_set.rglob("*") if path.is_file())
    for name in names:
        assert (again / name).read_bytes() == (data_set / name).read_bytes(), name
    assert not (tmp_path / "again.tmp").exists()
    before = (again / "meta/info.json").stat().st_mtime_ns
    assert assemble(recorded, again, **keywords) == again
    assert (again / "meta/info.json").stat().st_mtime_ns == before
    with pytest.raises(RecapError, match="exists and holds other episodes"):
        assemble(recorded, again, **{**keywords, "checkpoint": "another"})
    recap = json.loads((again / "meta/recap.json").read_text())
    assert (recap["source"], recap["checkpoint"], recap["env"], recap["fps"]) == (
        "rollout",
        "sft/checkpoints/last",
        {"type": "moka"},
        10,
    )
    assert [episode["success"] for episode in recap["episodes"]] == [True, False, True, False]


def test_assemble_refuses_what_does_not_fit(recorded: Path, tmp_path: Path) -> None:
    def attempt(message: str, source: str = "rollout", **keywords: object) -> None:
        with pytest.raises(RecapError, match=message):
            assemble(folder, tmp_path / "out", fps=10, source=source, **keywords)
        assert not (tmp_path / "out").exists()

    folder = tmp_path / "empty"
    attempt("no finished episodes")
    folder = Path(shutil.copytree(recorded, tmp_path / "episodes"))
    attempt("episode 0 is a rollout, not a demonstration", source="demonstration")
    attempt("8 dimensions but 1 names", state_names=["x"])
    (folder / "000001.parquet").unlink()
    attempt(r"1 episodes are not recorded, the first ones \[1\]")
    write_episode(folder, make_episode(1, 5, size=32))
    attempt(r"000001.parquet: observation.images.image is .*32.* but in episode 0 it is .*24")
    write_episode(folder, EPISODES[1])
    content = bytearray((folder / "000002.parquet").read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the middle of an image, where no footer tells
    (folder / "000002.parquet").write_bytes(content)
    attempt("000002.parquet is damaged")


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(episode_files.os, "fsync", no_space)
    message = r"cannot write .*000000.parquet.*: No space left on device. Fix: free some space"
    with pytest.raises(RecapError, match=message):
        write_episode(tmp_path, EPISODES[0])
    assert finished(tmp_path) == {}
