"""Mixtures of data sets: weights, paces, chosen episodes, merged statistics; images as video or beyond memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import CAMERAS, load, make_episode
from tiny_run import run

from recap.data import frames as frames_module
from recap.data import resample
from recap.data.config import DataConfig, Resample, SourceConfig
from recap.data.frames import Frames
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.mixture import Mixture, merged_stats
from recap.data.prefetch import prefetch
from recap.data.sources import load_source
from recap.method.config import SourceKind
from recap.utils.errors import RecapError

LENGTHS = (12, 3, 20)


def still(index: int, steps: int) -> Episode:
    """An episode whose images compress well, each brighter than the one before, so that frames can be told apart."""
    episode = make_episode(index, steps, size=32)
    level = (20 + 8 * np.arange(steps) + index).astype(np.uint8)
    images = {key: np.broadcast_to(level[:, None, None, None], (steps, 32, 32, 3)).copy() for key in CAMERAS}
    return Episode(**{**vars(episode), "images": images})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same episodes with images as PNG and as video."""
    folder = tmp_path_factory.mktemp("stored")
    for kind, film in (("png", None), ("video", 10)):
        for index, steps in enumerate(LENGTHS):
            write_episode(folder / kind / "episodes", still(index, steps), film)
        assemble(folder / kind / "episodes", folder / kind / "dataset", fps=10, source="rollout")
    return {kind: folder / kind / "dataset" for kind in ("png", "video")}


def take(root: Path, name: str = "mine", kind: SourceKind = SourceKind.demonstration, **options: object) -> Frames:
    return load(root, name, kind, **options)


# ---------------------------------------------------------------------------------------------------- video
def test_videos_are_read_as_what_was_recorded(stored: dict[str, Path]) -> None:
    png, video = take(stored["png"]), take(stored["video"])
    assert video.image_shapes == png.image_shapes
    assert np.array_equal(video.action, png.action)
    rows = np.random.default_rng(0).permutation(len(png))[:20]
    for key in CAMERAS:
        difference = video.pixels(key, rows).astype(int) - png.pixels(key, rows)
        assert np.abs(difference).max() < 4, "the right frames, in the order asked for: neighbours differ by 8"
        assert video.pixels(key, rows[[3, 3, 0]]).shape == (3, 32, 32, 3)
    assert not video._decoded, "nothing is kept"


def test_stock_lerobot_reads_our_videos(stored: dict[str, Path]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stock = LeRobotDataset("recap/test", root=stored["video"], video_backend="pyav")
    ours = take(stored["video"])
    assert (stock.num_episodes, stock.num_frames, stock.meta.video_keys) == (3, 35, list(CAMERAS))
    for row in (0, 11, 12, 14, 15, 34):
        for key in CAMERAS:
            pixels = (stock[row][key].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert np.array_equal(pixels, ours.pixels(key, np.array([row]))[0])


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_video_is_named(stored: dict[str, Path], tmp_path: Path, damage: str) -> None:
    root = Path(shutil.copytree(stored["video"], tmp_path / "copy"))
    path = root / f"videos/{CAMERAS[0]}/chunk-000/file-002.mp4"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(RecapError, match=r"file-002\.mp4 (is missing|cannot be decoded at 1\.90 to 1\.90 s)"):
        take(root).pixels(CAMERAS[0], np.array([34]))


@pytest.mark.parametrize("problem", ["truncated", "other action", "other camera"])
def test_sources_that_cannot_be_trained_on_stop_before_any_work(
    stored: dict[str, Path], tmp_path: Path, problem: str
) -> None:
    root = Path(shutil.copytree(stored["video"], tmp_path / "copy"))
    sources = [f"+data.sources.mine.root={root}"]
    if problem == "truncated":
        path = root / f"videos/{CAMERAS[1]}/chunk-000/file-001.mp4"
        path.write_bytes(path.read_bytes()[:-500])
        says = f"data set 'mine' ({root}): videos/{CAMERAS[1]}/chunk-000/file-001.mp4 cannot be decoded"
    else:
        episode = still(0, 5)
        if problem == "other action":
            episode = Episode(**{**vars(episode), "action": episode.action[:, :6]})
            says = "data sets 'mine' and 'theirs' do not mix: action size 7 and 6"
        else:
            episode = Episode(**{**vars(episode), "images": {CAMERAS[0]: episode.images[CAMERAS[0]]}})
            says = "data sets 'mine' and 'theirs' do not mix: cameras"
        write_episode(tmp_path / "episodes", episode)
        other = assemble(tmp_path / "episodes", tmp_path / "other", fps=10, source="rollout")
        sources.append(f"+data.sources.theirs.root={other}")
    seen = run("train", "experiment=demo_small", "data.demonstrator=null", *sources, cwd=tmp_path)
    assert (seen.code, seen.err.count("error:")) == (1, 1)
    assert says in seen.err
    assert not (tmp_path / "outputs").exists()


def test_images_too_many_for_memory_are_read_where_they_lie(
    stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(stored["png"], tmp_path / "copy"))
    whole = take(copy, "whole").images(CAMERAS[1])
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    part, rows = take(copy, "part", episodes=(2, 0)), np.array([31, 0, 12, 12])
    assert np.array_equal(part.pixels(CAMERAS[1], rows), whole[[34, 0, 15, 15]])
    assert not part._decoded


def test_batches_made_ahead_are_the_same_in_the_same_order(stored: dict[str, Path]) -> None:
    mixture = Mixture([take(stored["video"])], 1.0)
    made: list[int] = []

    def make(step: int) -> np.ndarray:
        made.append(step)
        return mixture.gather(mixture.pick(0, step, 8))[CAMERAS[0]]

    get = prefetch(make, 12)
    for step in range(3, 12):
        assert np.array_equal(get(step), mixture.gather(mixture.pick(0, step, 8))[CAMERAS[0]])
    assert sorted(made) == list(range(3, 12)), "each once, from the first that was asked for"

    def broken(step: int) -> int:
        return 1 // (step - 2)

    get_broken = prefetch(broken, 5)
    assert [get_broken(0), get_broken(1)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        get_broken(2)


# ---------------------------------------------------------------------------------------------------- what is taken
def test_chosen_episodes_keep_their_numbers(stored: dict[str, Path]) -> None:
    whole, part = take(stored["png"]), take(stored["png"], episodes=(2, 0))
    assert (part.length.tolist(), part.start.tolist(), len(part)) == ([12, 20], [0, 12], 32)
    assert set(part.episode_index.tolist()) == {0, 2}
    assert part.initial_state.tolist() == [100, 102]
    assert np.array_equal(part.action[12:], whole.action[15:])
    assert np.array_equal(part.images(CAMERAS[0])[12:], whole.images(CAMERAS[0])[15:])
    rows, pad = part.chunk_indices(np.array([10]), 4)
    assert (rows.tolist(), pad.tolist()) == ([[10, 11, 11, 11]], [[False, False, True, True]])
    with pytest.raises(RecapError, match=r"no episode 7.*choose from 0 to 2"):
        take(stored["png"], episodes=(7,))


def test_positions_at_another_pace() -> None:
    position, length = resample.positions(np.array([4, 1, 5]), 0.5)
    assert length.tolist() == [7, 1, 9]
    assert position[:7].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert resample.nearest(position[:7]).tolist() == [0, 1, 1, 2, 2, 3, 3]
    position, length = resample.positions(np.array([4, 1, 5]), 2.0)
    assert (position.tolist(), length.tolist()) == ([0, 2, 0, 0, 2, 4], [2, 1, 3])
    vectors = np.array([[0.0], [10.0], [20.0], [100.0]])
    assert resample.linear(vectors, np.zeros(4, int), np.array([0, 0.5, 2.0, 3.0])).ravel().tolist() == [0, 5, 20, 100]


@pytest.mark.parametrize(("kind", "vectors"), [("png", "nearest"), ("video", "nearest"), ("png", "linear")])
def test_a_source_of_another_pace_is_resampled(stored: dict[str, Path], kind: str, vectors: str) -> None:
    whole = take(stored[kind])
    twice = take(stored[kind], action_freq=20, vectors=Resample[vectors])
    assert (twice.fps, twice.length.tolist()) == (20, [23, 5, 39])
    assert twice.frame_index[23:28].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(twice.action[0:23:2], whole.action[:12]), "old frames are where they were"
    middle = (whole.action[0] + whole.action[1]) / 2 if vectors == "linear" else whole.action[1]
    assert twice.action[1] == pytest.approx(middle, abs=1e-6)
    assert np.array_equal(twice.pixels(CAMERAS[0], np.array([24])), whole.pixels(CAMERAS[0], np.array([13])))
    believed = take(stored[kind], fps=20, action_freq=20)
    assert (believed.fps, len(believed)) == (20, len(whole)), "fps corrects what the data set says of itself"
    assert np.array_equal(believed.pixels(CAMERAS[0], np.array([34])), whole.pixels(CAMERAS[0], np.array([34])))


def test_given_sources_are_found_in_folders_and_on_the_hub(stored: dict[str, Path], tmp_path: Path) -> None:
    sources = {
        "mine": SourceConfig(root=str(stored["png"]), weight=3.0, kind=SourceKind.correction),
        "theirs": SourceConfig(repo_id="nobody/nothing", revision="v1"),
    }
    frames = load_source(DataConfig(sources=sources, action_freq=5), "mine")
    assert (frames.name, frames.kind, frames.weight, frames.fps) == ("mine", SourceKind.correction, 3.0, 5)
    with pytest.raises(RecapError, match=r"theirs\.repo_id=nobody/nothing: .* --revision v1 nobody/nothing, or data"):
        load_source(DataConfig(sources=sources), "theirs")


# ---------------------------------------------------------------------------------------------------- weights
def test_sources_divide_the_batches_by_weight(stored: dict[str, Path]) -> None:
    small = take(stored["png"], "small", episodes=(1,), weight=3.0)
    large = take(stored["png"], "large", kind=SourceKind.rollout, weight=1.0)
    first, second = (take(stored["png"], f"rollouts_0{i}", SourceKind.rollout) for i in (1, 2))
    assert (first.weight, take(stored["png"]).weight) == (None, 1.0)
    mixture = Mixture([small, large, first, second], 0.4)
    picked = np.concatenate([mixture.pick(0, step, 10).source for step in range(400)])
    counts = np.bincount(picked, minlength=4)
    assert counts[:2].tolist() == [1200, 400], "0.4 of 4,000, 3 to 1"
    assert counts[2] == pytest.approx(1200, abs=5 * np.sqrt(600)), "collected ones are drawn from as one"
    assert np.bincount(Mixture([small, large], 0.4).pick(0, 0, 8).source).tolist() == [6, 2], "nothing collected yet"


def test_statistics_are_merged_by_weight(stored: dict[str, Path]) -> None:
    one = take(stored["png"], "one", episodes=(0,), weight=2.0)
    two = take(stored["png"], "two", episodes=(2,), weight=1.0)
    weights = np.concatenate([np.full(12, 2 / 3 / 12), np.full(20, 1 / 3 / 20)])
    both = np.concatenate([one.state, two.state]).astype(np.float64)
    mean = weights @ both
    found = merged_stats([one, two])["observation.state"]
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["std"] == pytest.approx(np.sqrt(weights @ (both - mean) ** 2), abs=1e-6)
    assert merged_stats([one])["action"]["std"] == pytest.approx(one.stats()["action"]["std"])
