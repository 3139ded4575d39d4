"""The sidecars of a labelled data set: advantages.parquet (ours), advantages.json (OpenTau's), thresholds.json (ε).

Labels are keyed (episode_index, frame_index) and live in the run directory, never in the data set. A missing or NaN
label is an error, not a 0.

OpenTau reads `<data set root>/meta/advantages.json`, {"<episode_index>,<timestamp>": "<advantage>"}; copy ours there to
train with it. Its lookup compares timestamps as floats, exactly, and takes 0 on a miss, so the key holds the float32
timestamp of the data set itself, and every recorded frame has one: of a resampled data set, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recap.data.resample import Recording
from recap.utils.errors import RecapError
from recap.utils.files import appearing
from recap.utils.shapes import COUNT, misfit

PARQUET, OPENTAU, THRESHOLDS = "advantages.parquet", "advantages.json", "thresholds.json"
SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("episode_index", pa.int64()),
        ("frame_index", pa.int64()),
        ("value", pa.float64()),  # V(o_t), in (-1, 0)
        ("return", pa.float64()),  # R_t normalised and clipped: the target of V
        ("advantage", pa.float64()),
        ("indicator", pa.bool_()),  # I_t, forced-positive sources included
        ("held_out", pa.bool_()),  # whether the value comes from a function that never trained on the episode
        ("source", pa.string()),  # demonstration | rollout | correction
        ("success", pa.bool_()),  # of the episode
        ("task", pa.string()),
    ]
)
NUMBERS = ("value", "return", "advantage")
AGAIN = "delete it and run advantage.py again"


# ---------------------------------------------------------------------------------------------------- labels
class Labels:
    """The labels of one data set in memory.

    `labels["advantage"]` is a whole column [n]; `lookup` finds frames in any order.
    """

    def __init__(self, path: Path, columns: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.columns = columns
        self.dataset = str(columns["dataset"][0])
        self._stride = int(columns["frame_index"].max()) + 1
        keys = columns["episode_index"] * self._stride + columns["frame_index"]
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def rows(self, episode_index: ArrayLike, frame_index: ArrayLike) -> NDArray[np.int64]:
        """Positions of the frames in the columns.

        [n], [n] -> [n]. Raises RecapError, with the first key, if any frame has no label.
        """
        episode, frame = np.asarray(episode_index, np.int64), np.asarray(frame_index, np.int64)
        if episode.ndim != 1 or episode.shape != frame.shape:
            raise RecapError(
                f"labels are looked up by two [n] of equal length; got {list(episode.shape)} episodes and "
                f"{list(frame.shape)} frames."
            )
        keys = episode * self._stride + frame
        position = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        # A frame beyond the stride would fall on a key of the next episode, so it is ruled out by itself.
        missing = (self._keys[position] != keys) | (frame < 0) | (frame >= self._stride) | (episode < 0)
        if missing.any():
            i = int(np.argmax(missing))
            raise RecapError(
                f"{self.path} (data set {self.dataset!r}) has no label for {int(missing.sum())} of {len(keys)} "
                f"frames, the first is episode {episode[i]}, frame {frame[i]}. "
                f"The data set has changed since it was labelled: {AGAIN}."
            )
        return self._order[position]

    def lookup(self, episode_index: ArrayLike, frame_index: ArrayLike) -> dict[str, NDArray[Any]]:
        """value, return, advantage (float64 [n]) and indicator (bool [n]) of these frames.

        Raises RecapError if any has no label.
        """
        rows = self.rows(episode_index, frame_index)
        return {name: self.columns[name][rows] for name in (*NUMBERS, "indicator")}


def write_labels(folder: str | Path, table: Mapping[str, ArrayLike], recording: Recording) -> None:
    """Write advantages.json and then advantages.parquet of one data set, each atomically.

    table: the columns of SCHEMA, [n] each (a dict of arrays or a pandas DataFrame).
    recording: of the data set, for OpenTau's timestamps; its `frame` are rows of the table.
    Raises RecapError, with nothing written, for missing columns, NaN, a frame or a timestamp that is there twice or
    more than one data set; and for a disk that cannot be written.
    """
    folder = Path(folder)
    missing = [name for name in SCHEMA.names if name not in table]
    if missing:
        raise RecapError(
            f"labels for {folder} lack the column {missing[0]!r}; the columns are {', '.join(SCHEMA.names)}."
        )
    try:
        # Through numpy, so that pandas' NaN stays NaN (Arrow would turn it into null) and is reported as such.
        arrow = pa.table({f.name: pa.array(np.asarray(table[f.name]), type=f.type) for f in SCHEMA}, schema=SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise RecapError(f"labels for {folder} do not fit the columns of {PARQUET}: {error}.") from error
    columns = _checked(arrow, f"the labels for {folder}", "they are not written")
    text = _opentau(columns, recording, folder)
    _write(folder / OPENTAU, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    # Checksums: Parquet itself would decode a flipped bit without a word.
    _write(folder / PARQUET, lambda tmp: pq.write_table(arrow, tmp, write_page_checksum=True))


def read_labels(folder: str | Path) -> Labels:
    """Read advantages.parquet of one data set.

    Raises RecapError if it is missing, truncated, corrupt, incomplete or holds NaN.
    """
    path = Path(folder) / PARQUET
    if not path.is_file():
        raise RecapError(f"no labels: {path} does not exist. Run advantage.py on this data set first.")
    try:
        # Through a file: given a path, pyarrow takes folder names such as "seed=0" for partitions and adds columns.
        with path.open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecapError(f"the labels in {path} cannot be read ({_first_line(error)}); {AGAIN}.") from error
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        found, wanted = ", ".join(table.schema.names), ", ".join(SCHEMA.names)
        raise RecapError(f"the labels in {path} have the columns {found} instead of {wanted}, or other types; {AGAIN}.")
    return Labels(path, _checked(table, f"the labels in {path}", AGAIN))


def _checked(table: pa.Table, name: str, fix: str) -> dict[str, NDArray[Any]]:
    """Columns as numpy arrays after all the checks that hold for what is written and for what is read."""
    if not len(table):
        raise RecapError(f"{name} hold no frame; {fix}.")
    for column in SCHEMA.names:
        if table[column].null_count:
            raise RecapError(f"{name} have {table[column].null_count} empty entries in the column {column!r}; {fix}.")
    columns = {column: table[column].to_numpy() for column in SCHEMA.names}
    for column in NUMBERS:
        bad = ~np.isfinite(columns[column])
        if bad.any():
            i = int(np.argmax(bad))
            where = f"episode {columns['episode_index'][i]}, frame {columns['frame_index'][i]}"
            raise RecapError(
                f"{name} hold {int(bad.sum())} NaN or infinite numbers in the column {column!r}, the first at "
                f"{where}; {fix}."
            )
    episode, frame = columns["episode_index"], columns["frame_index"]
    if episode.min() < 0 or frame.min() < 0:
        raise RecapError(f"{name} have a negative episode_index or frame_index; {fix}.")
    keys = np.sort(episode * (int(frame.max()) + 1) + frame)
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        where = f"episode {twice[0] // (int(frame.max()) + 1)}, frame {twice[0] % (int(frame.max()) + 1)}"
        raise RecapError(f"{name} hold {len(twice)} frames twice, the first is {where}; {fix}.")
    datasets = sorted(set(columns["dataset"].tolist()))
    if len(datasets) > 1:
        raise RecapError(
            f"{name} mix the data sets {', '.join(map(repr, datasets))}; write one folder per data set; {fix}."
        )
    return columns


def _opentau(columns: Mapping[str, NDArray[Any]], recording: Recording, folder: Path) -> str:
    """OpenTau's advantages.json:

    Strings to strings, the timestamp a float32 written in full so that float(key) equals LeRobot's tensor.item().
    """
    advantages = columns["advantage"][recording.frame].tolist()
    timestamps = np.asarray(recording.timestamp, np.float32).astype(np.float64).tolist()
    rows = zip(recording.episode_index.tolist(), timestamps, advantages, strict=True)
    found = {f"{episode},{timestamp}": f"{advantage:.9g}" for episode, timestamp, advantage in rows}
    if len(found) != len(advantages):
        raise RecapError(f"labels for {folder}: {len(advantages) - len(found)} timestamps are there twice.")
    return json.dumps(found, indent=4)


# ---------------------------------------------------------------------------------------------------- thresholds
@dataclass(frozen=True)
class Thresholds:
    """What the advantage stage decided, read back by the policy stage:

    A frame is positive iff advantage > epsilon[task].
    """

    epsilon: dict[str, float]  # per task; the same number for all tasks with one global threshold
    wanted_positive: float
    achieved_positive: dict[str, float | None]  # all, demonstration, success, failure: the share of positive frames
    achieved_positive_per_task: dict[str, dict[str, float | None]]
    n_step: int | None  # None = the whole episode
    normalizer: dict[str, float]  # per task, in steps
    c_fail: float  # in steps
    percentiles: dict[int, float]  # of the advantages of all data sets together

    def epsilon_of(self, task: str) -> float:
        """ε of a task. Raises RecapError for a task that was not labelled."""
        if task not in self.epsilon:
            raise RecapError(
                f"no threshold ε for task {task!r}; there is one for {sorted(self.epsilon)}. Run advantage.py again "
                "with this task's data."
            )
        return self.epsilon[task]


SHARES = {str: (float, None)}
SHAPE = {  # of thresholds.json
    "epsilon": {str: float},
    "wanted_positive": float,
    "achieved_positive": SHARES,
    "c_fail": float,
    "achieved_positive_per_task": {str: SHARES},
    "n_step": (COUNT, None),
    "normalizer": {str: float},
    "percentiles": {str: float},
}


def write_thresholds(folder: str | Path, thresholds: Thresholds) -> None:
    """Write thresholds.json atomically. Raises RecapError for NaN and for a disk that cannot be written."""
    path = Path(folder) / THRESHOLDS
    try:
        text = json.dumps(asdict(thresholds), indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RecapError(
            f"{path} is not written: a threshold, share or normalizer is NaN or infinite ({thresholds})."
        ) from error
    _write(path, lambda tmp: tmp.write_text(text + "\n", encoding="utf-8"))


def read_thresholds(folder: str | Path) -> Thresholds:
    """Read thresholds.json. Raises RecapError if it is missing, corrupt or incomplete."""
    path = Path(folder) / THRESHOLDS
    if not path.is_file():
        raise RecapError(
            f"no threshold ε: {path} does not exist. Run advantage.py first, or use indicator mode on or ignore, "
            "which need none."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if wrong := misfit(data, SHAPE):
            raise ValueError(wrong)
        out = Thresholds(**{f.name: data[f.name] for f in fields(Thresholds)})
        epsilon = {str(task): float(value) for task, value in out.epsilon.items()}
        percentiles = {int(percent): float(value) for percent, value in out.percentiles.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else _first_line(error)
        raise RecapError(f"the thresholds in {path} cannot be read ({reason}); {AGAIN}.") from error
    if not epsilon or not all(map(math.isfinite, epsilon.values())):
        raise RecapError(f"the thresholds in {path} hold no finite epsilon for some task ({epsilon}); {AGAIN}.")
    return Thresholds(**{**vars(out), "epsilon": epsilon, "percentiles": percentiles})


# ---------------------------------------------------------------------------------------------------- files
def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Run `write` on a temporary neighbour of `path`, then rename: readers see the old file or the new, never half."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as temporary:
            write(temporary)
    except (OSError, pa.ArrowException) as error:
        raise RecapError(
            f"cannot write {path}: {_first_line(error)}. Free the disk or make the folder writable, then run the same "
            "command again."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
