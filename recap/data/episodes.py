"""Durable episode files: one parquet file an episode, complete on disk the moment the episode ends.

Simulation workers write them, so nothing here imports more than numpy and pyarrow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap.data.images import encode_png, feature_stats, image_stats
from recap.data.video import write_video
from recap.utils.errors import RecapError, disk_error
from recap.utils.files import sync

if TYPE_CHECKING:
    from recap.envs import EpisodeSpec

STATE, ACTION = "observation.state", "action"
INTERVENTION = "intervention"  # lerobot's name for it
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what Hugging Face calls the Image feature


@dataclass(frozen=True)
class Episode:
    """One finished episode of T control steps: frame t holds what was seen before, and done at, step t.

    images: {key: uint8 [T, H, W, 3]}, keys as in lerobot ("observation.images.image"); state: float32 [T, Ds];
    action: float32 [T, Da], as executed. source: demonstration | rollout | correction.
    A time-out is an episode with success=False like any other. choice, choice_frame: which of several ways was taken,
    and where it began (see `Env`). corrected_from: the control step from which on an operator acted, None where none
    did; watched: whether one might have: then every frame says who acted, as lerobot's recordings with interventions
    do.
    """

    spec: EpisodeSpec
    split: str
    source: str
    success: bool
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    choice: str | None = None
    choice_frame: int | None = None
    corrected_from: int | None = None
    watched: bool = False


def write_episode(folder: Path, episode: Episode, video_fps: float | None = None) -> Path:
    """Write `folder/<index, six digits>.parquet`, whole or not at all (temporary file, fsync, rename).

    video_fps: keep images as videos of this frame rate, `folder/<index>.<camera key>.mp4`, and not in the file.
    Raises RecapError for arrays of unequal length, wrong types or non-finite numbers, and when the disk refuses.
    """
    spec, steps = episode.spec, len(episode.action)
    _check(episode)
    last = np.arange(steps) == steps - 1
    arrays: dict[str, np.ndarray] = {
        STATE: episode.state,
        ACTION: episode.action,
        "next.success": last & episode.success,
        "next.done": last,
        "initial_state": np.full(steps, spec.initial_state, np.int64),
        "episode_seed": np.full(steps, spec.seed, np.int64),
    }
    if episode.watched:
        taken_over = steps if episode.corrected_from is None else episode.corrected_from
        arrays[INTERVENTION] = np.arange(steps) >= taken_over
    stats = {key: image_stats(images) for key, images in episode.images.items()}
    stats |= {key: feature_stats(array) for key, array in arrays.items()}
    facts = {
        "episode_index": int(spec.index),
        "task": spec.task,
        "success": bool(episode.success),
        "steps": steps,
        "initial_state": int(spec.initial_state),
        "seed": int(spec.seed),
        "split": episode.split,
        "source": episode.source,
        "image_shapes": {key: list(images.shape[1:]) for key, images in episode.images.items()},
        "video_fps": video_fps,
    }
    known = {
        "choice": episode.choice,
        "choice_frame": episode.choice_frame,
        "corrected_from": episode.corrected_from,
    }
    facts |= {key: value for key, value in known.items() if value is not None}
    columns = {k: _column(a) for k, a in arrays.items()}
    if video_fps is None:
        columns = {key: _image_column(images) for key, images in episode.images.items()} | columns
    table = pa.table(columns).replace_schema_metadata({"recap": json.dumps(facts), "recap.stats": json.dumps(stats)})
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table)

    path = Path(folder) / f"{spec.index:06d}.parquet"
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # a worker that outlives its killed run has another
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if video_fps is not None:
            for key, images in episode.images.items():
                write_video(video_path(folder, spec.index, key), images, video_fps)
                sync(video_path(folder, spec.index, key))
        with partial.open("wb") as file:
            file.write(sink.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    return path


def video_path(folder: Path, index: int, camera: str) -> Path:
    """The video of one camera key of an episode kept as videos."""
    return Path(folder) / f"{index:06d}.{camera}.mp4"


def finished(folder: Path) -> dict[int, dict[str, Any]]:
    """{episode index: facts} of the complete episode files in `folder`, in index order; reads footers only.

    A file without a readable footer (a truncated one) counts as not finished and is removed: its episode is recorded
    anew. Facts: episode_index, task, success, steps, initial_state, seed, split, source, image_shapes, video_fps;
    choice and choice_frame where one was made, and corrected_from where an operator took over.
    """
    found = {}
    for path in sorted(p for p in Path(folder).glob("*.parquet") if re.fullmatch(r"\d{6,}", p.stem)):
        facts = _facts(path)
        if facts is None or facts["episode_index"] != int(path.stem):
            path.unlink()
        else:
            found[int(path.stem)] = facts
    return dict(sorted(found.items()))


def _facts(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:  # a file that cannot be opened is for the user to solve, not a damaged episode
        try:
            return json.loads((pq.read_schema(file).metadata or {})[b"recap"])
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            return None  # pyarrow reports a damaged footer as ArrowInvalid or as an OSError without errno


def _check(episode: Episode) -> None:
    what, steps = f"episode {episode.spec.index}", len(episode.action)
    if steps == 0 or episode.state.ndim != 2 or episode.action.ndim != 2:
        raise RecapError(
            f"{what}: state {episode.state.shape} and action {episode.action.shape} must be [steps, dimensions] "
            "with at least one step"
        )
    for key, array in {STATE: episode.state, ACTION: episode.action, **episode.images}.items():
        if len(array) != steps:
            raise RecapError(
                f"{what}: {key} has {len(array)} frames but action has {steps}; record one of each every control step"
            )
    for key, array in {STATE: episode.state, ACTION: episode.action}.items():
        if array.dtype != np.float32:
            raise RecapError(f"{what}: {key} is {array.dtype}; it must be float32")
        if not np.isfinite(array).all():
            frame = int(np.argwhere(~np.isfinite(array))[0][0])
            raise RecapError(
                f"{what}: {key} is not finite at frame {frame}: {array[frame].tolist()}; the episode is not written"
            )
    for key, images in episode.images.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise RecapError(
                f"{what}: {key} is {images.dtype} {images.shape}; it must be uint8 [steps, height, width, 3]"
            )


def _image_column(images: np.ndarray) -> pa.Array:
    names = [f"frame-{i:06d}.png" for i in range(len(images))]
    return pa.StructArray.from_arrays(
        [pa.array(encode_png(images), pa.binary()), pa.array(names, pa.string())], fields=list(IMAGE)
    )


def _column(array: np.ndarray) -> pa.Array:
    if array.ndim == 1 or array.shape[1] == 1:  # lerobot stores what has one dimension as plain numbers
        return pa.array(array.ravel())
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # No dictionary and no min/max for PNG bytes: both only cost time. Page checksums show damaged files to readers.
    plain = [field.name for field in schema if field.type != IMAGE and not pa.types.is_fixed_size_list(field.type)]
    return pq.ParquetWriter(
        sink, schema, compression="snappy", use_dictionary=plain, write_statistics=plain, write_page_checksum=True
    )


# ---------------------------------------------------------------------------------------------------- disk
@contextmanager
def disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refusal = disk_error(error, path, "cannot write")
        raise refusal or RecapError(f"cannot write {path}: {error}. Fix: choose another output folder.") from error
