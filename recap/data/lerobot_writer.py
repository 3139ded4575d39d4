"""The recorder: `write_episode` while simulating, `finished` to go on after a kill, `assemble` into one data set.

`assemble` streams the episode files, in index order, into a LeRobotDataset v3.0: meta/ with lerobot's own functions,
data/ without them, because lerobot's recorder would decode and encode every image again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap.data.episodes import (
    ACTION,
    IMAGE,
    STATE,
    Episode,
    disk,
    finished,
    parquet_writer,
    sync,
    video_path,
    write_episode,
)
from recap.data.images import feature_stats
from recap.data.metadata import DATA_PATH, VIDEO_PATH
from recap.data.video import video_info
from recap.utils.errors import RecapError

__all__ = ["Episode", "assemble", "finished", "write_episode"]

FILE_SIZE_MB, FILES_PER_CHUNK = 100, 1000  # lerobot's defaults
EPISODE_KEYS = ("episode_index", "task", "success", "steps", "initial_state", "seed", "split")
FURTHER_KEYS = ("choice", "choice_frame", "corrected_from")  # of some episodes
AGAIN = "delete {} and run the recording again: only this episode is repeated"


def assemble(
    folder: Path,
    out: Path,
    *,
    fps: int,
    source: str,
    checkpoint: str | None = None,
    env: Mapping[str, Any] | None = None,
    robot_type: str | None = None,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
) -> Path:
    """Build the LeRobotDataset v3 at `out` from the episode files in `folder`; one episode in memory at a time.

    Built in `<out>.tmp`, then renamed: `out` is complete or absent. If it holds these episodes already, it is kept.
    fps: control steps a second; source: demonstration | rollout | correction; checkpoint: the policy that acted; env:
    what `meta/recap.json` says about the environment; state_names, action_names: names of the dimensions.
    Raises RecapError if episodes are missing, damaged, or differ in source or shapes, or if `out` holds other episodes.
    """
    folder, out = Path(folder), Path(out)
    episodes = list(finished(folder).values())
    _check_plan(folder, episodes, source)
    facts = [{key: episode[key] for key in (*EPISODE_KEYS, *FURTHER_KEYS) if key in episode} for episode in episodes]
    recap = {"source": source, "checkpoint": checkpoint, "env": dict(env or {}), "fps": fps, "episodes": facts}
    if out.exists():
        if _read_json(out / "meta/recap.json") == json.loads(json.dumps(recap)):
            return out
        raise RecapError(f"{out} exists and holds other episodes than {folder}; move it away or choose another output")

    tasks = list(dict.fromkeys(episode["task"] for episode in episodes))
    partial = out.with_name(out.name + ".tmp")
    with disk(out):
        shutil.rmtree(partial, ignore_errors=True)
        features, rows = _write_data(partial, folder, episodes, tasks, fps)
        for key, names in ((STATE, state_names), (ACTION, action_names)):
            features[key]["names"] = _names(key, features, names)
        _write_meta(partial, features, rows, tasks, fps, robot_type)
        (partial / "meta/recap.json").write_text(json.dumps(recap, indent=4, ensure_ascii=False), encoding="utf-8")
        (partial / "README.md").write_text(_readme(source, len(episodes), fps, tasks), encoding="utf-8")
        for path in partial.rglob("*"):
            sync(path)
        os.replace(partial, out)
        sync(out.parent)
    return out


def _check_plan(folder: Path, episodes: list[dict[str, Any]], source: str) -> None:
    if not episodes:
        raise RecapError(f"no finished episodes in {folder}; record some first")
    missing = sorted(set(range(episodes[-1]["episode_index"] + 1)) - {episode["episode_index"] for episode in episodes})
    if missing:
        raise RecapError(
            f"{folder}: {len(missing)} episodes are not recorded, the first ones {missing[:10]}; "
            "run the recording again to finish them"
        )
    for episode in episodes:
        if episode["source"] != source:
            raise RecapError(
                f"{folder}: episode {episode['episode_index']} is a {episode['source']}, not a {source}; "
                "keep the sources in separate folders"
            )


# ---------------------------------------------------------------------------------------------------- data/
def _write_data(
    root: Path, folder: Path, episodes: list[dict[str, Any]], tasks: list[str], fps: int
) -> tuple[dict[str, dict], list[dict[str, Any]]]:
    """Write data/ and videos/; returns the features of info.json and the rows of meta/episodes, with a dict "stats"."""
    features: dict[str, dict] = {}
    rows: list[dict[str, Any]] = []
    start = 0
    with _DataFiles(root) as files:
        for episode in episodes:
            index, length = episode["episode_index"], episode["steps"]
            path = folder / f"{index:06d}.parquet"
            table = _read_episode(path)
            stats = json.loads(table.schema.metadata[b"recap.stats"])
            counters = {
                "timestamp": (np.arange(length) / fps).astype(np.float32),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": start + np.arange(length),
                "task_index": np.full(length, tasks.index(episode["task"])),
            }
            for key, array in counters.items():
                table = table.append_column(key, pa.array(array))
                stats[key] = feature_stats(array)
            found = _features(table.schema, episode)
            features = features or found
            if found != features:
                key = next(key for key in {**features, **found} if features.get(key) != found.get(key))
                raise RecapError(
                    f"{path}: {key} is {found.get(key)}, but in episode 0 it is {features.get(key)}; "
                    "record all episodes of a folder in the same environment"
                )
            chunk, file = files.write(table, features)
            place = {
                "episode_index": index,
                "tasks": [episode["task"]],
                "length": length,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
            }
            rows.append(place | _move_videos(root, folder, episode) | {"stats": stats})
            start += length
    return features, rows


def _move_videos(root: Path, folder: Path, episode: dict[str, Any]) -> dict[str, Any]:
    """Puts the videos of an episode where lerobot looks for them; returns what meta/episodes says about them."""
    found: dict[str, Any] = {}
    if episode["video_fps"] is None:
        return found
    index, seconds = episode["episode_index"], episode["steps"] / episode["video_fps"]
    chunk, file = divmod(index, FILES_PER_CHUNK)
    for key in episode["image_shapes"]:
        source = video_path(folder, index, key)
        if not source.is_file():
            raise RecapError(f"{source} is missing; {AGAIN.format(folder / f'{index:06d}.parquet')}")
        path = root / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:  # a file system without links
            shutil.copy2(source, path)
        place = {"chunk_index": chunk, "file_index": file, "from_timestamp": 0.0, "to_timestamp": seconds}
        found |= {f"videos/{key}/{name}": value for name, value in place.items()}
    return found


def _read_episode(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise RecapError(f"{path} is damaged ({error}); {AGAIN.format('it')}") from error


class _DataFiles:
    """data/chunk-000/file-000.parquet and on, each up to FILE_SIZE_MB, one row group an episode, as lerobot records."""

    def __init__(self, root: Path) -> None:
        self.root, self.number, self.size = root, -1, 0
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, table: pa.Table, features: dict[str, dict]) -> tuple[int, int]:
        """Append one episode; returns its chunk index and file index."""
        if self.writer is None or self.size + table.nbytes > FILE_SIZE_MB * 2**20:
            self.__exit__()
            self.number, self.size = self.number + 1, 0
            chunk, file = divmod(self.number, FILES_PER_CHUNK)
            path = self.root / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = parquet_writer(str(path), table.schema.with_metadata(_hf_metadata(features)))
        self.writer.write_table(table.replace_schema_metadata(self.writer.schema.metadata))
        self.size += table.nbytes
        return divmod(self.number, FILES_PER_CHUNK)


def _features(schema: pa.Schema, episode: dict[str, Any]) -> dict[str, dict]:
    """The `features` of info.json, dimensions not yet named."""
    features: dict[str, dict] = {}
    fps = episode["video_fps"]
    for key, shape in episode["image_shapes"].items():
        features[key] = {"dtype": "image", "shape": tuple(shape), "names": ["height", "width", "channel"]}
        if fps is not None:
            features[key] |= {"dtype": "video", "info": video_info(shape, fps)}
    for field in schema:
        if field.type == IMAGE:
            continue
        vector = pa.types.is_fixed_size_list(field.type)
        number, size = (field.type.value_type, field.type.list_size) if vector else (field.type, 1)
        features[field.name] = {"dtype": np.dtype(number.to_pandas_dtype()).name, "shape": (size,), "names": None}
    return features


def _hf_metadata(features: dict[str, dict]) -> dict[bytes, bytes]:
    """What Hugging Face's viewer wants in the parquet files: it shows images only where they are declared."""
    from lerobot.datasets.feature_utils import get_hf_features_from_features  # not at the top: it takes seconds

    metadata: dict[bytes, bytes] = get_hf_features_from_features(features).arrow_schema.metadata
    return metadata


def _names(key: str, features: dict[str, dict], names: Sequence[str] | None) -> list[str]:
    size = features[key]["shape"][0]
    if names is not None and len(names) != size:
        raise RecapError(f"{key} has {size} dimensions but {len(names)} names: {list(names)}")
    return list(names) if names is not None else [f"{key.rpartition('.')[2]}_{i}" for i in range(size)]


# ---------------------------------------------------------------------------------------------------- meta/
def _write_meta(
    root: Path,
    features: dict[str, dict],
    rows: list[dict[str, Any]],
    tasks: list[str],
    fps: int,
    robot_type: str | None,
) -> None:
    """info.json, stats.json, tasks.parquet and episodes/, as lerobot writes them."""
    import pandas as pd
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
    from lerobot.datasets.feature_utils import create_empty_dataset_info
    from lerobot.datasets.io_utils import cast_stats_to_numpy, write_info, write_stats, write_tasks
    from lerobot.datasets.utils import DEFAULT_EPISODES_PATH
    from lerobot.utils.utils import flatten_dict

    videos = any(feature["dtype"] == "video" for feature in features.values())
    info = create_empty_dataset_info(CODEBASE_VERSION, fps, features, videos, robot_type, FILES_PER_CHUNK, FILE_SIZE_MB)
    info.total_episodes, info.total_frames, info.total_tasks = len(rows), rows[-1]["dataset_to_index"], len(tasks)
    info.splits = {"train": f"0:{len(rows)}"}
    write_info(info, root)
    write_tasks(pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task")), root)
    stats = aggregate_stats([cast_stats_to_numpy(row["stats"]) for row in rows])
    write_stats({key: stats[key] for key in features}, root)  # lerobot's order differs from process to process
    path = root / DEFAULT_EPISODES_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    pq.write_table(pa.Table.from_pylist([flatten_dict(row) | place for row in rows]), path)


def _readme(source: str, episodes: int, fps: int, tasks: list[str]) -> str:
    """The dataset card: its header points the hub's viewer to the data, as lerobot's card does."""
    listed = "\n".join(f"- {task}" for task in tasks)
    return f"""---
license: apache-2.0
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---

A [LeRobot](https://github.com/huggingface/lerobot) data set (v3.0): {episodes} episodes at {fps} Hz, source: {source}.
Outcome, initial state and seed of every episode, and the checkpoint that acted, are in `meta/recap.json`.

Tasks:
{listed}
"""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
