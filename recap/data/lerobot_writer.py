"""The recorder: `write_episode` while simulating, `finished` to go on after a kill, `assemble` into one data set.

`assemble` streams the episode files, in index order, into the layout that lerobot 0.6 writes and reads (LeRobotDataset
v3.0; images inside the parquet files, or one video file for each episode and camera). It writes the format itself:
lerobot's own recorder would encode every image again, and importing it costs seconds.
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
    film_path,
    finished,
    parquet_writer,
    sync,
    write_episode,
)
from recap.data.images import aggregate_stats, feature_stats
from recap.data.video import video_info
from recap.utils.errors import RecapError

__all__ = ["Episode", "assemble", "finished", "write_episode"]

CODEBASE_VERSION = "v3.0"  # of lerobot's data format
FILE_SIZE_MB, FILES_PER_CHUNK = 100, 1000  # lerobot's defaults
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODE_KEYS = ("episode_index", "task", "success", "steps", "initial_state", "seed", "split", "choice")


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
    facts = [{key: episode[key] for key in EPISODE_KEYS if key in episode} for episode in episodes]
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
        features[STATE]["names"] = _names(STATE, features, state_names)
        features[ACTION]["names"] = _names(ACTION, features, action_names)
        _write_info(partial, features, rows, tasks, fps, robot_type)
        _write_tasks(partial, tasks)
        _write_episodes(partial, rows)
        _write_json(
            partial / "meta/stats.json", {key: aggregate_stats([row["stats"][key] for row in rows]) for key in features}
        )
        _write_json(partial / "meta/recap.json", recap)
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
    """Write data/; returns the features of info.json and the rows of meta/episodes, the latter with a dict "stats"."""
    features: dict[str, dict] = {}
    rows: list[dict[str, Any]] = []
    start = 0
    with _DataFiles(root / "data") as files:
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
            found = _features(table.schema, episode["image_shapes"], episode["film"])
            features = features or found
            if found != features:
                key = next(key for key in {**features, **found} if features.get(key) != found.get(key))
                raise RecapError(
                    f"{path}: {key} is {found.get(key)}, but in episode 0 it is {features.get(key)}; "
                    "record all episodes of a folder in the same environment"
                )
            chunk, file = files.write(table, features)
            films = _move_films(root, folder, episode) if episode["film"] is not None else {}
            rows.append(
                {
                    "episode_index": index,
                    "tasks": [episode["task"]],
                    "length": length,
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "dataset_from_index": start,
                    "dataset_to_index": start + length,
                    **films,
                    "stats": stats,
                }
            )
            start += length
    return features, rows


def _move_films(root: Path, folder: Path, episode: dict[str, Any]) -> dict[str, Any]:
    """Puts the videos of an episode where lerobot looks for them; what meta/episodes says about them."""
    index, seconds = episode["episode_index"], episode["steps"] / episode["film"]
    chunk, file = divmod(index, FILES_PER_CHUNK)
    found: dict[str, Any] = {}
    for key in episode["image_shapes"]:
        source = film_path(folder, index, key)
        if not source.is_file():
            raise RecapError(
                f"{source} is missing; delete {folder / f'{index:06d}.parquet'} and run the recording again: "
                "only this episode is repeated"
            )
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
        raise RecapError(
            f"{path} is damaged ({error}); delete it and run the recording again: only this episode is repeated"
        ) from error


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
        kept = {key: feature for key, feature in features.items() if feature["dtype"] != "video"}
        hf_features = {"info": {"features": _hf_features(kept)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(hf_features)})
        if self.writer is None or self.size + table.nbytes > FILE_SIZE_MB * 2**20:
            self.__exit__()
            self.number, self.size = self.number + 1, 0
            path = self.root / "chunk-{:03d}/file-{:03d}.parquet".format(*divmod(self.number, FILES_PER_CHUNK))
            path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = parquet_writer(str(path), table.schema)
        self.writer.write_table(table)
        self.size += table.nbytes
        chunk, file = divmod(self.number, FILES_PER_CHUNK)
        return chunk, file


def _features(schema: pa.Schema, image_shapes: dict[str, list[int]], film: float | None) -> dict[str, dict]:
    """The `features` of info.json, dimensions not yet named."""
    features: dict[str, dict] = {}
    if film is not None:
        names = ["height", "width", "channel"]
        for key, shape in image_shapes.items():
            features[key] = {"dtype": "video", "shape": shape, "names": names, "info": video_info(shape, film)}
    for field in schema:
        if field.type == IMAGE:
            shape, names = image_shapes[field.name], ["height", "width", "channel"]
            features[field.name] = {"dtype": "image", "shape": shape, "names": names}
        else:
            is_vector = pa.types.is_fixed_size_list(field.type)
            dtype = str(field.type.value_type if is_vector else field.type)
            dtype = "float32" if dtype == "float" else dtype  # Arrow's name of it
            features[field.name] = {
                "dtype": dtype,
                "shape": [field.type.list_size if is_vector else 1],
                "names": None,
            }
    return features


def _hf_features(features: dict[str, dict]) -> dict[str, dict]:
    """The same in the words of Hugging Face's `datasets`, whose viewer shows images only where the file says so."""
    result: dict[str, dict] = {}
    for key, feature in features.items():
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["dtype"] == "image":
            result[key] = {"_type": "Image"}
        elif feature["shape"] == [1]:
            result[key] = value
        else:
            result[key] = {"feature": value, "length": feature["shape"][0], "_type": "List"}
    return result


def _names(key: str, features: dict[str, dict], names: Sequence[str] | None) -> list[str]:
    size = features[key]["shape"][0]
    if names is not None and len(names) != size:
        raise RecapError(f"{key} has {size} dimensions but {len(names)} names were given: {list(names)}")
    return list(names) if names is not None else [f"{key.rpartition('.')[2]}_{i}" for i in range(size)]


# ---------------------------------------------------------------------------------------------------- meta/
def _write_info(
    root: Path, features: dict, rows: list[dict[str, Any]], tasks: list[str], fps: int, robot_type: str | None
) -> None:
    info = {
        "codebase_version": CODEBASE_VERSION,
        "fps": fps,
        "features": features,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": FILE_SIZE_MB,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": VIDEO_PATH if any(f["dtype"] == "video" for f in features.values()) else None,
        "robot_type": robot_type,
        "splits": {"train": f"0:{len(rows)}"},
    }
    _write_json(root / "meta/info.json", info)


def _write_tasks(root: Path, tasks: list[str]) -> None:
    import pandas as pd  # lerobot reads the instructions as a pandas index; workers need not wait for this import

    table = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))
    table.to_parquet(root / "meta/tasks.parquet")


def _write_episodes(root: Path, rows: list[dict[str, Any]]) -> None:
    flat = []
    for row in rows:
        stats = {f"stats/{key}/{name}": v for key, values in row["stats"].items() for name, v in values.items()}
        place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        flat.append({key: value for key, value in row.items() if key != "stats"} | stats | place)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(flat), path)


def _readme(source: str, episodes: int, fps: int, tasks: list[str]) -> str:
    """The dataset card: the header tells the hub's viewer where the data is, as lerobot's card does."""
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


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
