"""Reads the files of a run directory. Only what is finished counts: a stage without manifest.json is not there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recap.data.labels import PARQUET, read_labels
from recap.utils.errors import RecapError, disk_error
from recap.utils.shapes import COUNT, POSITIVE, misfit

Columns = dict[str, np.ndarray]  # the columns of advantages.parquet, one entry a frame

ITERATION = re.compile(r"iter_(\d+)$")
ABLATIONS = "ablations"
ABLATION = re.compile(rf"{ABLATIONS}/(?P<name>[^/]+)/(?P<node>.+)$")  # of a node that an ablation does not share
COUNTED, ABSENT = ("stage", "iteration"), "–"  # differ from stage to stage by design; what has no value
# What is read of each file; the rest of it may be anything.
EPISODE = {"task": str, "success": bool, "steps": COUNT, "choice?": (str, None), "choice_frame?": (COUNT, None)}
CHECK = {"name": str, "value": (float, None), "limit": str, "knob": str, "passed": bool, "text": str}
INPUTS = {str: {"sha256": str}}
SHAPES: dict[str, Any] = {
    "gate.json": {"passed": bool, "action": str, "checks": [CHECK]},
    "result.json": {
        "episodes": [{**EPISODE, "index": COUNT, "initial_state": int, "seed": int}],
        "fps": POSITIVE,
        "n?": COUNT,
        "prompt?": (str, None),
        "beta?": (float, None),
    },
    "recap.json": {"episodes": [{**EPISODE, "episode_index": COUNT}]},
    "info.json": {"total_episodes?": (COUNT, None)},
    "manifest.json": {
        "seed?": (int, None),
        "git_commit?": (str, None),
        "host?": (str, None),
        "wall_seconds?": (float, None),
        "started?": (float, str, None),
        "finished?": (float, str, None),
        "inputs?": (INPUTS, None),
        "versions?": ({str: (str, None)}, None),
    },
    "summary.json": {
        "policies": [{"iteration": COUNT, "eval": {"outcomes": str}}],
        "ablations": [{"name": str, "eval": {"outcomes": str}}],
    },
    "config.yaml": {"name?": (str, None), "seed?": (int, None), "env?": {"max_steps?": (COUNT, None)}},
}
# The order in which a run visits its stages, before and in the iterations; wall times and curves are shown in it.
STAGE_ORDER = ("demonstrations", "value", "value_inference", "advantage", "gate", "sft", "sft/eval")
ITERATION_ORDER = ("rollout", "value", "value_inference", "advantage", "gate", "policy", "eval")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises RecapError when it is missing, damaged or holds something else."""
    text = _read(path)
    try:
        content = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise RecapError(f"{path} is not valid JSON ({error}); {_again(path)}") from error
    if wrong := misfit(content, SHAPES.get(path.name, dict)):
        raise RecapError(f"{path} is damaged ({wrong}); {_again(path)}")
    return content


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.yaml of the run, or of a stage, as plain containers, or {} where there is none. Raises RecapError."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(_read(path)) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise RecapError(f"{path} is not valid YAML ({str(error).splitlines()[0]}); {_again(path)}") from error
    if wrong := misfit(content, SHAPES[path.name]):
        raise RecapError(f"{path} is damaged ({wrong}); {_again(path)}")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecapError(f"{path} is missing; run the stage that writes it again") from error
    except UnicodeDecodeError as error:
        raise RecapError(
            f"{path} is damaged (no text: {error.reason} at byte {error.start}); {_again(path)}"
        ) from error
    except OSError as error:
        raise disk_error(error, path, "cannot read") or RecapError(f"{path} cannot be read ({error})") from error


def _again(path: Path) -> str:
    """How to have a file of a run made anew."""
    stage = next((folder for folder in path.parents if (folder / "manifest.json").is_file()), path.parent)
    if (stage / "summary.json").is_file() or (path.parent == stage and path.name == "config.yaml"):
        return "restore it from a copy"
    return f"delete the stage directory {stage} and run the loop again"


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _stage_rank(node: str) -> tuple[bool, str, int, int, str]:
    """The run's stages in its order, then those of each ablation in the same order."""
    ablation = ABLATION.match(node)
    name, node = (ablation["name"], ablation["node"]) if ablation else ("", node)
    head, _, tail = node.partition("/")
    order, word = (ITERATION_ORDER, tail) if ITERATION.match(head) else (STAGE_ORDER, node)
    word = re.sub(r"^value_\d+$", "value", word)  # a further member of the value function
    return bool(ablation), name, iteration_of(node), order.index(word) if word in order else len(order), node


def finished_stages(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Manifest of every finished node ("sft", "iter_01/eval", "ablations/<name>/iter_01/eval"), in the run's order."""
    depths = ("*", "*/*", f"{ABLATIONS}/*/*", f"{ABLATIONS}/*/*/*")
    paths = {path for depth in depths for path in run_dir.glob(f"{depth}/manifest.json")}
    nodes = sorted((path.parent.relative_to(run_dir).as_posix() for path in paths), key=_stage_rank)
    return {node: read_json(run_dir / node / "manifest.json") for node in nodes}


def inputs_of(nodes: dict[str, dict[str, Any]], node: str) -> dict[str, dict[str, Any]]:
    """Role -> {"sha256"} of what a stage read; {} where it is not finished."""
    return nodes.get(node, {}).get("inputs") or {}


def iterations(nodes: dict[str, dict[str, Any]]) -> list[int]:
    """The iterations (from 1) that have at least one finished stage."""
    return sorted({iteration_of(node) for node in nodes if ITERATION.match(node.split("/")[0])})


def iteration_of(node: str) -> int:
    """Which iteration a node belongs to; 0 for the pre-training."""
    found = re.search(r"(?:^|/)iter_(\d+)/", f"{node}/")
    return int(found[1]) if found else 0


def iteration_dir(iteration: int) -> str:
    return f"iter_{iteration:02d}"


def read_gates(run_dir: Path) -> list[dict[str, Any]]:
    """What the value gates found: gate.json and "iteration", 0 before SFT. A gate that failed has no manifest."""
    before = [(0, path) for path in run_dir.glob("gate/gate.json")]
    found = ((ITERATION.match(path.parts[-3]), path) for path in sorted(run_dir.glob("iter_*/gate/gate.json")))
    numbered = before + [(int(match[1]), path) for match, path in found if match]
    return [{"iteration": iteration, **read_json(path)} for iteration, path in numbered]


def stage_dir(run_dir: Path, iteration: int, stage: str) -> Path:
    """Where a stage of an iteration is; of 0, that of the pre-training."""
    return run_dir / iteration_dir(iteration) / stage if iteration else run_dir / stage


def policy_node(iteration: int) -> str:
    return f"{iteration_dir(iteration)}/policy" if iteration else "sft"


def eval_node(iteration: int) -> str:
    return f"{iteration_dir(iteration)}/eval" if iteration else "sft/eval"


def read_evaluation(stage: Path) -> dict[str, Any]:
    """result.json of a finished evaluation. Raises RecapError when it is damaged or lists no episodes."""
    path = stage / "result.json"
    result = read_json(path)
    if not result["episodes"]:
        raise RecapError(f"{path} lists no episodes; {_again(path)}")
    return result


def read_episodes(dataset: Path) -> list[dict[str, Any]]:
    """Task, success, steps, initial state, seed and choice of the episodes that the run recorded; [] without."""
    path = dataset / "meta" / "recap.json"
    return read_json(path)["episodes"] if path.is_file() else []


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"policy.finetune.steps": 1200, ...} of nested values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) where two flat configurations differ; "–" for a missing key."""
    keys = [*old, *(key for key in new if key not in old)]
    found = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys if key not in COUNTED]
    return [change for change in found if change[1] != change[2]]


def run_key(key: str, node: str, known: Mapping[str, Any]) -> str:
    """What a key of a stage's config.yaml is called in the run's: `prompt` of an evaluation is eval.prompt.

    known: the run's configuration, flat.
    """
    word = node.rpartition("/")[2]
    candidates = (key, f"{word}.{key}", f"policy.{key}")
    return next((c for c in candidates if c in known), key if "." in key else f"{word}.{key}")


def moment(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, datetime):
        return value.timestamp()
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None


def wall_seconds(manifest: dict[str, Any]) -> float | None:
    """Wall time of a stage: the manifest's own number, or the difference of its two times."""
    if isinstance(manifest.get("wall_seconds"), int | float):
        return round(float(manifest["wall_seconds"]), 1)
    start, end = moment(manifest.get("started")), moment(manifest.get("finished"))
    return None if start is None or end is None else round(end - start, 1)


def count_episodes(stage_dir: Path) -> int | None:
    """Episodes that a recording stage wrote; None where it left no count."""
    for path, key in (
        (stage_dir / "dataset" / "meta" / "info.json", "total_episodes"),
        (stage_dir / "result.json", "n"),
    ):
        if path.is_file():
            count = read_json(path).get(key)
            if count is not None:
                return int(count)
    return None


def films(stage_dir: Path) -> dict[int, Path]:
    """The videos of a stage by the index of their episode."""
    numbered = ((re.search(r"\d+", path.stem), path) for path in sorted((stage_dir / "videos").glob("*.mp4")))
    return {int(number[0]): path for number, path in numbered if number}


def read_advantages(stage_dir: Path) -> list[Columns]:
    """Labels of every data set of an advantage stage, by name. Raises RecapError for a damaged one."""
    return [read_labels(path.parent).columns for path in sorted(stage_dir.rglob(PARQUET))]


def concatenate(tables: list[Columns]) -> Columns:
    """Several data sets' frames as one table; {} for none."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]} if tables else {}


def groups(table: Columns) -> dict[str, np.ndarray]:
    """Masks over frames, [n] each: demonstration, the policy's success and failure, correction; those that occur."""
    source, success = table["source"], table["success"]
    masks = {
        "demonstration": source == "demonstration",
        "success": (source == "rollout") & success,
        "failure": (source == "rollout") & ~success,
        "correction": source == "correction",
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def by_mean_value(table: Columns, mask: np.ndarray) -> list[int]:
    """The episodes among the masked frames, lowest mean value first."""
    episodes, inverse = np.unique(table["episode_index"][mask], return_inverse=True)
    mean = np.bincount(inverse, weights=table["value"][mask]) / np.bincount(inverse)
    return episodes[np.argsort(mean, kind="stable")].tolist()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl, [] without one; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
