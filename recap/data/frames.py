"""A LeRobotDataset v3 as arrays: everything but images at once, images when asked for.

Small images are decoded once and kept: training draws the same frames thousands of times. Large ones and videos are
decoded frame by frame, so that memory stays bounded. No torch here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from recap.data import resample
from recap.data.cameras import image_shapes
from recap.data.config import Resample, SourceConfig
from recap.data.episodes import ACTION, INTERVENTION, STATE
from recap.data.images import decode_images
from recap.data.interventions import NOT, corrected, marked_by
from recap.data.lerobot_reader import COPY_AGAIN, DataSetFiles
from recap.data.listing import COUNTERS, Listing, Rows
from recap.data.statistics import QUANTILES, SPREAD
from recap.data.video import TOLERANCE, VideoFrames, nearest_pictures, read_video
from recap.method.config import SourceKind
from recap.utils.errors import disk_error

UNKNOWN = -1  # initial state and seed of data sets that do not record them
DECODE_ROWS = 2048  # image files held in memory at a time while decoding
KEPT_BYTES = 4 * 2**30  # decoded images of a camera that are kept in memory
HF_CACHE = "the cache of Hugging Face's datasets (HF_DATASETS_CACHE names another folder)"


@dataclass(frozen=True, eq=False)
class Frames:
    """One data set of N frames in E episodes. The arrays are shared by everyone who loads it, so they are read-only.

    Per frame: episode (0 to E - 1), episode_index (the data set's number of it), frame_index (at this frame rate),
    task_index, row (of the frame, or the one nearest in time, in the data set) int64 [N]; state float32 [N, Ds]; action
    float32 [N, Da]. Per episode: start (its first frame here), length, task (index into `tasks`), initial_state, seed
    int64 [E], the last two -1 where unknown; success bool [E]. corrected bool [N]: an operator acted, not the policy.
    outcomes: whether it is recorded how its episodes ended; they are corrections that count as successes if not.
    image_shapes: {camera key: (H, W, 3)}; videos: where cameras kept as video have each frame; recording: the episodes'
    frames before resampling. weight: relative to other configured data sets; None for the run's own rollouts.
    """

    files: DataSetFiles
    name: str
    kind: SourceKind
    weight: float | None
    fps: float
    tasks: list[str]
    image_shapes: dict[str, tuple[int, ...]]
    videos: dict[str, VideoFrames]
    recording: resample.Recording
    outcomes: bool
    episode: np.ndarray
    episode_index: np.ndarray
    frame_index: np.ndarray
    task_index: np.ndarray
    row: np.ndarray
    corrected: np.ndarray
    state: np.ndarray
    action: np.ndarray
    start: np.ndarray
    length: np.ndarray
    success: np.ndarray
    task: np.ndarray
    initial_state: np.ndarray
    seed: np.ndarray
    _decoded: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _mapped: list[Any] = field(default_factory=list, repr=False)
    _once: Lock = field(default_factory=Lock, repr=False)  # several threads read batches

    @property
    def root(self) -> Path:
        return self.files.root

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.image_shapes)

    def __len__(self) -> int:
        return len(self.episode_index)

    def source_of_frame(self) -> np.ndarray:
        """Names of SourceKind, object [N]: frames in which an operator acted are corrections in any data set."""
        return np.where(self.corrected, SourceKind.correction.name, self.kind.name).astype(object)

    def pixels(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3] RGB of a camera key in the frames `rows`, in their order, which may repeat."""
        shape = self._shape(camera)
        if camera in self.videos:
            return self._from_video(camera, rows)
        if camera in self._decoded or len(self) * np.prod(shape) <= KEPT_BYTES:
            return self.images(camera)[rows]
        return self._stored(camera, rows)

    def images(self, camera: str) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB of a camera key; decoded by the first call. Raises RecapError for a damaged image."""
        self._shape(camera)
        with self._once:
            if camera not in self._decoded:
                images = (
                    self._from_video(camera, np.arange(len(self))) if camera in self.videos else self._decode(camera)
                )
                images.flags.writeable = False
                self._decoded[camera] = images
        return self._decoded[camera]

    def _shape(self, camera: str) -> tuple[int, ...]:
        if camera not in self.cameras:
            raise self.files.error(f"no camera '{camera}'", f"it has {list(self.cameras)}")
        return self.image_shapes[camera]

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """Of observation.state and action over all frames: mean, std, and what `SPREAD` names; float32 [D] each."""
        result = {}
        for key, array in ((STATE, self.state), (ACTION, self.action)):
            found = {"mean": array.mean(0, dtype=np.float64), "std": array.std(0, dtype=np.float64)}
            names = [name for pair in SPREAD.values() for name in pair]
            found |= dict(zip(names, np.quantile(array, [QUANTILES[name] for name in names], axis=0), strict=True))
            result[key] = {name: value.astype(np.float32) for name, value in found.items()}
        return result

    def chunk_indices(self, i: np.ndarray | int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the next `horizon` frames from row i [*] on -> (rows int64 [*, H], is_pad bool [*, H]).

        Past the end of the episode the last row is repeated with is_pad True, as lerobot's delta_timestamps do.
        """
        first = np.asarray(i, np.int64)[..., None]
        episode = self.episode[first]
        last = self.start[episode] + self.length[episode] - 1
        rows = first + np.arange(horizon)
        return np.minimum(rows, last), rows > last

    def _decode(self, camera: str) -> np.ndarray:
        """Only of the frames that are taken: the rest of a large data set would fill the memory."""
        rows = np.unique(self.row)
        out = np.empty((len(rows), *self.image_shapes[camera]), np.uint8)
        first = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path in self.files.data_files:
                with self.files.images(path, [camera]) as file:
                    for batch in file.iter_batches(DECODE_ROWS, columns=[camera]):
                        low, high = np.searchsorted(rows, (first, first + len(batch)))
                        encoded = batch.column(camera).field("bytes").take(rows[low:high] - first).to_pylist()
                        self._decoded_into(out[low:high], camera, encoded, rows[low:high], pool, path)
                        first += len(batch)
        return out if np.array_equal(self.row, rows) else out[np.searchsorted(rows, self.row)]

    def _stored(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Through the memory-mapped copy that Hugging Face's `datasets` makes of the parquet files, once."""
        with self._once:
            if not self._mapped:
                self._mapped.append(self._copied())
        encoded = self._mapped[0][self.row[rows]][camera].combine_chunks().field("bytes").to_pylist()
        out = np.empty((len(rows), *self.image_shapes[camera]), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._decoded_into(out, camera, encoded, self.row[rows], pool)
        return out

    def _copied(self) -> Any:
        from datasets import Dataset, Features, Image
        from datasets.exceptions import DatasetGenerationError

        images = [key for key in self.cameras if key not in self.videos]  # those of videos are no columns
        for path in self.files.data_files:
            with self.files.images(path, images):
                pass  # only to check that it has them
        files, features = [str(path) for path in self.files.data_files], Features({key: Image() for key in images})
        try:
            return Dataset.from_parquet(files, columns=images, features=features).with_format("arrow")
        except (DatasetGenerationError, OSError) as error:
            cause = error.__cause__ or error
            if refusal := disk_error(cause, HF_CACHE, "cannot copy the images into"):
                raise refusal from error
            said = str(cause).splitlines()[0]
            raise self.files.error(f"its data files are damaged or truncated ({said})", COPY_AGAIN) from error

    def _decoded_into(
        self,
        out: np.ndarray,
        camera: str,
        encoded: list[bytes | None],
        rows: np.ndarray,
        pool: ThreadPoolExecutor,
        path: Path | None = None,
    ) -> None:
        """Decodes the images of these rows of the data set."""
        try:
            decode_images(encoded, out, pool, rows)
        except ValueError as error:
            where = f" in {path.relative_to(self.root)}" if path else ""
            raise self.files.error(f"{camera}{where}: {error}", COPY_AGAIN) from error

    def _from_video(self, camera: str, rows: np.ndarray) -> np.ndarray:
        """Each file's frames in order, whatever the order of `rows`."""
        videos = self.videos[camera].of(rows)
        out = np.empty((len(rows), *self.image_shapes[camera]), np.uint8)
        for path, wanted in videos.by_file():
            found = np.empty((len(wanted), *out.shape[1:]), np.uint8)
            with self._decoding(path, videos.time[wanted]):
                read_video(path, videos.time[wanted], found, self.files.info["fps"])
            out[wanted] = found
        return out

    def check_videos(self) -> None:
        """Each video has a picture for each of its frames, and can be decoded to the last. Raises RecapError."""
        for camera, videos in self.videos.items():
            for path, rows in videos.by_file():
                times = videos.time[rows]
                with self._decoding(path, times):
                    nearest = nearest_pictures(path, times)
                wrong = np.flatnonzero(np.abs(nearest - times) >= TOLERANCE)
                if len(wrong):
                    at = f"at {times[wrong[0]]:.3f} s (from_timestamp + timestamp), but the nearest one there is"
                    first = (
                        f"episode {self.episode_index[rows[wrong[0]]]} has a picture {at} at {nearest[wrong[0]]:.3f} s"
                    )
                    problem, bad = f"{path.relative_to(self.root)}: {first}", self.episode_index[rows[wrong]]
                    raise self.files.refusal(problem, bad, np.unique(self.episode_index))
                self._from_video(camera, rows[-1:])

    @contextmanager
    def _decoding(self, path: Path, times: np.ndarray) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the decoders raise errors of many kinds; all mean that the file is bad
            said = (str(error).splitlines() or [type(error).__name__])[0]
            problem = f"cannot be decoded at {times[0]:.2f} to {times[-1]:.2f} s ({said})"
            raise self.files.error(f"{path.relative_to(self.root)} {problem}", COPY_AGAIN) from error


# ---------------------------------------------------------------------------------------------------- loading
_loaded: dict[tuple, tuple[int, Frames]] = {}


def load_frames(
    root: Path,
    name: str,
    kind: SourceKind,
    source: SourceConfig | None = None,
    action_freq: float | None = None,
    vectors: Resample = Resample.nearest,
) -> Frames:
    """Read the LeRobotDataset v3 at `root`; again in this process it is free as long as its info.json is unchanged.

    name: its name in messages, batches and labels; kind: the source of its episodes; source: its configuration, None
    for what the run records itself. action_freq: the frame rate to resample to, None: as recorded; vectors: how states
    and actions are resampled.
    Raises RecapError if `root` is no complete and consistent data set of this format, or if outcomes are not known.
    """
    root = Path(root)
    info = root / "meta/info.json"
    changed = info.stat().st_mtime_ns if info.is_file() else -1
    key = (root.resolve(), name, kind, repr(source), action_freq, vectors)
    for old in [old for old, (time, _) in _loaded.items() if old[0] == key[0] and time != changed]:
        del _loaded[old]
    if key not in _loaded:
        files = DataSetFiles(root, name, None if source is None else f"data.sources.{name}")
        settings = source or SourceConfig(interventions=INTERVENTION if INTERVENTION in files.features else None)
        _loaded[key] = (changed, _load(files, kind, settings, action_freq, vectors))
    return _loaded[key][1]


def _load(
    files: DataSetFiles, kind: SourceKind, source: SourceConfig, action_freq: float | None, vectors: Resample
) -> Frames:
    shapes = image_shapes(files, source.cameras)
    missing = [key for key in (STATE, ACTION) if key not in files.features]
    if missing:
        raise files.error(f"it has no {missing}", f"π0 needs both; its features are {list(files.features)}")
    mark = marked_by(files, source.interventions)
    flags = [key for key in ("next.success", mark and mark.removeprefix(NOT)) if key in files.features]
    table = files.table(files.data_files, [*COUNTERS, STATE, ACTION, *flags])
    if table.num_rows == 0:
        raise files.error(
            "it holds no frames", COPY_AGAIN if files.info["total_frames"] else "record some episodes first"
        )

    listing = Listing(files, source.episodes)
    rows = listing.rows(table)
    table = table.take(pa.array(rows.row))
    state, action = (_vectors(files, table, key, rows) for key in (STATE, ACTION))
    tasks, task_index = files.tasks(rows.task_index)
    rows = replace(rows, task_index=task_index)
    task = listing.tasks(rows, tasks)
    recorded = [
        episode for episode in files.recorded_episodes(listing.count) if episode["episode_index"] in rows.episode
    ]
    operated = corrected(files, table, mark) | (kind is SourceKind.correction)
    outcomes = bool(recorded) or source.all_succeed or "next.success" in files.features
    videos = {key: listing.videos(key, rows) for key in shapes if files.features[key]["dtype"] == "video"}

    fps = source.fps or files.info["fps"]
    ratio = fps / (action_freq or fps)
    if ratio != 1 and source.fps is None:
        _check_fps(files, rows, fps)
    position, new_length = resample.positions(rows.length, ratio)
    first = np.repeat(rows.start, new_length)
    nearest = first + resample.nearest(position)
    if vectors is Resample.linear and ratio != 1:
        state, action = (resample.linear(array, first, position) for array in (state, action))
    else:
        state, action = state[nearest], action[nearest]
    new_start = np.cumsum(new_length) - new_length
    unknown = [UNKNOWN] * len(listing.chosen)
    arrays = {
        "episode": np.repeat(np.arange(len(new_length)), new_length),
        "episode_index": rows.episode[nearest],
        "frame_index": np.arange(len(nearest)) - np.repeat(new_start, new_length),
        "task_index": rows.task_index[nearest],
        "row": rows.row[nearest],
        "corrected": operated[nearest],
        "state": state,
        "action": action,
        "start": new_start,
        "length": new_length,
        "success": _success(files, recorded, table, rows.start, source.all_succeed, operated),
        "task": task,
        "initial_state": np.array([e["initial_state"] for e in recorded] or unknown, np.int64),
        "seed": np.array([e["seed"] for e in recorded] or unknown, np.int64),
    }
    for array in arrays.values():
        array.flags.writeable = False
    videos = {key: frames.of(nearest) for key, frames in videos.items()}
    recording = resample.Recording(rows.episode, rows.timestamp, resample.back(rows.length, ratio, new_length))
    weight = source.weight if files.key is not None or kind is SourceKind.demonstration else None
    fps = action_freq or fps
    return Frames(files, files.name, kind, weight, fps, tasks, shapes, videos, recording, outcomes, **arrays)


def _vectors(files: DataSetFiles, table: pa.Table, key: str, rows: Rows) -> np.ndarray:
    """float32 [N, D], finite, of the size in info.json."""
    found = files.vectors(table, key)
    files.check_finite(key, found, rows.episode, rows.frame_index)
    shape = files.features[key].get("shape")
    if shape is not None and math.prod(shape) != found.shape[1]:
        raise files.error(f"{key} of dimension {found.shape[1]} in data/ has shape {shape} in info.json", COPY_AGAIN)
    return found


def _check_fps(files: DataSetFiles, rows: Rows, fps: float) -> None:
    """Resampling relies on fps, which timestamps can contradict."""
    step = resample.usual_step(rows.timestamp, rows.start)
    if step is not None and abs(step * fps - 1) > resample.UNEVEN:
        problem = f"its timestamps are {step:.4g} s apart, which are {1 / step:.4g} frames a second, but info.json says"
        raise files.error(
            f"{problem} fps={fps:g}", f"set the one that is right: ++{files.key}.fps={max(1, round(1 / step))}"
        )


def _success(
    files: DataSetFiles,
    recorded: list[dict],
    table: pa.Table,
    start: np.ndarray,
    all_succeed: bool,
    operated: np.ndarray,
) -> np.ndarray:
    if recorded:
        success = np.array([episode["success"] for episode in recorded], bool)
        if all_succeed and not success.all():
            failures = f"{np.sum(~success)} of its {len(success)} episodes are recorded as failures"
            raise files.error(f"all_succeed=true, but {failures}", f"++data.sources.{files.name}.all_succeed=false")
        return success
    if all_succeed:  # the user's setting overrides a third party's column, which simulators often leave false
        return np.ones(len(start), bool)
    if "next.success" in table.column_names:
        return np.logical_or.reduceat(files.numbers(table, "next.success") > 0, start)
    if operated.all():  # by lerobot's DAgger: windows of corrections, which nobody judged
        return np.ones(len(start), bool)
    problem = "it does not say which episodes succeeded (no meta/recap.json, no next.success)"
    raise files.error(problem, f"if all of them did: ++data.sources.{files.name}.all_succeed=true")
