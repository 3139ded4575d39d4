"""What report.html shows, as plain data: success curve, advantage histograms, value traces, losses, videos."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recap.config import SourceKind
from recap.data.frames import load_frames
from recap.errors import RecapError
from recap.report import run_files as files
from recap.report.verdict import ARM_SHORT, arm_name, evaluated, policy_name

log = logging.getLogger(__name__)

HISTOGRAM_BINS = 48
STRIP_FRAMES = 64  # frames of an episode that the strip holds at most
FRAME_PIXELS = 160  # larger frames are scaled down to this height
LOSS_POINTS = 300
VIDEO_EPISODES = 4
VIDEO_BYTES = 12_000_000  # all videos of a report together
STATISTICS_TAIL = 0.5  # per cent of the advantages on either side that fall into the outermost bins


def success_curve(summary: dict[str, Any]) -> dict[str, Any]:
    """Points with their intervals: the policies by iteration, then the controls."""

    def point(name: str, label: str, evaluation: dict[str, Any]) -> dict[str, Any]:
        low, high = evaluation["ci95"]
        counts = {"k": evaluation["successes"], "n": evaluation["episodes"]}
        return {"name": name, "label": label, "rate": evaluation["success_rate"], "low": low, "high": high, **counts}

    return {
        "policies": [
            point(policy_name(p["iteration"]), policy_name(p["iteration"]), p["eval"]) for p in evaluated(summary)
        ],
        "controls": [
            point(arm_name(c["arm"]), ARM_SHORT.get(c["arm"], arm_name(c["arm"])), c["eval"])
            for c in summary["controls"]
            if c["eval"]
        ],
    }


# ---------------------------------------------------------------------------------------------------- advantages
def advantage_histograms(run_dir: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """By iteration and task: the share of frames in each bin of the advantage, by source, and ε."""
    histograms = []
    for entry in summary["advantage"]:
        table = files.concatenate(files.read_advantages(_advantage_dir(run_dir, entry["iteration"])))
        if not table:
            continue
        masks, tasks = files.groups(table), table["task"]
        for task in sorted(set(tasks.tolist())):
            here = tasks == task
            advantage, epsilon = table["advantage"], entry["epsilon"].get(task, entry["epsilon"].get("all"))
            low, high = np.percentile(advantage[here], [STATISTICS_TAIL, 100 - STATISTICS_TAIL])
            if epsilon is not None:
                low, high = min(low, epsilon), max(high, epsilon)
            pad = 0.02 * (high - low) or 0.01
            edges = np.linspace(low - pad, high + pad, HISTOGRAM_BINS + 1)
            rows = []
            for name, mask in masks.items():
                chosen = mask & here
                if not chosen.any():
                    continue
                counts, _ = np.histogram(np.clip(advantage[chosen], edges[0], edges[-1]), edges)
                positive = float(table["indicator"][chosen].mean())
                rows.append(
                    {
                        "name": name,
                        "share": _round(counts / counts.sum(), 5),
                        "positive": positive,
                        "frames": int(chosen.sum()),
                    }
                )
            histograms.append(
                {
                    "iteration": entry["iteration"],
                    "task": task,
                    "epsilon": epsilon,
                    "edges": _round(edges, 6),
                    "groups": rows,
                }
            )
    return histograms


def _advantage_dir(run_dir: Path, iteration: int) -> Path:
    return run_dir / (f"{files.iteration_dir(iteration)}/advantage" if iteration else "advantage")


def _round(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


# ---------------------------------------------------------------------------------------------------- value over time
def value_traces(run_dir: Path, summary: dict[str, Any]) -> dict[str, Any] | None:
    """One success and one failure of the last rollouts: value, return, indicator and image by frame.

    Shown is the episode whose mean value is the median of its group, so a typical one and not the best looking. None
    without labelled rollouts.
    """
    for entry in reversed(summary["advantage"]):
        table, dataset = _last_rollouts(run_dir, entry["iteration"])
        if table is None:
            continue
        chosen = {outcome: episode for outcome, episode in _typical(table).items() if episode is not None}
        if not chosen:
            continue
        fps = files.read_json(dataset / "meta" / "info.json").get("fps", 10) if dataset else 10
        frames = _frames(dataset, sorted(chosen.values())) if dataset else {}
        traces = {outcome: _trace(table, episode, frames.get(episode)) for outcome, episode in chosen.items()}
        return {"iteration": entry["iteration"], "fps": fps, **traces}
    return None


def _last_rollouts(run_dir: Path, iteration: int) -> tuple[files.Columns | None, Path | None]:
    """Labels of the iteration's own rollouts and their data set: the table with the episode lengths that it lists."""
    dataset = run_dir / files.iteration_dir(iteration) / "rollout" / "dataset"
    listed = dataset / "meta" / "recap.json"
    steps = {e["episode_index"]: e["steps"] for e in files.read_json(listed)["episodes"]} if listed.is_file() else None
    newest = None
    for table in files.read_advantages(_advantage_dir(run_dir, iteration)):
        if not (table["source"] == "rollout").all():
            continue
        episodes, lengths = np.unique(table["episode_index"], return_counts=True)
        if steps is not None and dict(zip(episodes.tolist(), lengths.tolist(), strict=True)) == steps:
            return table, dataset
        newest = table
    return newest, None


def _typical(table: files.Columns) -> dict[str, int | None]:
    """The median success and failure by mean value, both of the task that has most of the rarer outcome."""
    episodes, first, inverse = np.unique(table["episode_index"], return_index=True, return_inverse=True)
    mean = np.bincount(inverse, weights=table["value"]) / np.bincount(inverse)
    success, task = table["success"][first], table["task"][first]
    rarer = {
        name: min((success & (task == name)).sum(), (~success & (task == name)).sum())
        for name in sorted(set(task.tolist()))
    }
    best = max(rarer, key=lambda name: rarer[name])
    chosen: dict[str, int | None] = {}
    for outcome, mask in (("success", success), ("failure", ~success)):
        candidates = np.flatnonzero(mask & (task == best)) if (mask & (task == best)).any() else np.flatnonzero(mask)
        order = candidates[np.argsort(mean[candidates], kind="stable")]
        chosen[outcome] = int(episodes[order[(len(order) - 1) // 2]]) if len(order) else None
    return chosen


def _trace(table: files.Columns, episode: int, frames: Mapping[int, Any] | None) -> dict[str, Any]:
    rows = np.flatnonzero(table["episode_index"] == episode)
    rows = rows[np.argsort(table["frame_index"][rows], kind="stable")]
    trace = {
        "episode": episode,
        "task": str(table["task"][rows[0]]),
        "value": _round(table["value"][rows], 4),
        "return": _round(table["return"][rows], 4),
        "positive": [int(value) for value in table["indicator"][rows]],
    }
    return trace | {"strip": _strip(frames)} if frames else trace


def _frames(dataset: Path, episodes: list[int]) -> dict[int, dict[int, Any]]:
    """{episode: {frame: image}}, evenly spaced, first and last among them; images encoded as PNG, or decoded."""
    listed = files.read_json(dataset / "meta/recap.json")["episodes"]
    shown = {}
    for episode in episodes:
        last = listed[episode]["steps"] - 1
        shown[episode] = np.unique(np.linspace(0, last, min(last + 1, STRIP_FRAMES)).round().astype(int)).tolist()
    if files.read_json(dataset / "meta/info.json").get("video_path") is None:
        found = _encoded(dataset, episodes)
        return {e: {i: found[e][i] for i in index} for e, index in shown.items() if e in found}
    frames = load_frames(dataset, "rollouts", SourceKind.rollout)
    images = {e: frames.pixels(frames.cameras[0], frames.start[e] + np.array(index)) for e, index in shown.items()}
    return {e: dict(zip(index, images[e], strict=True)) for e, index in shown.items()}


def _encoded(dataset: Path, episodes: list[int]) -> dict[int, list[bytes]]:
    """Encoded images of the episodes, in order, from a data set with images in parquet."""
    found: dict[int, dict[int, bytes]] = {}
    for path in sorted((dataset / "data").rglob("*.parquet")):
        try:
            keys = [name for name in pq.read_schema(path).names if name.startswith("observation.images.")]
            if not keys:
                return {}
            key = "observation.images.image" if "observation.images.image" in keys else keys[0]
            # The folder is no partition key: pyarrow would take a column out of a name such as "seed=0".
            columns, wanted = ["episode_index", "frame_index", key], [("episode_index", "in", episodes)]
            table = pq.read_table(path, columns=columns, filters=wanted, partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise RecapError(
                f"{path} cannot be read ({error}); delete {dataset.parent} and run the loop again"
            ) from error
        for episode, frame, image in zip(
            *(table[name].to_pylist() for name in ("episode_index", "frame_index", key)), strict=True
        ):
            if image and image.get("bytes"):
                found.setdefault(episode, {})[frame] = image["bytes"]
    return {episode: [images[frame] for frame in sorted(images)] for episode, images in found.items()}


def _strip(frames: Mapping[int, Any]) -> dict[str, Any]:
    """Frames on one JPEG sheet; `frames` are their indices."""
    images = [
        Image.open(io.BytesIO(image)).convert("RGB") if isinstance(image, bytes) else Image.fromarray(image)
        for image in frames.values()
    ]
    scale = min(1.0, FRAME_PIXELS / images[0].height)
    width, height = round(images[0].width * scale), round(images[0].height * scale)
    columns = 8
    sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)))
    for position, image in enumerate(images):
        sheet.paste(image.resize((width, height)), (width * (position % columns), height * (position // columns)))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88, subsampling=0)
    return {
        "image": data_uri(buffer.getvalue(), "image/jpeg"),
        "frames": list(frames),
        "columns": columns,
        "width": width,
        "height": height,
    }


# ---------------------------------------------------------------------------------------------------- losses, videos
def losses(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss by step of every finished training stage, thinned to at most LOSS_POINTS means over neighbouring records."""
    curves = []
    for node in nodes:
        path = run_dir / node / "metrics.jsonl"
        if not path.is_file():
            continue
        points = [
            (r["step"], r["loss"])
            for r in files.read_metrics(path)
            if files.finite(r.get("step")) and files.finite(r.get("loss"))
        ]
        if len(points) < 2:
            continue
        parts = np.array_split(np.array(sorted(points), dtype=float), min(len(points), LOSS_POINTS))
        means = np.array([part.mean(axis=0) for part in parts])
        curves.append(
            {"node": node, "step": _round(means[:, 0], 1), "loss": [float(f"{value:.4g}") for value in means[:, 1]]}
        )
    return curves


def videos(run_dir: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The first filmed evaluation episodes, with the first and the last policy side by side.

    [{"title", "takes": [{"policy", "outcome", "success", "uri"}]}]; at most VIDEO_EPISODES, VIDEO_BYTES together.
    """
    policies = evaluated(summary)
    shown = policies if len(policies) < 2 else [policies[0], policies[-1]]
    episodes: dict[int, list[dict[str, Any]]] = {}
    titles: dict[int, str] = {}
    budget = VIDEO_BYTES
    takes: list[tuple[int, int, dict[str, Any], Path, dict[str, Any]]] = []
    for column, policy in enumerate(shown):
        folder = (run_dir / policy["eval"]["outcomes"]).parent
        results = {episode["index"]: episode for episode in files.read_json(folder / "result.json")["episodes"]}
        numbered = ((re.search(r"\d+", path.stem), path) for path in sorted((folder / "videos").glob("*.mp4")))
        found = ((int(number.group()), path) for number, path in numbered if number)
        takes += [(index, column, policy, path, results[index]) for index, path in found if index in results]
    for index, _, policy, path, result in sorted(takes, key=lambda take: take[:2]):
        if index not in episodes and len(episodes) == VIDEO_EPISODES:
            break
        if path.stat().st_size > budget:
            log.warning("%s is left out of the report: the videos would pass %d MB", path, VIDEO_BYTES // 10**6)
            continue
        budget -= path.stat().st_size
        outcome = (
            f"succeeded in {result['steps']} steps" if result["success"] else f"failed after {result['steps']} steps"
        )
        titles[index] = f"Initial state {result['initial_state']}: {result['task']}"
        take = {"policy": policy_name(policy["iteration"]), "outcome": outcome, "success": bool(result["success"])}
        episodes.setdefault(index, []).append({**take, "uri": data_uri(path.read_bytes(), "video/mp4")})
    return [{"title": titles[index], "takes": shown_takes} for index, shown_takes in episodes.items()]


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
