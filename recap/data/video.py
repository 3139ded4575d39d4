"""Images of a camera as video files: written as lerobot reads them, read at any frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Every second frame is a key frame, as in lerobot's own recordings, so that any frame is found at once. H.264, because
# it costs a simulation process little; crf 18 is hard to tell from the original.
CODEC, OPTIONS = "libx264", {"g": "2", "crf": "18", "threads": "1"}
NEAR = 8  # frames: closer ones are decoded in one go, further ones are sought
TOLERANCE = 1e-3  # seconds between the frame asked for and the one found


@dataclass(frozen=True)
class VideoFrames:
    """Frames in video files: `paths[file[i]]` at `time[i]` seconds holds frame i; file int32 [N], time float64 [N]."""

    paths: list[Path]
    file: np.ndarray
    time: np.ndarray

    def of(self, rows: np.ndarray) -> VideoFrames:
        """Those of some frames."""
        return VideoFrames(self.paths, self.file[rows], self.time[rows])

    def by_file(self) -> Iterator[tuple[Path, np.ndarray]]:
        """Every file that is used, and which frames are in it, ascending in time: int64 [n]."""
        order = np.lexsort((self.time, self.file))
        for frames in np.split(order, np.flatnonzero(np.diff(self.file[order])) + 1):
            yield self.paths[self.file[frames[0]]], frames


def write_video(path: Path, images: Iterable[np.ndarray], fps: float, options: dict[str, str] | None = None) -> None:
    """Writes uint8 [H, W, 3] images of one even size as an H.264 mp4; it appears under its name when it is complete."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    with av.open(str(partial), "w", format="mp4") as container:
        stream: Any = container.add_stream(CODEC, rate=round(fps))
        stream.pix_fmt, stream.options = "yuv420p", OPTIONS if options is None else options
        for i, image in enumerate(images):
            if i == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def video_info(shape: Sequence[int], fps: float) -> dict[str, Any]:
    """The entry of such a video in lerobot's info.json."""
    height, width, channels = shape
    facts = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "fps": fps, "channels": channels}
    return {f"video.{key}": value for key, value in facts.items()} | {"is_depth_map": False, "has_audio": False}


def read_video(path: Path, times: np.ndarray, out: np.ndarray, fps: float) -> None:
    """Decodes the frames at `times` [n], in seconds, ascending, into `out`, uint8 [n, H, W, 3].

    The pixels of lerobot's PyAV reader. It would open the file and set up the conversion to RGB for every run of frames
    and every picture. PyAV brings its own FFmpeg and may be called from several threads, so a decoder takes only one.
    Raises OSError or ValueError, worded by the decoder, for a file that is missing, truncated or too short.
    """
    import av
    from av.video.reformatter import VideoReformatter

    rgb = VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = float(stream.time_base or 0)
        for run in np.split(np.arange(len(times)), np.flatnonzero(np.diff(times) > NEAR / fps) + 1):
            container.seek(round(times[run[0]] / base) - 1, stream=stream)  # to the key frame before
            wanted = deque(run.tolist())
            for frame in container.decode(stream):
                shown = -1.0 if frame.pts is None else frame.pts * base
                if shown <= times[wanted[0]] - TOLERANCE:
                    continue
                while wanted and abs(shown - times[wanted[0]]) < TOLERANCE:  # the same frame may be wanted twice
                    out[wanted.popleft()] = _pixels(rgb.reformat(frame, format="rgb24"), out.shape[1:])
                if not wanted or shown > times[wanted[0]]:
                    break
            if wanted:
                raise ValueError(f"it has no picture at {times[wanted[0]]:.3f} s")


def _pixels(frame: Any, shape: tuple[int, ...]) -> np.ndarray:
    found: np.ndarray = frame.to_ndarray()
    if found.shape != shape:
        raise ValueError(f"its frames are {found.shape}, but info.json says {shape}")
    return found


def nearest_pictures(path: Path, times: np.ndarray) -> np.ndarray:
    """When the pictures nearest to `times` are shown, both float64 [n] in seconds; nothing is decoded.

    The header suffices where all times fall on the grid of a constant frame rate; otherwise the file is read through.
    """
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        begin = (stream.start_time or 0) * base
        steps = np.round((times - begin) * rate)
        if (
            rate > 0
            and np.abs(begin + steps / rate - times).max() < TOLERANCE
            and 0 <= steps.min() <= steps.max() <= (stream.duration or 0) * base * rate - 0.5
        ):
            return times
        shown = np.sort([packet.pts * base for packet in container.demux(stream) if packet.pts is not None])
    after = np.searchsorted(shown, times).clip(1, max(len(shown) - 1, 1))
    low, high = shown[after - 1], shown[np.minimum(after, len(shown) - 1)]
    return np.where(times - low <= high - times, low, high)
