"""What the value function made of the last rollouts: chosen episodes, each with a video, and its strongest moments."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recap.data.frames import Frames, load_frames
from recap.data.images import decode_images
from recap.data.labels import Thresholds, read_thresholds
from recap.data.video import write_video
from recap.method.config import SourceKind
from recap.report.choices import labels_of_recorded, moments_of
from recap.report.html import figures
from recap.report.html.page import Page
from recap.storage import readers as files
from recap.storage.manifest import results_digest
from recap.utils.errors import RecapError, disk_error

PIXELS = 224  # larger images are scaled down to this height
CAMERAS = 2  # side by side; more would be too small to see
MOMENTS = 6  # of each sign
CHOSEN = 6  # moments of choice, of each way
READ_BY_SCRIPT = ("value", "return", "advantage", "positive", "fps")  # of a trace
CACHE = ".report"  # in the run directory: videos made for the report
SCRUBBED = {"g": "6", "crf": "24", "preset": "slow"}  # a key frame every six: found at once while scrubbing


@dataclass(frozen=True)
class Rollouts:
    """The labelled rollouts of an iteration: columns of advantages.parquet, ε, and their data set if it is there.

    episodes: what the recording says of them, [] without the data set.
    """

    iteration: int
    table: files.Columns
    thresholds: Thresholds
    frames: Frames | None
    episodes: list[dict[str, Any]]

    def rows(self, episode: int) -> np.ndarray:
        """Rows of an episode in the table, by frame: int64 [T]."""
        rows = np.flatnonzero(self.table["episode_index"] == episode)
        return rows[np.argsort(self.table["frame_index"][rows], kind="stable")]


def last_rollouts(run_dir: Path, summary: dict[str, Any]) -> Rollouts | None:
    """The rollouts that the last labelled iteration collected itself; None where no rollouts were labelled.

    Raises RecapError for labels or a data set that cannot be read.
    """
    for entry in reversed(summary["advantage"]):
        head = run_dir / files.iteration_dir(entry["iteration"])
        dataset = head / "rollout" / "dataset"
        table = own = labels_of_recorded(run_dir, entry["iteration"], dataset)
        for labelled in () if own else files.read_advantages(head / "advantage"):
            table = table if (labelled["source"] == "demonstration").any() else labelled
        if table:
            frames = load_frames(dataset, "rollouts", SourceKind.rollout) if own else None
            episodes = files.read_episodes(dataset) if own else []
            return Rollouts(entry["iteration"], table, read_thresholds(head / "advantage"), frames, episodes)
    return None


# ---------------------------------------------------------------------------------------------------- episodes
def draw_traces(page: Page, run_dir: Path, rollouts: Rollouts) -> list[dict[str, Any]]:
    """`traces`, drawn as `trace-0` and on, with their videos; on one scale, so that they can be compared."""
    found = traces(run_dir, rollouts)
    low = min(min(trace["value"] + trace["return"]) for trace in found)
    span = max(abs(advantage) for trace in found for advantage in trace["advantage"])
    for number, trace in enumerate(found):
        page.draw(f"trace-{number}", figures.trace(trace, low, span, f"var(--{trace['outcome']})"))
        page.traces.append({key: trace[key] for key in READ_BY_SCRIPT})
        if "video" in trace:
            page.videos[f"trace-{number}"] = trace["video"]
    return found


def traces(run_dir: Path, rollouts: Rollouts) -> list[dict[str, Any]]:
    """Typical and surprising episodes: their labels by frame, and their video where the data set is there.

    [{"title", "outcome", "episode", "task", "held_out", "fps", "epsilon", "value", "return", "advantage", "positive",
    "video" (an mp4, in base64), "shape" (its width and height)}]; episodes that the value function was not trained on
    go first.
    """
    found = []
    for title, episode in _chosen(rollouts.table).items():
        rows, table = rollouts.rows(episode), rollouts.table
        task = str(table["task"][rows[0]])
        trace = {
            "title": title,
            "outcome": "success" if table["success"][rows[0]] else "failure",
            "episode": episode,
            "task": task,
            "held_out": bool(table["held_out"][rows[0]]) if "held_out" in table else False,
            "fps": rollouts.frames.fps if rollouts.frames else 10.0,
            "epsilon": rollouts.thresholds.epsilon.get(task),
            **{key: np.round(table[key][rows], 4).tolist() for key in ("value", "return", "advantage")},
            "positive": table["indicator"][rows].astype(int).tolist(),
        }
        if rollouts.frames:
            film, shape = _film(run_dir, rollouts.frames, rollouts.iteration, episode)
            trace |= {"video": base64.b64encode(film).decode(), "shape": shape}
        found.append(trace)
    return found


def _chosen(table: files.Columns) -> dict[str, int]:
    """{title: episode}: the median success and failure by mean value, and those that the value foresaw least."""
    unseen = table.get("held_out", np.zeros(len(table["success"]), bool))
    chosen: dict[str, int] = {}
    for outcome, won in (("success", True), ("failure", False)):
        ended_so = table["success"] == won
        held_out = ended_so & unseen
        order = files.by_mean_value(table, held_out if held_out.any() else ended_so)
        if order:
            chosen[f"Typical {outcome}"] = order[(len(order) - 1) // 2]
        if len(order) > 2:
            chosen[f"Least expected {outcome}"] = order[0 if won else -1]
    return dict(sorted(chosen.items(), key=lambda item: not item[0].startswith("Typical")))


def _film(run_dir: Path, frames: Frames, iteration: int, episode: int) -> tuple[bytes, tuple[int, int]]:
    """The mp4 of an episode with a frame for each label, made once, and its width and height."""
    source = results_digest(frames.root.parent)[:12]
    path = run_dir / CACHE / f"iter_{iteration:02d}_{source}_{episode:06d}.mp4"
    try:
        if not path.is_file():
            write_video(path, _pictures(frames, episode), frames.fps, SCRUBBED)
        return path.read_bytes(), _shape(frames)
    except OSError as error:
        raise disk_error(error, path) or error from error


def _shape(frames: Frames) -> tuple[int, int]:
    """Width and height of the cameras side by side; even, as H.264 wants it."""
    height = min(PIXELS, frames.image_shapes[frames.cameras[0]][0]) // 2 * 2
    shapes = [frames.image_shapes[camera] for camera in frames.cameras[:CAMERAS]]
    return sum(round(height * width / tall / 2) * 2 for tall, width, _ in shapes), height


def _pictures(frames: Frames, episode: int, which: list[int] | None = None) -> list[np.ndarray]:
    """The cameras side by side in some frames of an episode, or in all: uint8 [H, W, 3] each."""
    start, length = int(frames.start[episode]), int(frames.length[episode])
    rows = start + (np.arange(length) if which is None else np.minimum(which, length - 1))
    views = [_images(frames, camera, episode, rows) for camera in frames.cameras[:CAMERAS]]
    height = _shape(frames)[1]
    pictures = []
    for pair in zip(*views, strict=True):
        sized = [
            image.resize((round(image.width * height / image.height / 2) * 2, height), Image.Resampling.LANCZOS)
            for image in map(Image.fromarray, pair)
        ]
        pictures.append(np.concatenate([np.asarray(image) for image in sized], axis=1))
    return pictures


def _images(frames: Frames, camera: str, episode: int, rows: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] of rows of one episode, without decoding the rest of the data set."""
    if camera in frames.videos:
        return frames.pixels(camera, rows)
    encoded: dict[int, bytes] = {}
    number = int(frames.episode_index[frames.start[episode]])
    for path in frames.files.data_files:
        try:
            # The folder is no partition key: pyarrow would take a column out of a name such as "seed=0".
            wanted = [("episode_index", "=", number)]
            found = pq.read_table(path, columns=["frame_index", camera], filters=wanted, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise RecapError(
                f"{path} cannot be read ({error}). Fix: delete {frames.root.parent}, run it again."
            ) from error
        images = found[camera].combine_chunks().field("bytes").to_pylist()
        encoded |= dict(zip(found["frame_index"].to_pylist(), images, strict=True))
    out = np.empty((len(rows), *frames.image_shapes[camera]), np.uint8)
    try:
        with ThreadPoolExecutor(2) as pool:
            decode_images([encoded.get(int(frame)) for frame in frames.frame_index[rows]], out, pool)
    except ValueError as error:
        raise RecapError(
            f"{frames.root}, episode {number}, {camera}: {error}. Fix: delete {frames.root.parent}, run it again."
        ) from error
    return out


# ---------------------------------------------------------------------------------------------------- moments
def moments(rollouts: Rollouts) -> dict[str, list[dict[str, Any]]]:
    """{"positive", "negative"}: the frames of highest and of lowest advantage, one an episode, strongest first.

    Each {"task", "episode", "frame", "seconds", "value", "advantage", "positive" (its label), "success", "images"
    (JPEGs in base64: the frame, and the one N steps later)}. Frames with the end of the episode within N steps are left
    out if there are others: there the advantage is that of the outcome, not of what was done. {} without the data
    set's images.
    """
    if rollouts.frames is None:
        return {}
    table, ahead = rollouts.table, rollouts.thresholds.n_step
    _, inverse, counts = np.unique(table["episode_index"], return_inverse=True, return_counts=True)
    lengths = counts[inverse]
    before_end = table["frame_index"] + (lengths if ahead is None else ahead) < lengths
    rows = np.flatnonzero(before_end if before_end.any() else np.ones(len(lengths), bool))
    order = rows[np.argsort(table["advantage"][rows], kind="stable")]
    return {
        "positive": [_moment(rollouts, row, ahead) for row in _one_an_episode(table, order[::-1])],
        "negative": [_moment(rollouts, row, ahead) for row in _one_an_episode(table, order)],
    }


def moments_of_choice(rollouts: Rollouts, task: str) -> dict[str, list[dict[str, Any]]]:
    """Way -> moments, as `moments` has them, at which the first episodes set out on it; {} without images.

    Not chosen by outcome; episodes that the value function was not trained on go first.
    """
    if rollouts.frames is None:
        return {}
    table, shown = rollouts.table, {}
    held_out = table.get("held_out", np.zeros(len(table["success"]), bool))
    for name, rows in moments_of(table, [e for e in rollouts.episodes if e["task"] == task]).items():
        unseen_first = rows[np.argsort(~held_out[rows], kind="stable")]
        shown[name] = [_moment(rollouts, row, rollouts.thresholds.n_step) for row in unseen_first[:CHOSEN].tolist()]
    return shown


def _one_an_episode(table: files.Columns, order: np.ndarray) -> list[int]:
    episodes, first = np.unique(table["episode_index"][order], return_index=True)
    return order[np.sort(first)[:MOMENTS]].tolist() if len(episodes) else []


def _moment(rollouts: Rollouts, row: int, ahead: int | None) -> dict[str, Any]:
    assert rollouts.frames is not None
    table = rollouts.table
    episode, frame = int(table["episode_index"][row]), int(table["frame_index"][row])
    steps = int((table["episode_index"] == episode).sum()) - 1 - frame if ahead is None else ahead
    both = _pictures(rollouts.frames, episode, [frame, frame + steps])
    # One camera is enough to see what happened, and leaves room for both times.
    width = _first_width(rollouts.frames)
    return {
        "task": str(table["task"][row]),
        "episode": episode,
        "frame": frame,
        "seconds": frame / rollouts.frames.fps,
        **{key: float(table[key][row]) for key in ("value", "advantage")},
        "positive": bool(table["indicator"][row]),
        "success": bool(table["success"][row]),
        "images": [_jpeg(picture[:, :width]) for picture in both],
    }


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode()


def _first_width(frames: Frames) -> int:
    tall, wide, _ = frames.image_shapes[frames.cameras[0]]
    return round(_shape(frames)[1] * wide / tall / 2) * 2
