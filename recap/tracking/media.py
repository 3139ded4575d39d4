"""What is sent of each kind of stage: numbers, pictures, videos, histograms, from its finished directory.

lib: wandb or trackio, which name these alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from recap.data.labels import read_thresholds
from recap.storage import readers as files

Row = dict[str, Any]
FIRST_BATCH, PROMPTS = "first_batch", "prompts.jsonl"
BINS = 64  # of a histogram


def key(*parts: str) -> str:
    """`success/put_the_moka_pot_on_the_stove`: W&B's panels know letters, digits, _ - . and /."""
    return "/".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


# ---------------------------------------------------------------------------------------------------- stages
def first_batch(lib: Any, out: Path) -> Row:
    """What the network was shown first, with the text it read; {} where a training left none."""
    folder = out / FIRST_BATCH
    if not (folder / PROMPTS).is_file():
        return {}
    prompts = [json.loads(line) for line in (folder / PROMPTS).read_text(encoding="utf-8").splitlines()]
    images = sorted(folder.glob("*.png"))
    return {"first_batch": [lib.Image(str(i), caption=p) for i, p in zip(images, prompts, strict=True)]}


def evaluation(lib: Any, out: Path, videos: int) -> Row:
    result = files.read_evaluation(out)
    outcome = {episode["index"]: episode for episode in result["episodes"]}
    return {**success(result["n"], result), **_videos(lib, out, videos, outcome)}


def recording(lib: Any, out: Path, videos: int) -> Row:
    """Demonstrations or rollouts; what an operator finished is no success of the policy."""
    episodes = files.read_episodes(out / "dataset")
    won = [episode["success"] and "corrected_from" not in episode for episode in episodes]
    row: Row = {
        "data/episodes": len(episodes),
        "data/frames": sum(episode["steps"] for episode in episodes),
        "data/success_rate": float(np.mean(won)),
        "data/mean_steps": float(np.mean([episode["steps"] for episode in episodes])),
    }
    if corrections := [episode["success"] for episode in episodes if "corrected_from" in episode]:
        row |= {"data/corrections": len(corrections), "data/corrections_success_rate": float(np.mean(corrections))}
    tasks = np.array([episode["task"] for episode in episodes])
    for task in sorted(set(tasks.tolist())):
        row[key("data/success_rate", task)] = float(np.mean(np.array(won)[tasks == task]))
    return {**row, **_videos(lib, out, videos, dict(enumerate(episodes)))}


def values(lib: Any, out: Path, _: int) -> Row:
    """V of every frame, by data set."""
    row: Row = {}
    for path in sorted(out.glob("*.npy")):
        found = np.load(path)
        row[key("value", path.stem)] = _histogram(lib, found)
        row[key("value_mean", path.stem)] = float(found.mean())
    return row


def advantages(lib: Any, out: Path, _: int) -> Row:
    """ε, achieved shares, a histogram of the advantages by source, and V over a success and a failure."""
    tables = files.read_advantages(out)
    row, pooled = _labels(asdict(read_thresholds(out))), files.concatenate(tables)
    for name, mask in files.groups(pooled).items():
        row[key("advantage", name)] = _histogram(lib, pooled["advantage"][mask])
    return {**row, **_value_curves(lib, tables)}


def gate(lib: Any, out: Path, _: int) -> Row:
    """The checks of the value gate, by name, and its figure."""
    result = files.read_json(out / "gate.json")
    row: Row = {"gate/passed": int(result["passed"])}
    for check in result["checks"]:
        row[key("gate", check["name"], "passed")] = int(check["passed"])
        if check["value"] is not None:
            row[key("gate", check["name"])] = check["value"]
    return {**row, "gate/figure": lib.Image(str(out / "gate.png"))}


def rest(_: Any, out: Path, __: int) -> Row:
    """Any other stage: the numbers in its JSON files."""
    row: Row = {}
    for path in sorted(out.glob("*.json")):
        if path.name not in ("manifest.json", "config.yaml"):
            row |= {f"{path.stem}/{name}": value for name, value in _numbers(files.read_json(path))}
    return row


RESULTS: dict[str, Callable[[Any, Path, int], Row]] = {
    "eval": evaluation,
    "demonstrations": recording,
    "rollout": recording,
    "value_inference": values,
    "advantage": advantages,
    "gate": gate,
}


def results(lib: Any, kind: str, out: Path, videos: int) -> Row:
    """What a finished stage shows; videos: at most so many."""
    return RESULTS.get(kind, rest)(lib, out, videos)


def success(episodes: int, numbers: dict[str, Any]) -> Row:
    """Success with its interval, per task, and how fast; of a result.json or of a policy in summary.json."""
    low, high = numbers["ci95"]
    row: Row = {
        "success/rate": numbers["success_rate"],
        "success/low": low,
        "success/high": high,
        "success/episodes": episodes,
        "speed/mean_steps_to_success": numbers["mean_steps_to_success"],
        "speed/successes_per_hour": numbers["successes_per_hour"],
    }
    for task, counts in numbers["per_task"].items():
        row[key("success_by_task", task)] = counts["successes"] / counts.get("n", counts.get("episodes"))
    return {name: value for name, value in row.items() if value is not None}


# ---------------------------------------------------------------------------------------------------- the run
def loop_rows(run: Path) -> tuple[list[tuple[int, Row]], Row]:
    """((iteration, its row) of all iterations that are evaluated, what may still change): from summary.json."""
    summary = files.read_json(run / "summary.json")
    labels = {entry["iteration"]: entry for entry in summary["advantage"]}
    rows = []
    for policy in takewhile(lambda policy: policy["eval"], summary["policies"]):
        iteration = policy["iteration"]
        row: Row = success(policy["eval"]["episodes"], policy["eval"])
        row |= {key("data", name): count for name, count in policy["data"].items() if count is not None}
        if entry := labels.get(iteration):
            row |= _labels(entry)
        row |= _minutes(iteration, summary["wall_seconds"])
        rows.append((iteration, {"iteration": iteration, **{f"loop/{name}": value for name, value in row.items()}}))
    totals: Row = {"minutes/run": round(sum(summary["wall_seconds"].values()) / 60, 3)}
    for ablation in summary["ablations"]:
        low, high = ablation["eval"]["ci95"]
        numbers = {"rate": ablation["eval"]["success_rate"], "low": low, "high": high}
        totals |= {key("ablations", ablation["name"], name): value for name, value in numbers.items()}
    for pair in summary["comparisons"]:
        name = f"{pair['before']}_to_{pair['after']}"
        totals |= {
            key("paired", name, what): value for what, value in _numbers(pair) if what not in ("before", "after")
        }
    return rows, {f"loop/{name}": value for name, value in totals.items()}


def _minutes(iteration: int, wall: dict[str, float]) -> Row:
    """Wall time of the stages that an iteration's evaluation comes after, so that all of them are known by then."""
    head = f"iter_{iteration:02d}/"
    own = {path.removeprefix(head): seconds for path, seconds in wall.items() if path.startswith(head)}
    if not iteration:
        own = {path: wall[path] for path in ("demonstrations", "sft", "sft/eval") if path in wall}
    row = {key("minutes", path.replace("/", "_")): round(seconds / 60, 3) for path, seconds in own.items()}
    return {**row, "minutes/iteration": round(sum(own.values()) / 60, 3)}


# ---------------------------------------------------------------------------------------------------- parts
def _videos(lib: Any, out: Path, most: int, outcome: dict[int, dict[str, Any]]) -> Row:
    shown = []
    for index, path in [*files.films(out).items()][:most]:
        caption = path.stem
        if episode := outcome.get(index):
            ended = "success" if episode["success"] else "failure"
            caption = f"{ended} in {episode['steps']} steps: {episode['task']}"
        shown.append(lib.Video(str(path), caption=caption, format="mp4"))
    return {"videos": shown} if shown else {}


def _histogram(lib: Any, values: np.ndarray) -> Any:
    return lib.Histogram(np_histogram=np.histogram(values, bins=BINS))


def _labels(labels: dict[str, Any]) -> Row:
    """ε by task and the shares of positive frames; of a thresholds.json or of an iteration in summary.json."""
    row: Row = {"positive/wanted": labels["wanted_positive"]}
    row |= {key("positive", name): share for name, share in labels["achieved_positive"].items() if share is not None}
    return row | {key("epsilon", task): value for task, value in labels["epsilon"].items()}


def _value_curves(lib: Any, tables: list[dict[str, np.ndarray]]) -> Row:
    """V and the return over the typical success and failure (the median of the mean value) of the newest rollouts."""
    if not hasattr(lib, "plot"):
        return {}
    rollouts = [table for table in tables if (table["source"] != "demonstration").all()]
    table = rollouts[-1] if rollouts else tables[0]
    row: Row = {}
    for outcome, won in (("success", True), ("failure", False)):
        episodes = files.by_mean_value(table, table["success"] == won)
        if not episodes:
            continue
        episode = episodes[(len(episodes) - 1) // 2]
        frames = np.flatnonzero(table["episode_index"] == episode)
        frames = frames[np.argsort(table["frame_index"][frames])]
        lines = [table[name][frames].tolist() for name in ("value", "return")]
        row[f"value_curve/{outcome}"] = lib.plot.line_series(
            xs=table["frame_index"][frames].tolist(),
            ys=lines,
            keys=["V", "return"],
            title=f"{outcome}: episode {episode}, {table['task'][frames[0]]}",
            xname="frame",
        )
    return row


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        where = key(prefix, str(name)) if prefix else key(str(name))
        if isinstance(value, dict):
            yield from _numbers(value, where)
        elif isinstance(value, bool | int | float) and math.isfinite(value):
            yield where, value
