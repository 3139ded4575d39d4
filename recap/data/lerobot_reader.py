"""A LeRobotDataset v3 on disk, read with pyarrow alone. Broken files and other versions are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recap.data.metadata import Recorded, info_problems, problems
from recap.utils.errors import RecapError

INFO_KEYS = ("codebase_version", "fps", "features", "total_frames", "total_episodes")
COPY_AGAIN = "copy the data set again, or record it again"
SPELLED_OUT = 40  # numbers in an advice


class DataSetFiles:
    """The files under `root`; `name` is the data set's name in messages. Every method raises RecapError.

    key: of the configuration that names the data set, for advice; None for what the run records itself.
    """

    def __init__(self, root: Path, name: str, key: str | None = None) -> None:
        self.root, self.name, self.key = root, name, key
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
        if said := info_problems(info):
            raise self.error(
                f"meta/info.json: {said}", "write what is right into that file, or copy the data set again"
            )
        self.info = info
        self.features: dict[str, dict[str, Any]] = info["features"]

    def error(self, problem: str, fix: str) -> RecapError:
        if fix == COPY_AGAIN and next(self.root.glob(".cache/huggingface/download/**/*.incomplete"), None):
            fix = "it was not downloaded to the end: give the same `hf download` again"
        return RecapError(f"data set '{self.name}' ({self.root}): {problem}; {fix}")

    def refusal(self, problem: str, bad: np.ndarray, taken: np.ndarray, fix: str = COPY_AGAIN) -> RecapError:
        """Of a problem that the episodes `bad` have; where others are taken beside them, they can be left out."""
        bad = np.unique(bad)
        rest = np.setdiff1d(taken, bad)
        more = f" (and {len(bad) - 1} more episodes)" if len(bad) > 1 else ""
        if self.key is not None and len(rest):
            numbers = ",".join(map(str, rest)) if len(rest) <= SPELLED_OUT else f"<the other {len(rest)}>"
            fix = f"{fix}, or leave out what is wrong: ++{self.key}.episodes=[{numbers}]"
        return self.error(problem + more, fix)

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
        except (OSError, ValueError, RecursionError) as error:
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

    def columns(self, path: Path) -> list[str]:
        """The names of a parquet file's columns."""
        with self.parquet(path, ()) as file:
            return list(file.schema_arrow.names)

    def table(self, paths: Sequence[Path], columns: Sequence[str]) -> pa.Table:
        """These columns of several files, one below the other."""
        tables = []
        for path in paths:
            with self.parquet(path, columns) as file:
                tables.append(file.read(columns=list(columns)).select(columns).replace_schema_metadata(None))
        try:
            joined = pa.concat_tables(tables, promote_options="permissive") if tables else None
        except pa.ArrowException as error:
            folder = paths[0].relative_to(self.root).parts[0]
            raise self.error(f"the files of {folder}/ have columns of several types ({error})", COPY_AGAIN) from error
        return pa.table({key: pa.array([], pa.int64()) for key in columns}) if joined is None else joined

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
        """What `recap.data.lerobot_writer` noted about each of `count` episodes; [] for data sets from elsewhere."""
        content = self.json("meta/recap.json")
        if content is None:
            return []
        if said := problems(Recorded, content):
            raise self.error(f"meta/recap.json: {said}", COPY_AGAIN)
        listed = content["episodes"]
        if [episode["episode_index"] for episode in listed] != list(range(count)):
            raise self.error(f"meta/recap.json lists {len(listed)} episodes, but there are {count}", COPY_AGAIN)
        return listed

    def integers(self, table: pa.Table, key: str) -> np.ndarray:
        """int64 [N]."""
        found = self.numbers(table, key)
        if not np.array_equal(found, np.floor(found)):
            raise self.error(
                f"{key} is {found[found != np.floor(found)][0]:g} in some frames, no whole number", COPY_AGAIN
            )
        return found.astype(np.int64)

    def numbers(self, table: pa.Table, key: str) -> np.ndarray:
        """[N], of whatever type they are stored in."""
        found = self._flat(table, key)
        if len(found) != table.num_rows:
            raise self.error(f"{key} has {len(found)} numbers in {table.num_rows} rows", COPY_AGAIN)
        return found

    def vectors(self, table: pa.Table, key: str) -> np.ndarray:
        """float32 [N, D] of a column of lists, or of plain numbers (D = 1)."""
        return self._flat(table, key).astype(np.float32).reshape(table.num_rows, -1)

    def _flat(self, table: pa.Table, key: str) -> np.ndarray:
        """The numbers of a column, or those of its lists, which must be of one length, one after the other."""
        column = table[key].combine_chunks()
        kinds = (pa.types.is_list, pa.types.is_fixed_size_list, pa.types.is_large_list)
        lists = any(is_kind(column.type) for is_kind in kinds)
        flat = column.flatten() if lists else column
        kind = flat.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise self.error(f"{key} holds {column.type}, no numbers", COPY_AGAIN)
        lengths = pc.unique(pc.list_value_length(column)).to_pylist() if lists else [1]
        if column.null_count or flat.null_count or len(lengths) != 1:
            raise self.error(f"{key} has missing numbers in some rows", COPY_AGAIN)
        return np.asarray(flat.to_numpy(zero_copy_only=False))

    def check_finite(self, key: str, array: np.ndarray, episode_index: np.ndarray, frame_index: np.ndarray) -> None:
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            where = f"episode {episode_index[row]}, frame {frame_index[row]}"
            fix = "delete that episode (lerobot-edit-dataset) or record it again"
            raise self.error(f"{key} is not finite in {where}: {array[row].tolist()}", fix)
