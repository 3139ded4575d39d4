"""What copying and editing leave in a data set: hidden files, unfinished downloads, tasks with gaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import CAMERAS, TASKS

from recap.data import frames as frames_module
from recap.data.frames import Frames, load_frames
from recap.method.config import SourceKind
from recap.utils.errors import RecapError

DATA, META = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(100)


def load(root: Path) -> Frames:
    return load_frames(root, "mine", SourceKind.rollout)


# ---------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize(
    "left",
    [
        ["data/chunk-000/._file-000.parquet", "meta/episodes/chunk-000/._file-000.parquet", "meta/._info.json"],
        [".DS_Store", "data/.DS_Store", "data/chunk-000/.DS_Store", "meta/episodes/.DS_Store"],
        ["data/._chunk-000", "data/.ipynb_checkpoints/file-000-checkpoint.parquet"],
        [
            ".cache/huggingface/download/data/chunk-000/file-000.parquet.metadata",
            "data/chunk-000/.file-000.parquet.tmp",
        ],
        ["__MACOSX/data/chunk-000/._file-000.parquet", "data/notes.txt"],
    ],
)
def test_hidden_files_hold_no_frames(
    data_set: Path, copy: Path, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in left:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(APPLE_DOUBLE)
    whole, frames = load(data_set), load(copy)
    assert np.array_equal(frames.action, whole.action)
    assert frames.files.data_files == [copy / DATA]
    assert np.array_equal(frames.images(CAMERAS[0]), whole.images(CAMERAS[0]))
    monkeypatch.setattr(frames_module, "KEPT_BYTES", 0)
    assert np.array_equal(frames.pixels(CAMERAS[1], np.array([3])), whole.images(CAMERAS[1])[[3]])


def test_an_unfinished_download_is_told_from_damage(copy: Path) -> None:
    part = copy / ".cache/huggingface/download/data/chunk-000/abc.incomplete"
    part.parent.mkdir(parents=True)
    (copy / DATA).replace(part)
    with pytest.raises(RecapError, match="holds no frames; it was not downloaded to the end: give the same `hf down"):
        load(copy)


# ---------------------------------------------------------------------------------------------------- tasks
def renumber(root: Path, numbers: list[object], names: list[object], of_frames: Callable[[int], int]) -> None:
    """Other rows of meta/tasks.parquet, and the numbers that frames have in place of 0 and 1."""
    pq.write_table(pa.table({"task_index": numbers, "task": names}), root / "meta/tasks.parquet")
    table = pq.read_table(root / DATA, partitioning=None)
    found = pa.array([of_frames(number) for number in table["task_index"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", found), root / DATA)


@pytest.mark.parametrize(
    ("numbers", "names", "of_frames"),
    [
        ([0, 2], list(TASKS), lambda k: 2 * k),  # the task between was deleted
        ([3, 7], list(TASKS), lambda k: 3 + 4 * k),
        ([0.0, 2.0], list(TASKS), lambda k: 2 * k),  # as pandas has them after a join
        ([1, 0], [TASKS[1], TASKS[0]], lambda k: k),  # sorted by their words
        ([0, 1, 2], [TASKS[0], TASKS[1], TASKS[1]], lambda k: 2 * k),  # the same words twice
        ([0, 1, 1], [TASKS[0], TASKS[1], TASKS[1]], lambda k: k),  # a row twice
    ],
)
def test_tasks_are_found_by_their_numbers(
    copy: Path, numbers: list[object], names: list[object], of_frames: Callable[[int], int]
) -> None:
    renumber(copy, numbers, names, of_frames)
    frames = load(copy)
    assert [frames.tasks[task] for task in frames.task] == [TASKS[0], TASKS[1], TASKS[0], TASKS[1]]
    assert [frames.tasks[task] for task in frames.task_index] == [TASKS[k % 2] for k in frames.episode]


@pytest.mark.parametrize(
    ("numbers", "names", "of_frames", "says"),
    [
        (
            [0, 2],
            list(TASKS),
            lambda k: k,
            "task_index 1 is none of 2 in .*, but 8 frames have it, the first in row 12",
        ),
        ([0, 1, 1], [*TASKS, "wipe"], lambda k: k, "task_index 1 in meta/tasks.parquet is both 'push .*' and 'wipe'"),
        ([0, 1], [TASKS[0], None], lambda k: k, "task_index 1 in meta/tasks.parquet is None; give it its instruction"),
        ([0, None], list(TASKS), lambda k: k, "task_index has missing numbers"),
    ],
)
def test_tasks_that_are_unclear_say_what_is(
    copy: Path, numbers: list[object], names: list[object], of_frames: Callable[[int], int], says: str
) -> None:
    renumber(copy, numbers, names, of_frames)
    with pytest.raises(RecapError, match=says):
        load(copy)


def test_instructions_without_a_column(copy: Path) -> None:
    pq.write_table(pa.table({"task_index": [0, 1], "text": list(TASKS)}), copy / "meta/tasks.parquet")
    with pytest.raises(RecapError, match=r"no column of instructions, but \['task_index', 'text'\]; name it task"):
        load(copy)
