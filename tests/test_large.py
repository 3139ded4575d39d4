"""What only large data sets and long runs meet, with the limits lowered: the results are those of small ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, load, make_episode
from demo_keys import demo
from policy_helpers import new_value
from report_run import evaluate, finish, outcomes

from recap.data import frames as frames_module
from recap.data import lerobot_writer as recorder
from recap.data import video as videos
from recap.data.frames import Frames
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.mixture import Mixture
from recap.data.prefetch import prefetch
from recap.method.config import SourceKind
from recap.report import build_summary
from recap.report.html import gather
from recap.report.html.page import Page
from recap.stages import value_inference as values_module
from recap.utils.device import Device
from recap.utils.errors import RecapError
from recap.utils.ranks import Share

LENGTHS = (12, 3, 20)
PNG, FILM = CAMERAS[1], CAMERAS[0]  # how the mixed data set keeps its cameras
ROWS = np.array([34, 0, 15, 15, 2, 14, 34, 1])  # at random, some of them twice


def level(index: int, steps: int) -> Episode:
    """Grey frames of which each is told from its neighbours, through a video, too."""
    episode = make_episode(index, steps)
    grey = (10 + 9 * np.arange(steps) + 3 * index).astype(np.uint8)
    images = {key: np.broadcast_to(grey[:, None, None, None], (steps, 24, 24, 3)).copy() for key in CAMERAS}
    return Episode(**{**vars(episode), "images": images})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera as video, one as images, in three data files; the videos in two chunks."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "FILE_SIZE_MB", 0.001)
        patch.setattr(recorder, "FILES_PER_CHUNK", 2)
        for name, film in (("png", None), ("film", 10)):
            for index, steps in enumerate(LENGTHS):
                write_episode(folder / name / "episodes", level(index, steps), film)
            assemble(folder / name / "episodes", folder / name / "dataset", fps=10, source="rollout")
    root, film_root = folder / "png/dataset", folder / "film/dataset"
    shutil.move(film_root / "videos" / FILM, root / "videos" / FILM)
    info, films = (json.loads((path / "meta/info.json").read_text()) for path in (root, film_root))
    info["features"][FILM], info["video_path"] = films["features"][FILM], films["video_path"]
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in (root / "data").glob("*/*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(FILM), path)
    meta, more = (pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet") for path in (root, film_root))
    for name in [name for name in more.column_names if name.startswith(f"videos/{FILM}/")]:
        meta = meta.append_column(name, more[name])
    pq.write_table(meta, root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def take(root: Path, name: str = "mine", **options: Any) -> Frames:
    return load(root, name, SourceKind.rollout, **options)


# ---------------------------------------------------------------------------------------------------- images
def test_a_large_recording_is_spread_over_chunks_that_stock_lerobot_reads(mixed: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    ours, stock = take(mixed), LeRobotDataset("recap/test", root=mixed, video_backend="pyav")
    assert [path.relative_to(mixed / "data").as_posix() for path in ours.files.data_files] == [
        *(f"chunk-000/file-00{k}.parquet" for k in (0, 1)),
        "chunk-001/file-000.parquet",
    ]
    found = sorted(path.parent.name + "/" + path.name for path in (mixed / "videos" / FILM).rglob("*.mp4"))
    assert found == ["chunk-000/file-000.mp4", "chunk-000/file-001.mp4", "chunk-001/file-000.mp4"]
    grey = np.concatenate([level(index, steps).images[PNG][:, 0, 0, 0] for index, steps in enumerate(LENGTHS)])
    assert np.array_equal(ours.pixels(PNG, ROWS)[:, 0, 0, 0], grey[ROWS])
    assert np.abs(ours.pixels(FILM, ROWS)[:, 0, 0, 0].astype(int) - grey[ROWS]).max() < 4
    for row in (0, 12, 34):
        for key in CAMERAS:
            pixels = (stock[row][key].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert np.array_equal(pixels, ours.pixels(key, np.array([row]))[0])


@pytest.mark.parametrize("options", [{}, {"episodes": (2, 0)}, {"action_freq": 20}, {"action_freq": 5}])
def test_images_too_many_for_memory_are_the_same(
    mixed: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = take(mixed, "kept", **options)
    rows = ROWS % len(kept)
    wanted = {key: kept.pixels(key, rows) for key in CAMERAS}
    assert set(kept._decoded) == {PNG}
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    large = take(mixed, "large", **options)
    for key in CAMERAS:
        assert np.array_equal(large.pixels(key, rows), wanted[key])
    assert not large._decoded


def test_threads_read_the_same_batches(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a camera is a video, batches are made in threads; images beside it are read by them, too."""
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    mixture = Mixture([take(mixed, "threads")], 1.0)
    get = prefetch(lambda step: mixture.gather(mixture.pick(0, step, 8)), 12)
    batches = [get(step) for step in range(12)]
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 2**30)
    for step, batch in enumerate(batches):
        wanted = mixture.gather(mixture.pick(0, step, 8))
        for key in CAMERAS:
            assert np.array_equal(batch[key], wanted[key])


def test_images_are_decoded_in_parts_and_only_those_that_are_taken(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take(mixed, "whole").images(PNG)
    decoded: list[int] = []
    decode = frames_module.decode_images

    def counted(files: Any, *others: Any) -> None:
        decoded.append(len(files))
        decode(files, *others)

    monkeypatch.setattr(frames_module, "decode_images", counted)
    monkeypatch.setattr(frames_module, "DECODE_ROWS", 5)
    assert np.array_equal(take(mixed, "parts").images(PNG), whole)
    assert decoded == [5, 5, 2, 3, 5, 5, 5, 5], "no part reaches over the end of a file"
    decoded.clear()
    part = take(mixed, "few", episodes=(1,))
    assert np.array_equal(part.images(PNG), whole[12:15])
    assert sum(decoded) == 3


def test_a_damaged_image_is_the_same_error_however_it_is_read(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(mixed, tmp_path / "copy"))
    path = copy / "data/chunk-001/file-000.parquet"
    table = pq.read_table(path, partitioning=None)
    broken = [{**image, "bytes": b"no PNG"} if i == 4 else image for i, image in enumerate(table[PNG].to_pylist())]
    column = pa.array(broken, table.schema.field(PNG).type)
    pq.write_table(table.set_column(table.column_names.index(PNG), PNG, column), path)
    says = rf"data set 'mine' .*{PNG}.*: image 19 cannot be decoded; copy"
    with pytest.raises(RecapError, match=says):
        take(copy).pixels(PNG, np.array([0]))
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    large = take(copy)
    assert large.pixels(PNG, np.array([18])).shape == (1, 24, 24, 3)
    with pytest.raises(RecapError, match=says):
        large.pixels(PNG, np.array([3, 19]))


@pytest.mark.parametrize("damage", ["truncated", "page", "column"])
def test_damaged_files_are_named_where_images_are_read_from_them(
    mixed: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(mixed, tmp_path / "copy"))
    path = copy / "data/chunk-000/file-001.parquet"
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    frames = take(copy)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        says = r"file-001\.parquet is damaged or truncated"
    elif damage == "page":
        start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
        path.write_bytes(path.read_bytes()[:start] + bytes(60) + path.read_bytes()[start + 60 :])
        says = "(are|is) damaged or truncated"
    else:
        table = pq.read_table(path, partitioning=None)
        encoded = table[PNG].combine_chunks().field("bytes")
        pq.write_table(table.set_column(table.column_names.index(PNG), PNG, encoded), path)
        says = rf"{PNG} in data/chunk-000/file-001\.parquet holds binary, but info\.json says images"
    with pytest.raises(RecapError, match=says):
        frames.pixels(PNG, np.array([0]))
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 2**20)
    with pytest.raises(RecapError, match=says):
        frames.pixels(PNG, np.array([0]))


def test_a_copy_that_the_disk_refuses_is_one_error(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    (tmp_path / "cache").write_text("a file where the cache should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache/datasets")
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    with pytest.raises(RecapError, match=r"cannot copy the images into .*cache.*: Not a directory"):
        take(mixed, "refused").pixels(PNG, np.array([0]))


def test_frames_of_a_video_are_the_same_sought_one_by_one(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = take(mixed)
    together = frames.pixels(FILM, ROWS)
    monkeypatch.setattr(videos, "NEAR", 0)
    assert np.array_equal(frames.pixels(FILM, ROWS), together)


@pytest.mark.parametrize(("codec", "options"), [("libx264", videos.OPTIONS), ("libsvtav1", {"g": "2", "crf": "30"})])
def test_pictures_of_a_video_are_those_that_lerobot_reads(
    codec: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near and far ones, the first and the last, one that is wanted twice."""
    from lerobot.datasets.video_utils import decode_video_frames_pyav

    monkeypatch.setattr(videos, "CODEC", codec)
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    videos.write_video(tmp_path / "film.mp4", images, 10, options)
    times = np.array([0, 1, 2, 2, 5, 21, 22, 39]) / 10
    out = np.empty((len(times), *images.shape[1:]), np.uint8)
    videos.read_video(tmp_path / "film.mp4", times, out, 10)
    theirs = [
        decode_video_frames_pyav(tmp_path / "film.mp4", [float(time)], 1e-3, return_uint8=True)[0] for time in times
    ]
    assert np.array_equal(out, np.stack([picture.permute(1, 2, 0).numpy() for picture in theirs]))
    for late in (3.95, 4.0):
        with pytest.raises(ValueError, match=f"no picture at {late:.3f} s"):
            videos.read_video(tmp_path / "film.mp4", np.array([late]), out[:1], 10)


# ---------------------------------------------------------------------------------------------------- values
def test_values_in_many_blocks_are_those_of_one(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, checkpoint = take(mixed), new_value()
    whole = values_module.values(checkpoint, frames)
    monkeypatch.setattr(values_module, "VALUE_BATCH", 4)
    monkeypatch.setattr(values_module, "BLOCK", 10)
    checkpoint.save(tmp_path / "value")
    for index in (2, 0, 1):
        values_module._infer(
            replace(demo(), device=Device.cpu), tmp_path / "value", [frames], tmp_path / "blocks", Share(index, 3)
        )
    sizes = [len(np.load(path)) for path in sorted((tmp_path / "blocks").glob("*.npy"))]
    assert sizes == [10, 10, 10, 5]
    found = values_module._joined(tmp_path / "blocks", frames)
    assert np.ptp(whole) > 0
    assert found == pytest.approx(whole, abs=1e-5)


# ---------------------------------------------------------------------------------------------------- the report
def test_a_report_of_a_long_run_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sft").mkdir()
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in range(1, 8)]
    (tmp_path / "sft/metrics.jsonl").write_text("\n".join(lines))
    (curve,) = gather.loss_curves(tmp_path, {"sft": {}})
    assert curve["step"] == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(gather, "LOSS_POINTS", 3)
    (thin,) = gather.loss_curves(tmp_path, {"sft": {}})
    assert (thin["step"], thin["loss"]) == ([2, 4.5, 6.5], [2, 4.5, 6.5]), "means over neighbours"


def test_a_report_shows_as_many_videos_as_it_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("name: demo\nseed: 3\n")
    finish(tmp_path / "sft", 1.0)
    evaluate(tmp_path / "sft/eval", outcomes("101"), 40, videos=3)
    summary = build_summary(tmp_path)
    assert len(gather.videos(Page(), tmp_path, summary)) == 3
    monkeypatch.setattr(gather, "VIDEO_EPISODES", 2)
    assert [shown["title"][:15] for shown in gather.videos(Page(), tmp_path, summary)] == [
        "Initial state 0",
        "Initial state 1",
    ]
    largest = max(path.stat().st_size for path in (tmp_path / "sft/eval/videos").glob("*.mp4"))
    monkeypatch.setattr(gather, "VIDEO_BYTES", largest)
    assert len(gather.videos(Page(), tmp_path, summary)) == 1
    assert "left out of the report" in caplog.text
