"""Types and ranges of meta/info.json and meta/recap.json. Data sets come from strangers: nothing is taken on trust.

Only what is read is checked; what lerobot may add later does not matter.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from string import Formatter
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"  # lerobot's, where info.json has none
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CAMERA = ("image", "video")
DTYPES = (*CAMERA, "string", "language")  # what lerobot knows beside the types of NumPy
SHOWN, SHOWN_LETTERS = 3, 60  # problems in one message, letters of each value
LONGEST = 200  # characters of a template


def _whole(value: float) -> float:
    if value != int(value):
        raise ValueError("should be a whole number")
    return value


def _dtype(name: str) -> str:
    try:
        if name not in DTYPES:
            np.dtype(name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"should be {', '.join(DTYPES)} or a type of NumPy") from error
    return name


def _keys(features: dict[str, Any]) -> dict[str, Any]:
    for key in features:
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", key) or key in (".", ".."):
            raise ValueError(f"{key[:40]!r} is no name: names become folders, so they have no / and are no ..")
    return features


def _template(*fields: str) -> AfterValidator:
    """A path with these fields that stays in the folder of the data set."""

    def check(text: str) -> str:
        expected = f"should be a path in the data set with {', '.join(f'{{{name}}}' for name in fields)}"
        try:
            parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(text) if name is not None]
        except ValueError as error:
            raise ValueError(f"{expected} ({error})") from error
        plain = all(re.fullmatch(r"(0?\d{1,2})?d?", spec or "") and how is None for _, spec, how in parts)
        if {name for name, _, _ in parts} != set(fields) or not plain or len(text) > LONGEST:
            raise ValueError(expected)
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\\x00-\x1f]", text):
            raise ValueError(expected)
        return text

    return AfterValidator(check)


Whole = Annotated[float, Field(ge=0, le=2**63 - 1, allow_inf_nan=False), AfterValidator(_whole)]
Integer = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # neither "30" nor true is a number


class Feature(Strict):
    dtype: Annotated[str, AfterValidator(_dtype)]
    shape: list[Annotated[int, Field(ge=0)]] | None = None


class Info(Strict):
    fps: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    features: Annotated[dict[str, Feature], AfterValidator(_keys)]
    total_frames: Whole
    total_episodes: Whole
    data_path: Annotated[str, _template("chunk_index", "file_index")] = DATA_PATH
    video_path: Annotated[str, _template("video_key", "chunk_index", "file_index")] | None = VIDEO_PATH


class RecordedEpisode(Strict):
    episode_index: Whole
    success: bool
    initial_state: Integer
    seed: Integer


class Recorded(Strict):
    episodes: list[RecordedEpisode]


def problems(model: type[BaseModel], content: dict[str, Any]) -> str | None:
    """What is wrong with the content of a file, in a line; None if nothing is. The content stays as it is."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        return explain(error)
    return None


def explain(error: ValidationError) -> str:
    """Each problem's key, value and what is expected, in a line."""
    found = [_said(one) for one in error.errors(include_url=False)]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join(found[:SHOWN] + more)


def info_problems(info: dict[str, Any]) -> str | None:
    """What is wrong with meta/info.json, in a line."""
    if found := problems(Info, info):
        return found
    for key, feature in info["features"].items():
        if feature["dtype"] in CAMERA and (not (shape := feature.get("shape") or []) or 0 in shape):
            return f"features.{key}.shape={shape} should be [height, width, channels]"
    return None


def _said(problem: Any) -> str:
    """Key, value and what is expected; `problem` is one of pydantic's."""
    key, value, message = ".".join(map(str, problem["loc"])), repr(problem["input"]), problem["msg"]
    if problem["type"] == "missing":
        return f"{key} is missing"
    if not key:
        return str(message)
    short = value if len(value) <= SHOWN_LETTERS else f"{value[:SHOWN_LETTERS]}…"
    return f"{key}={short} {message.removeprefix('Value error, ').replace('Input should', 'should')}"
