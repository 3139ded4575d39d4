"""The sidecars of a labelled data set: advantages.parquet (ours), advantages.json (OpenTau's), thresholds.json (ε).

Labels are keyed (episode_index, frame_index) and live in the run directory, never in the data set. A missing or NaN
label is an error, not a 0.

OpenTau reads `<data set root>/meta/advantages.json`, {"<episode_index>,<timestamp>": "<advantage>"}; copy ours there to
train with it. Its lookup compares timestamps as floats, exactly, and takes 0 on a miss, so the key holds the float32
timestamp of the data set itself, and every recorded frame has one: of a resampled data set, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from recap.data.episodes import disk
from recap.data.metadata import explain
from recap.data.resample import Recording
from recap.utils.errors import RecapError
from recap.utils.files import appearing, write_text

if TYPE_CHECKING:
    import pandas as pd

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
        ("success", pa.bool_()),  # of the episode, or of its part that an operator cut off
        ("task", pa.string()),
    ]
)
NUMBERS = ("value", "return", "advantage")
AGAIN = "delete it and run advantage.py again"


# ---------------------------------------------------------------------------------------------------- labels
@dataclass(frozen=True)
class Labels:
    """The labels of one data set in memory: `labels["advantage"]` is a whole column [n]."""

    path: Path
    columns: dict[str, NDArray[Any]]

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def lookup(self, episode_index: ArrayLike, frame_index: ArrayLike) -> dict[str, NDArray[Any]]:
        """value, return, advantage (float64 [n]) and indicator (bool [n]) of n frames in any order.

        Raises RecapError, with the first frame, if any has no label.
        """
        episode, frame = np.asarray(episode_index, np.int64), np.asarray(frame_index, np.int64)
        if episode.ndim != 1 or episode.shape != frame.shape:
            raise RecapError(
                f"labels are looked up by two [n] of equal length; got {list(episode.shape)} episodes and "
                f"{list(frame.shape)} frames."
            )
        rows = _index(self["episode_index"], self["frame_index"]).get_indexer(_index(episode, frame))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise RecapError(
                f"{self.path} (data set {self['dataset'][0]!r}) has no label for {len(missing)} of {len(rows)} "
                f"frames, the first is episode {episode[missing[0]]}, frame {frame[missing[0]]}. "
                f"The data set has changed since it was labelled: {AGAIN}."
            )
        return {name: self[name][rows] for name in (*NUMBERS, "indicator")}


def _index(episode: NDArray[np.int64], frame: NDArray[np.int64]) -> pd.MultiIndex:
    import pandas as pd  # not at the top: commands that only ask for a run's state need not wait for it

    return pd.MultiIndex.from_arrays([episode, frame])


def write_labels(folder: str | Path, table: Mapping[str, ArrayLike], recording: Recording) -> None:
    """Write advantages.json and then advantages.parquet of one data set, each atomically.

    table: the columns of SCHEMA, [n] each (a dict of arrays or a pandas DataFrame).
    recording: of the data set, for OpenTau's timestamps; its `frame` are rows of the table.
    Raises RecapError, with nothing written, for missing columns, NaN, duplicate frames or timestamps, and more than
    one data set; and for a disk that cannot be written.
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
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / OPENTAU, text)
        with appearing(folder / PARQUET) as temporary:
            # Checksums: Parquet itself would decode a flipped bit silently.
            pq.write_table(arrow, temporary, write_page_checksum=True)


def read_labels(folder: str | Path) -> Labels:
    """Read advantages.parquet of one data set.

    Raises RecapError if it is missing, truncated, corrupt, incomplete or holds NaN.
    """
    path = Path(folder) / PARQUET
    if not path.is_file():
        raise RecapError(f"no labels: {path} does not exist. Run advantage.py on this data set first.")
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RecapError(f"the labels in {path} cannot be read ({reason}); {AGAIN}.") from error
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        found, wanted = ", ".join(table.schema.names), ", ".join(SCHEMA.names)
        raise RecapError(f"the labels in {path} have the columns {found} instead of {wanted}, or other types; {AGAIN}.")
    return Labels(path, _checked(table, f"the labels in {path}", AGAIN))


def _checked(table: pa.Table, name: str, fix: str) -> dict[str, NDArray[Any]]:
    """The columns as arrays. Raises RecapError for what can be no labels of one data set, written or read."""

    def refusal(problem: str, row: int | None = None) -> RecapError:
        where = "" if row is None else f", the first is episode {episode[row]}, frame {frame[row]}"
        return RecapError(f"{name} {problem}{where}; {fix}.")

    if not len(table):
        raise refusal("hold no frame")
    for column in SCHEMA.names:
        if count := table[column].null_count:
            raise refusal(f"have {count} empty entries in the column {column!r}")
    columns = {column: table[column].to_numpy() for column in SCHEMA.names}
    episode, frame = columns["episode_index"], columns["frame_index"]
    for column in NUMBERS:
        bad = np.flatnonzero(~np.isfinite(columns[column]))
        if len(bad):
            raise refusal(f"hold {len(bad)} NaN or infinite numbers in the column {column!r}", bad[0])
    if episode.min() < 0 or frame.min() < 0:
        raise refusal("have a negative episode_index or frame_index")
    twice = np.flatnonzero(_index(episode, frame).duplicated())
    if len(twice):
        raise refusal(f"hold {len(twice)} frames twice", twice[0])
    datasets = sorted(set(columns["dataset"].tolist()))
    if len(datasets) > 1:
        raise refusal(f"mix the data sets {', '.join(map(repr, datasets))}; write one folder per data set")
    return columns


def _opentau(columns: Mapping[str, NDArray[Any]], recording: Recording, folder: Path) -> str:
    """The text of advantages.json; each timestamp in full, so that float(key) equals LeRobot's tensor.item()."""
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
    """What the advantage stage decided: a frame is positive iff advantage > epsilon[task]."""

    epsilon: Annotated[dict[str, FiniteFloat], Field(min_length=1)]  # the same for all tasks with a global threshold
    wanted_positive: float
    achieved_positive: dict[str, float | None]  # all, demonstration, success, failure: the share of positive frames
    achieved_positive_per_task: dict[str, dict[str, float | None]]
    n_step: NonNegativeInt | None  # None = the whole episode
    normalizer: dict[str, float]  # per task, in steps
    c_fail: float  # in steps
    percentiles: dict[int, float]  # of the advantages of all data sets together
    forced: list[str] = field(default_factory=list)  # sources that are positive whatever ε is, and do not decide it

    def epsilon_of(self, task: str) -> float:
        """ε of a task. Raises RecapError for a task that was not labelled."""
        if task not in self.epsilon:
            raise RecapError(
                f"no threshold ε for task {task!r}; there is one for {sorted(self.epsilon)}. Run advantage.py again "
                "with this task's data."
            )
        return self.epsilon[task]


def write_thresholds(folder: str | Path, thresholds: Thresholds) -> None:
    """Write thresholds.json atomically. Raises RecapError for NaN and for a disk that cannot be written."""
    path = Path(folder) / THRESHOLDS
    try:
        text = json.dumps(asdict(thresholds), indent=2, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RecapError(
            f"{path} is not written: a threshold, share or normalizer is NaN or infinite ({thresholds})."
        ) from error
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")


def read_thresholds(folder: str | Path) -> Thresholds:
    """Read thresholds.json. Raises RecapError if it is missing, corrupt or incomplete."""
    path = Path(folder) / THRESHOLDS
    if not path.is_file():
        raise RecapError(
            f"no threshold ε: {path} does not exist. Run advantage.py first, or use indicator mode on or ignore, "
            "which need none."
        )
    try:
        return TypeAdapter(Thresholds).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else error
        raise RecapError(f"the thresholds in {path} cannot be read ({reason}); {AGAIN}.") from error
