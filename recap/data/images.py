"""How pixels and numbers go into a data set: images to files and back, and the statistics lerobot keeps beside them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)  # lerobot's, named q01 … q99


# ---------------------------------------------------------------------------------------------------- PNG
def encode_png(images: np.ndarray) -> list[bytes]:
    """PNG files of uint8 [T, H, W, 3] images: lossless, zlib level 1, each row stored as differences to the left pixel.

    PIL at the same level tries five filters a row and sets up an encoder an image; for 64×64 images this is three to
    four times faster, at about the same size.
    """
    count, height, width, _ = images.shape
    rows = images.reshape(count, height, width * 3)
    filtered = np.empty((count, height, 1 + width * 3), np.uint8)
    filtered[..., 0] = 1
    filtered[..., 1:4] = rows[..., :3]
    np.subtract(rows[..., 3:], rows[..., :-3], out=filtered[..., 4:])  # modulo 256, as PNG wants
    head = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    tail = _png_chunk(b"IEND", b"")
    return [head + _png_chunk(b"IDAT", zlib.compress(one.tobytes(), 1)) + tail for one in filtered]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode_images(
    files: Sequence[bytes | None], out: np.ndarray, pool: Executor, numbers: Sequence[int] | np.ndarray | None = None
) -> None:
    """Decode image files (PNG, JPEG, …) into `out`, uint8 [T, H, W, 3] RGB, in the threads of `pool`.

    OpenCV and not PIL, because it works outside Python's lock: two threads are twice as fast as one.
    Raises ValueError with the number (by default the position) and the reason for a file that is missing, unreadable
    or of another size.
    """
    numbers, share = range(len(files)) if numbers is None else numbers, 128
    starts = range(0, len(files), share)
    jobs = [pool.submit(_decode, files, out, numbers, first, min(first + share, len(files))) for first in starts]
    for job in jobs:
        job.result()


def _decode(
    files: Sequence[bytes | None], out: np.ndarray, numbers: Sequence[int] | np.ndarray, first: int, end: int
) -> None:
    import cv2  # not at the top: simulation workers write images and never read them

    for position in range(first, end):
        data, i = files[position], numbers[position]
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            raise ValueError(f"image {i} cannot be decoded" if data else f"image {i} is not stored in the parquet file")
        if image.shape != out.shape[1:]:
            raise ValueError(f"image {i} is {image.shape}, but info.json says {out.shape[1:]}")
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out[position])


# ---------------------------------------------------------------------------------------------------- statistics
def feature_stats(array: np.ndarray) -> dict[str, list]:
    """lerobot's statistics of [T] or [T, D], each a list of D numbers; quantiles exact, not from histograms."""
    x = array.reshape(len(array), -1).astype(np.float64)
    result = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "count": np.array([len(x)])}
    result |= {
        f"q{100 * q:02.0f}": value for q, value in zip(QUANTILES, np.quantile(x, QUANTILES, axis=0), strict=True)
    }
    return {key: value.tolist() for key, value in result.items()}


def image_stats(images: np.ndarray) -> dict[str, list]:
    """Statistics of [T, H, W, 3] a channel, in [0, 1], of shape [3, 1, 1]; from the counts of the 256 levels."""
    levels = np.arange(256) / 255.0
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]).astype(np.float64)
    total = counts.sum(1)
    mean = counts @ levels / total
    seen = np.cumsum(counts, 1)
    result = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0)),
    }
    result |= {f"q{100 * q:02.0f}": levels[(seen >= q * total[:, None]).argmax(1)] for q in QUANTILES}
    return {key: value.reshape(3, 1, 1).tolist() for key, value in result.items()} | {"count": [len(images)]}
