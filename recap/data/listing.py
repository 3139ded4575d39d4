"""The entries of meta/episodes, checked against the frames in data/: the two must agree.

Episodes are known by their number, never by the order in which they are listed. Only selected episodes are
checked, so that leaving one out repairs a data set, and the others need not have been downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

import numpy as np
import pyarrow as pa

from recap.data.lerobot_reader import COPY_AGAIN, DataSetFiles
from recap.data.metadata import DATA_PATH, VIDEO_PATH
from recap.data.video import VideoFrames

COUNTERS = ("episode_index", "frame_index", "index", "task_index", "timestamp")  # of each frame
NUMBERS = ("episode_index", "length", "dataset_from_index", "dataset_to_index")  # of each episode
PLACE = ("data/chunk_index", "data/file_index")


@dataclass(frozen=True)
class Rows:
    """The N frames of the E selected episodes.

    row: of each frame in data/; episode: its number; frame_index, task_index: int64 [N]; timestamp: float32 [N] as
    lerobot reads it, seconds from the begin of the episode's videos. start, length: of each episode, int64 [E].
    """

    row: np.ndarray
    episode: np.ndarray
    frame_index: np.ndarray
    task_index: np.ndarray
    timestamp: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Listing:
    """meta/episodes by episode_index; `episodes` are the selected ones (None: all). Every method raises RecapError."""

    def __init__(self, files: DataSetFiles, episodes: Sequence[int] | None) -> None:
        self.files = files
        self.paths = files.parquet_files("meta/episodes")
        table = files.table(self.paths, NUMBERS)
        self._order = np.argsort(files.integers(table, "episode_index"), kind="stable")
        self.index, self.length, self.first, self.end = (files.integers(table, name)[self._order] for name in NUMBERS)
        self.count = table.num_rows
        wrong = np.flatnonzero(self.index != np.arange(self.count))
        if len(wrong):
            number, found = wrong[0], self.index[wrong[0]]
            what = f"has episode {found} twice" if number and found == self.index[number - 1] else f"lacks {number}"
            raise files.error(f"the episodes of meta/episodes are not 0, 1, 2, …: it {what}", COPY_AGAIN)
        beyond = [episode for episode in episodes or () if episode >= self.count]
        if beyond:
            raise files.error(
                f"it has no episode {beyond[0]}", f"it has {self.count}: choose from 0 to {self.count - 1}"
            )
        self.chosen = np.arange(self.count) if episodes is None else np.array(sorted(episodes), np.int64)

    # ------------------------------------------------------------------------------------------------ frames
    def rows(self, table: pa.Table) -> Rows:
        """The frames of the selected episodes. table: COUNTERS of all frames in data/."""
        files = self.files
        episode, frame, index, task = (files.integers(table, name) for name in COUNTERS[:4])
        timestamp = files.numbers(table, "timestamp").astype(np.float32)  # as lerobot casts it, whatever is stored
        first = np.flatnonzero(np.diff(episode, prepend=-1))
        held, lengths = episode[first], np.diff(first, append=len(episode))
        stated = files.info["total_episodes"]
        if self.count != stated or held.max() >= self.count:
            counts = f"data/ has {len(held)}, meta/episodes {self.count}, info.json {stated:g}"
            raise files.error(f"the number of episodes is unclear: {counts}", COPY_AGAIN)
        back = np.flatnonzero(np.diff(held, prepend=-1) <= 0)
        if len(back):
            problem = f"its episodes are not 0, 1, 2, … in this order: {held[back[0]]} comes after {held[back[0] - 1]}"
            raise files.error(problem, COPY_AGAIN)
        missing = np.setdiff1d(self.chosen, held)
        if len(missing):
            where = self._file_of(missing[0])
            problem = f"its episodes are not 0, 1, 2, … to {self.count - 1}: no frame of episode {missing[0]}{where}"
            self._refuse(problem, missing)
        start, length = (array[np.searchsorted(held, self.chosen)] for array in (first, lengths))
        begin = np.cumsum(length) - length
        row = np.repeat(start - begin, length) + np.arange(length.sum())
        found = Rows(row, episode[row], frame[row], task[row], timestamp[row], begin, length)
        self._check_frames(found, index[row])
        if len(row) == len(episode) and len(start) == self.count:
            self._check_place(start, len(row))
        self._check_times(found)
        return found

    def _file_of(self, episode: int) -> str:
        if not set(PLACE) <= set(self.files.columns(self.paths[0])):
            return ""
        chunk, file = (int(self._numbers(key)[episode]) for key in PLACE)
        path = self.files.info.get("data_path", DATA_PATH).format(chunk_index=chunk, file_index=file)
        return f" ({path} in meta/episodes)"

    def _check_frames(self, rows: Rows, index: np.ndarray) -> None:
        length, first, end = (array[self.chosen] for array in (self.length, self.first, self.end))
        wrong = np.flatnonzero(rows.frame_index != np.arange(len(rows.row)) - np.repeat(rows.start, rows.length))
        if len(wrong):
            around = f"around frame {rows.frame_index[wrong[0]]}"
            problem = f"frames of episode {rows.episode[wrong[0]]} are missing or doubled {around}"
            self._refuse(problem, rows.episode[wrong])
        for e in np.flatnonzero(length != rows.length)[:1]:
            problem = f"episode {self.chosen[e]} has {rows.length[e]} frames, but meta/episodes says {length[e]}"
            self._refuse(problem, self.chosen[length != rows.length])
        for e in np.flatnonzero(end - first != length)[:1]:
            says = f"length={length[e]}, dataset_from_index={first[e]} and dataset_to_index={end[e]}"
            problem = f"meta/episodes contradicts itself in episode {self.chosen[e]}: {says}"
            self._refuse(problem, self.chosen[end - first != length])
        wrong = np.flatnonzero(index != rows.frame_index + np.repeat(first, rows.length))
        if len(wrong):
            w = wrong[0]
            says = f"dataset_from_index={self.first[rows.episode[w]]} in meta/episodes"
            problem = f"episode {rows.episode[w]}: index={index[w]} in frame {rows.frame_index[w]}, but {says}"
            self._refuse(problem, rows.episode[wrong])

    def _check_place(self, start: np.ndarray, total: int) -> None:
        """Of a data set that is here whole, and taken whole."""
        for e in np.flatnonzero(self.first != start)[:1]:
            says = f"dataset_from_index={self.first[e]} in meta/episodes"
            raise self.files.error(f"episode {e}: {says}, but {start[e]} frames are before it in data/", COPY_AGAIN)
        if total != self.files.info["total_frames"]:
            says = f"info.json says {self.files.info['total_frames']:g}"
            raise self.files.error(f"it has {total} frames, but {says}", COPY_AGAIN)

    def _check_times(self, rows: Rows) -> None:
        time = rows.timestamp
        before = np.r_[-np.inf, time[:-1]]
        before[rows.start] = -np.inf
        wrong = np.flatnonzero(~(np.isfinite(time) & (time > before)))
        if len(wrong):
            w, said = wrong[0], f"timestamp={time[wrong[0]]:g}"
            after = f", after {before[w]:g}" if np.isfinite(before[w]) else ""
            problem = f"episode {rows.episode[w]}: {said} in frame {rows.frame_index[w]}{after}: times must increase"
            self._refuse(problem, rows.episode[wrong])

    # ------------------------------------------------------------------------------------------------ tasks
    def tasks(self, rows: Rows, tasks: Sequence[str]) -> np.ndarray:
        """The one task of each episode, int64 [E] into `tasks`.

        Returns, normalisers and ε are of an episode's task, networks read that of a frame, and meta/episodes has its
        own: where they differ there is nothing that all could be trained on.
        """
        task = rows.task_index[rows.start]
        wrong = np.flatnonzero(rows.task_index != np.repeat(task, rows.length))
        if len(wrong):
            w = wrong[0]
            one, other = (tasks[t] for t in (rows.task_index[w - 1], rows.task_index[w]))
            what = f"the task changes within episode {rows.episode[w]}, from {one!r} to {other!r} in frame"
            problem = f"{what} {rows.frame_index[w]}; success and returns belong to one instruction"
            self._refuse(problem, rows.episode[wrong], self._one_task(rows.episode[w], tasks[task[0]]))
        if "tasks" in self.files.columns(self.paths[0]):
            listed = self.files.table(self.paths, ["tasks"])["tasks"].take(pa.array(self._order)).to_pylist()
            names = [[text] if isinstance(text, str) else text for text in (listed[e] for e in self.chosen)]
            differ = np.array([bool(n) and tasks[t] not in n for n, t in zip(names, task, strict=True)])
            for e in np.flatnonzero(differ)[:1]:
                problem = f"the task of episode {self.chosen[e]} is {tasks[task[e]]!r} in its frames, but {names[e]} "
                problem += "in meta/episodes"
                self._refuse(problem, self.chosen[differ], self._one_task(self.chosen[e], tasks[task[e]]))
        return task

    def _one_task(self, episode: int, text: str) -> str:
        """lerobot's command that writes one instruction in all places."""
        options = f"--repo_id={self.files.name} --root={quote(str(self.files.root))} --operation.type=modify_tasks"
        command = f"lerobot-edit-dataset {options} --operation.episode_tasks={quote(json.dumps({str(episode): text}))}"
        return f"give each episode one, which changes the folder: {command}"

    # ------------------------------------------------------------------------------------------------ videos
    def videos(self, camera: str, rows: Rows) -> VideoFrames:
        """Where each frame of a camera kept as video is: from_timestamp of its episode + its own timestamp."""
        files, chosen = self.files, self.chosen
        begin, end = (self._numbers(f"videos/{camera}/{name}")[chosen] for name in ("from_timestamp", "to_timestamp"))
        self._check_parts(camera, rows, begin.astype(np.float64), end.astype(np.float64))
        columns = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index")]
        chunk, file = (files.integers(files.table(self.paths, [key]), key)[self._order][chosen] for key in columns)
        template = files.info.get("video_path", VIDEO_PATH)
        if template is None:
            raise files.error(f"meta/info.json: video_path=None, but {camera} is a video", COPY_AGAIN)
        places = [
            files.root / template.format(video_key=camera, chunk_index=int(c), file_index=int(f))
            for c, f in zip(chunk, file, strict=True)
        ]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(places))}
        missing = {path for path in numbers if not os.path.isfile(path)}
        if missing:
            bad = np.array([place in missing for place in places])
            path, e = places[np.argmax(bad)], chosen[np.argmax(bad)]
            self._refuse(f"{path.relative_to(files.root)} is missing, the video of episode {e}", chosen[bad])
        of_episode = np.array([numbers[place] for place in places], np.int32)
        time = np.repeat(begin, rows.length) + rows.timestamp.astype(np.float64)
        return VideoFrames(list(numbers), np.repeat(of_episode, rows.length), time)

    def _check_parts(self, camera: str, rows: Rows, begin: np.ndarray, end: np.ndarray) -> None:
        """Each episode's part of a video has room for its timestamps; half a frame is for rounding."""
        slack = 0.5 / float(self.files.info["fps"])
        first, last = rows.timestamp[rows.start], rows.timestamp[rows.start + rows.length - 1]
        fits = (begin >= 0) & np.isfinite(end) & (first >= -slack) & (last.astype(np.float64) <= end - begin - slack)
        for e in np.flatnonzero(~fits)[:1]:
            part = f"videos/{camera}/from_timestamp={begin[e]:g} to to_timestamp={end[e]:g}"
            times = f"its timestamps are from {first[e]:g} to {last[e]:g}"
            problem = f"episode {self.chosen[e]}: {times}, but its part of the video is {part}"
            self._refuse(problem, self.chosen[~fits])

    # ------------------------------------------------------------------------------------------------ helpers
    def _numbers(self, key: str) -> np.ndarray:
        """A column, by episode."""
        return self.files.numbers(self.files.table(self.paths, [key]), key)[self._order]

    def _refuse(self, problem: str, bad: np.ndarray, instead: str = COPY_AGAIN) -> None:
        raise self.files.refusal(problem, bad, self.chosen, instead)
