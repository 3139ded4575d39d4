"""A LeRobotDataset v3 on disk, read with pyarrow alone. What is broken or of another version is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recap.errors import RecapError

INFO_KEYS = ("codebase_version", "fps", "features", "total_frames", "total_episodes")
COPY_AGAIN = "copy the data set again, or record it again"


@dataclass(frozen=True)
class Clips:
    """Frames in video files: `paths[file[i]]` at `time[i]` seconds holds frame i; file int32 [N], time float64 [N]."""

    paths: list[Path]
    file: np.ndarray
    time: np.ndarray

    def of(self, rows: np.ndarray) -> Clips:
        """Those of some frames."""
        return Clips(self.paths, self.file[rows], self.time[rows])


class DataSetFiles:
    """The files under `root`; `name` is the data set's name in messages. Every method raises RecapError."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        if not root.is_dir():
            raise self.error("there is no such folder", "give the folder of a LeRobotDataset v3 (the one with meta/)")
        info = self.json("meta/info.json")
        if info is None:
            held = sorted(path.name for path in root.iterdir())[:5]
            raise self.error(f"no meta/info.json, the folder holds {held}", "give the folder of a LeRobotDataset v3")
        missing = [key for key in INFO_KEYS if key not in info]
        if missing:
            raise self.error(f"meta/info.json has no {missing}", "give the folder of a LeRobotDataset v3")
        version = str(info["codebase_version"])
        if version.startswith("v2."):
            converter = "python -m lerobot.scripts.convert_dataset_v21_to_v30"
            command = f"{converter} --repo-id=<its name> --root={root} --push-to-hub=false"
            raise self.error(f"its format is {version}, not v3.0", f"convert it first: {command}")
        if not version.startswith("v3."):
            raise self.error(f"its format is {version}, not v3.0", "only LeRobotDataset v3 is read")
        self.info = info
        self.features: dict[str, dict[str, Any]] = info["features"]

    def error(self, problem: str, fix: str) -> RecapError:
        if fix == COPY_AGAIN and next(self.root.glob(".cache/huggingface/download/**/*.incomplete"), None):
            fix = "it was not downloaded to the end: give the same `hf download` again"
        return RecapError(f"data set '{self.name}' ({self.root}): {problem}; {fix}")

    @property
    def data_files(self) -> list[Path]:
        return self.parquet_files("data")  # in frame order

    def parquet_files(self, folder: str) -> list[Path]:
        """<folder>/*/*.parquet, in the order in which lerobot takes them.

        Without hidden ones, which hold no frames: a Mac's copy leaves ._file-000.parquet beside file-000.parquet.
        """
        found = sorted((self.root / folder).glob("*/*.parquet"))
        return [path for path in found if not any(part.startswith(".") for part in path.parts[-2:])]

    def json(self, path: str) -> dict[str, Any] | None:
        """The object in a JSON file, None if there is no such file."""
        try:
            content = json.loads((self.root / path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self.error(f"{path} is damaged or truncated ({error})", COPY_AGAIN) from error
        if not isinstance(content, dict):
            raise self.error(f"{path} holds no JSON object", COPY_AGAIN)
        return content

    @contextmanager
    def parquet(self, path: Path, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """An open parquet file that has these columns; damage found while reading it is reported, too."""
        where = path.relative_to(self.root)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                missing = [key for key in columns if key not in file.schema_arrow.names]
                if missing:
                    held = ", ".join(file.schema_arrow.names[:10])
                    raise self.error(f"{where} has no column {missing}, but {held} …", COPY_AGAIN)
                yield file
        except (pa.ArrowException, OSError) as error:
            raise self.error(f"{where} is damaged or truncated ({error})", COPY_AGAIN) from error

    @contextmanager
    def images(self, path: Path, cameras: Sequence[str]) -> Iterator[pq.ParquetFile]:
        """`parquet`, where these columns hold image files."""
        with self.parquet(path, cameras) as file:
            for key in cameras:
                held = file.schema_arrow.field(key).type
                if not (pa.types.is_struct(held) and held.get_field_index("bytes") >= 0):
                    where = path.relative_to(self.root)
                    raise self.error(f"{key} in {where} holds {held}, but info.json says images", COPY_AGAIN)
            yield file

    def table(self, paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
        """These columns of several files, one below the other."""
        tables = []
        for path in paths:
            with self.parquet(path, columns) as file:
                tables.append(file.read(columns=list(columns)).select(columns).replace_schema_metadata(None))
        return pa.concat_tables(tables) if tables else pa.table({key: pa.array([], pa.int64()) for key in columns})

    def tasks(self, task_index: np.ndarray) -> tuple[list[str], np.ndarray]:
        """The instructions, by task_index, and which of them each frame has, int64 [N].

        The numbers in meta/tasks.parquet may come in any order and leave some out, as after episodes were deleted.
        """
        path = self.root / "meta/tasks.parquet"
        with self.parquet(path, ["task_index"]) as file:
            # the instructions are a pandas index, which older versions left without a name
            names = file.schema_arrow.names
            text = next((name for name in ("task", "__index_level_0__") if name in names), None)
        if text is None:
            raise self.error(f"meta/tasks.parquet has no column of instructions, but {names}", "name it task")
        table = self.table([path], ["task_index", text])
        named: dict[int, str] = {}
        for number, task in zip(self.integers(table, "task_index").tolist(), table[text].to_pylist(), strict=True):
            if not isinstance(task, str):
                raise self.error(f"task_index {number} in meta/tasks.parquet is {task!r}", "give it its instruction")
            if named.setdefault(number, task) != task:
                twice = f"task_index {number} in meta/tasks.parquet is both {named[number]!r} and {task!r}"
                raise self.error(twice, "delete the row that is wrong")
        if unknown := sorted(set(np.unique(task_index).tolist()) - set(named)):
            rows = np.flatnonzero(task_index == unknown[0])
            frames = f"{len(rows)} frames have it, the first in row {rows[0]}"
            problem = f"task_index {unknown[0]} is none of {len(named)} in meta/tasks.parquet, but {frames}"
            raise self.error(problem, "add a row with its instruction there")
        numbers = np.array(sorted(named), np.int64)
        return [named[number] for number in numbers], np.searchsorted(numbers, task_index)

    def recorded_episodes(self, count: int) -> list[dict[str, Any]]:
        """What `recap.data.recorder` noted about each of `count` episodes; [] for data sets from elsewhere."""
        content = self.json("meta/recap.json")
        if content is None:
            return []
        listed = content.get("episodes", [])
        if [episode.get("episode_index") for episode in listed] != list(range(count)):
            raise self.error(f"meta/recap.json lists {len(listed)} episodes, but there are {count}", COPY_AGAIN)
        return listed

    def clips(self, key: str, episode_index: np.ndarray, frame_index: np.ndarray) -> Clips:
        """Where each frame of a camera kept as video is."""
        columns = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        table = self.table(self.parquet_files("meta/episodes"), columns)
        chunk, file, start = (table[name].to_numpy() for name in columns)
        template = str(self.info.get("video_path"))
        places = [
            self.root / template.format(video_key=key, chunk_index=c, file_index=f)
            for c, f in zip(chunk, file, strict=True)
        ]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(places))}
        missing = [path for path in numbers if not path.is_file()]
        if missing:
            raise self.error(f"{missing[0].relative_to(self.root)} is missing", COPY_AGAIN)
        of_episode = np.array([numbers[place] for place in places], np.int32)
        time = start[episode_index] + frame_index / float(self.info["fps"])
        return Clips(list(numbers), of_episode[episode_index], time)

    def integers(self, table: pa.Table, key: str) -> np.ndarray:
        """int64 [N]."""
        if table[key].null_count:
            raise self.error(f"{key} is missing in {table[key].null_count} frames", COPY_AGAIN)
        return table[key].to_numpy().astype(np.int64)

    def vectors(self, table: pa.Table, key: str) -> np.ndarray:
        """float32 [N, D] of a column of lists, or of plain numbers (D = 1)."""
        column = table[key].combine_chunks()
        flat = column.flatten() if pa.types.is_nested(column.type) else column
        if column.null_count or flat.null_count or len(flat) % len(column):
            raise self.error(f"{key} has missing numbers in some frames", COPY_AGAIN)
        return np.array(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), -1)

    def check_finite(self, key: str, array: np.ndarray, episode_index: np.ndarray, frame_index: np.ndarray) -> None:
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            where = f"episode {episode_index[row]}, frame {frame_index[row]}"
            fix = "delete that episode (lerobot-edit-dataset) or record it again"
            raise self.error(f"{key} is not finite in {where}: {array[row].tolist()}", fix)

    def check_episodes(self, episode_index: np.ndarray, frame_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First rows and lengths of the episodes, int64 [E]; the frames must agree with meta/episodes and info.json."""
        start = np.flatnonzero(np.diff(episode_index, prepend=-1))
        length = np.diff(start, append=len(episode_index))
        if not np.array_equal(episode_index[start], np.arange(len(start))):
            raise self.error("its episodes are not 0, 1, 2, … in this order", COPY_AGAIN)
        wrong = np.flatnonzero(frame_index != np.arange(len(frame_index)) - start[episode_index])
        if len(wrong):
            episode, frame = episode_index[wrong[0]], frame_index[wrong[0]]
            raise self.error(f"frames of episode {episode} are missing or doubled around frame {frame}", COPY_AGAIN)
        files = self.parquet_files("meta/episodes")
        listed = self.table(files, ["length"])["length"].to_numpy()
        if not len(start) == len(listed) == self.info["total_episodes"]:
            counts = f"data/ has {len(start)}, meta/episodes {len(listed)}, info.json {self.info['total_episodes']}"
            raise self.error(f"the number of episodes is unclear: {counts}", COPY_AGAIN)
        wrong = np.flatnonzero(listed != length)
        if len(wrong):
            counts = f"{length[wrong[0]]} frames, but meta/episodes says {listed[wrong[0]]}"
            raise self.error(f"episode {wrong[0]} has {counts}", COPY_AGAIN)
        if self.info["total_frames"] != len(episode_index):
            counts = f"{len(episode_index)} frames, but info.json says {self.info['total_frames']}"
            raise self.error(f"it has {counts}", COPY_AGAIN)
        return start, length
