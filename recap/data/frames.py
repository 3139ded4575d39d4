"""A LeRobotDataset v3 as arrays: everything but images at once, images of a camera when first asked for, then kept.

Training draws the same small frames thousands of times, so they are decoded once and not once a batch. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from recap.config import SourceKind
from recap.data.encoding import decode_images
from recap.data.episodes import ACTION, STATE
from recap.data.lerobot_v3 import COPY_AGAIN, DataSetFiles

UNKNOWN = -1  # initial state and seed of data sets that do not record them
DECODE_ROWS = 2048  # image files held in memory at a time while decoding


@dataclass(frozen=True, eq=False)
class Frames:
    """One data set of N frames in E episodes. The arrays are shared by everyone who loads it, so they are read-only.

    Per frame: episode_index, frame_index, task_index int64 [N]; state float32 [N, Ds]; action float32 [N, Da].
    Per episode: start (row of its first frame), length, task (index into `tasks`), initial_state, seed int64 [E], the
    last two -1 where unknown; success bool [E]. image_shapes: {camera key: (H, W, 3)}.
    """

    files: DataSetFiles
    name: str
    kind: SourceKind
    fps: int
    tasks: list[str]
    image_shapes: dict[str, tuple[int, ...]]
    episode_index: np.ndarray
    frame_index: np.ndarray
    task_index: np.ndarray
    state: np.ndarray
    action: np.ndarray
    start: np.ndarray
    length: np.ndarray
    success: np.ndarray
    task: np.ndarray
    initial_state: np.ndarray
    seed: np.ndarray
    _decoded: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def root(self) -> Path:
        return self.files.root

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.image_shapes)

    def __len__(self) -> int:
        return len(self.episode_index)

    def images(self, camera: str) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB of a camera key; decoded by the first call. Raises RecapError for a damaged image."""
        if camera not in self.cameras:
            raise self.files.error(f"no camera '{camera}'", f"it has {list(self.cameras)}")
        if camera not in self._decoded:
            images = self._decode(camera)
            images.flags.writeable = False
            self._decoded[camera] = images
        return self._decoded[camera]

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """{"observation.state": {"mean", "std"}, "action": {"mean", "std"}}, float32 [D] each, over all frames."""
        result = {}
        for key, array in ((STATE, self.state), (ACTION, self.action)):
            mean, std = array.mean(0, dtype=np.float64), array.std(0, dtype=np.float64)
            result[key] = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        return result

    def chunk_indices(self, i: np.ndarray | int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the next `horizon` frames from row i [*] on -> (rows int64 [*, H], is_pad bool [*, H]).

        Past the end of the episode the last row is repeated with is_pad True, as lerobot's delta_timestamps do.
        """
        first = np.asarray(i, np.int64)[..., None]
        episode = self.episode_index[first]
        last = self.start[episode] + self.length[episode] - 1
        rows = first + np.arange(horizon)
        return np.minimum(rows, last), rows > last

    def _decode(self, camera: str) -> np.ndarray:
        out = np.empty((len(self), *self.image_shapes[camera]), np.uint8)
        row = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path in self.files.data_files:
                with self.files.parquet(path, [camera]) as file:
                    for batch in file.iter_batches(DECODE_ROWS, columns=[camera]):
                        encoded = batch.column(camera).field("bytes").to_pylist()
                        try:
                            decode_images(encoded, out[row : row + len(encoded)], pool)
                        except ValueError as error:
                            problem = f"{camera} in {path.relative_to(self.root)} from frame {row} on: {error}"
                            raise self.files.error(problem, COPY_AGAIN) from error
                        row += len(encoded)
        return out


# ---------------------------------------------------------------------------------------------------- loading
_loaded: dict[tuple, tuple[int, Frames]] = {}


def load_frames(
    root: Path, name: str, kind: SourceKind, all_succeed: bool = False, cameras: Sequence[str] | None = None
) -> Frames:
    """Read the LeRobotDataset v3 at `root`; again in this process it is free as long as its info.json is unchanged.

    name: its name in messages, batches and labels; kind: the source of its episodes; cameras: image keys to offer.
    all_succeed: take every episode as a success, for data sets without outcomes (meta/recap.json or next.success).
    Raises RecapError if `root` is no complete and consistent data set of this format, or if outcomes are not known.
    """
    root = Path(root)
    info = root / "meta/info.json"
    changed = info.stat().st_mtime_ns if info.is_file() else -1
    key = (root.resolve(), name, kind, all_succeed, None if cameras is None else tuple(cameras))
    for old in [old for old, (time, _) in _loaded.items() if old[0] == key[0] and time != changed]:
        del _loaded[old]
    if key not in _loaded:
        _loaded[key] = (changed, _load(DataSetFiles(root, name), kind, all_succeed, cameras))
    return _loaded[key][1]


def _load(files: DataSetFiles, kind: SourceKind, all_succeed: bool, cameras: Sequence[str] | None) -> Frames:
    image_shapes = files.image_shapes(cameras)
    missing = [key for key in (STATE, ACTION) if key not in files.features]
    if missing:
        raise files.error(f"it has no {missing}", f"π0 needs both; its features are {list(files.features)}")
    counters = ["episode_index", "frame_index", "task_index"]
    flags = ["next.success"] if "next.success" in files.features else []
    table = files.table(files.data_files, [*counters, STATE, ACTION, *flags])
    if table.num_rows == 0:
        raise files.error("it holds no frames", "record some episodes first")

    episode_index, frame_index, task_index = (files.integers(table, key) for key in counters)
    start, length = files.check_episodes(episode_index, frame_index)
    state, action = files.vectors(table, STATE), files.vectors(table, ACTION)
    files.check_finite(STATE, state, episode_index, frame_index)
    files.check_finite(ACTION, action, episode_index, frame_index)
    tasks = files.tasks()
    if not 0 <= task_index.min() <= task_index.max() < len(tasks):
        raise files.error(f"task_index {task_index.max()} is none of {len(tasks)} in meta/tasks.parquet", COPY_AGAIN)
    recorded = files.recorded_episodes(len(start))
    arrays = {
        "episode_index": episode_index,
        "frame_index": frame_index,
        "task_index": task_index,
        "state": state,
        "action": action,
        "start": start,
        "length": length,
        "success": _success(files, recorded, table, start, all_succeed),
        "task": task_index[start],
        "initial_state": np.array([e["initial_state"] for e in recorded] or [UNKNOWN] * len(start), np.int64),
        "seed": np.array([e["seed"] for e in recorded] or [UNKNOWN] * len(start), np.int64),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return Frames(files, files.name, kind, files.info["fps"], tasks, image_shapes, **arrays)


def _success(
    files: DataSetFiles, recorded: list[dict], table: pa.Table, start: np.ndarray, all_succeed: bool
) -> np.ndarray:
    if recorded:
        success = np.array([episode["success"] for episode in recorded], bool)
        if all_succeed and not success.all():
            failures = f"{np.sum(~success)} of its {len(success)} episodes are recorded as failures"
            raise files.error(f"all_succeed=true, but {failures}", "set all_succeed=false")
        return success
    if all_succeed:  # the user's word goes before a third party's column, which simulators often leave false
        return np.ones(len(start), bool)
    if "next.success" in table.column_names:
        return np.logical_or.reduceat(files.integers(table, "next.success") > 0, start)
    problem = "it does not say which episodes succeeded (no meta/recap.json, no next.success)"
    raise files.error(problem, "if all of them did, set all_succeed=true")
