"""Which features of a data set are cameras, and which of those are read: colour, three channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recap.utils.nearest import nearest

if TYPE_CHECKING:
    from recap.data.lerobot_reader import DataSetFiles

CHANNELS = 3


def image_shapes(files: DataSetFiles, chosen: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """{key: (H, W, 3)} of the chosen cameras, by default all, in the order of the data set.

    Raises RecapError for a name that is no camera, and for a camera that is not in colour: none is dropped silently.
    """
    shapes = {key: _height_first(f) for key, f in files.features.items() if f["dtype"] in ("image", "video")}
    unread = {key: reason for key, shape in shapes.items() if (reason := _unread(files.features[key], shape))}
    colour = [key for key in shapes if key not in unread]
    if unknown := [key for key in chosen or () if key not in shapes]:
        problem = f"no camera {unknown}, which data.sources.{files.name}.cameras names"
        raise files.error(problem, f"it has {list(shapes)}. {_nearest(unknown[0], colour)}".rstrip())
    if chosen is not None and not chosen:
        raise files.error("no camera is chosen", f"it has {list(shapes)}")
    if wrong := {key: unread[key] for key in (shapes if chosen is None else chosen) if key in unread}:
        listed = ", ".join(f"{key} ({reason})" for key, reason in wrong.items())
        left = [key for key in colour if chosen is None or key in chosen] or colour
        fix = f"leave it out: {choice(files.name, left)}" if left else "it has no other camera"
        raise files.error(f"{listed}: not read, only cameras in colour (3 channels) are", fix)
    if not shapes:
        raise files.error("no camera", f"π0 needs one; its features are {list(files.features)}")
    return {key: shape for key, shape in shapes.items() if chosen is None or key in chosen}


def choice(source: str, cameras: Sequence[str]) -> str:
    """The override that reads only these cameras of a source; `++` sets a key whether or not it is there."""
    return f"'++data.sources.{source}.cameras=[{','.join(cameras)}]'"


def _height_first(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """info.json has (height, width, channels) or (channels, height, width); `names` are not always there."""
    shape = tuple(feature["shape"])
    few = (1, CHANNELS, 4)
    return (*shape[1:], shape[0]) if len(shape) == 3 and shape[0] in few and shape[2] not in few else shape


def _unread(feature: Mapping[str, Any], shape: tuple[int, ...]) -> str | None:
    """Why a camera is not read; None for one in colour. lerobot marks depth in one of three places."""
    info, video = (feature.get(key) or {} for key in ("info", "video_info"))
    if info.get("is_depth_map") or info.get("video.is_depth_map") or video.get("video.is_depth_map"):
        return "a depth map"
    if len(shape) != 3:
        return f"its shape is {list(shape)}"
    return None if shape[2] == CHANNELS else f"{shape[2]} channel{'s' if shape[2] != 1 else ''}"


def _nearest(wrong: str, valid: list[str]) -> str:
    return nearest(wrong, valid) if valid else ""
