"""summary.json: what a run achieved, from the files of its run directory alone."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recap.data.labels import read_thresholds
from recap.errors import RecapError
from recap.evaluation import compare, summarize
from recap.report import run_files as files
from recap.report.verdict import ARM_NAMES


def build_summary(run_dir: Path) -> dict[str, Any]:
    """What the finished stages of a run directory say, in the format of summary.json.

    Keys: name, seed, policies (one entry an iteration, 0 is SFT), controls, comparisons (paired, on the same initial
    states), advantage, wall_seconds. `before` and `after` of a comparison are iterations, or the name of a control arm.
    `eval` is None for a policy that was trained but not evaluated; a count of episodes that no file tells is None.
    Raises RecapError when the directory is missing, holds no finished stage, or holds a file that cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RecapError(f"run directory {run_dir} does not exist; give one that loop.py wrote, such as outputs/demo")
    config, nodes = files.read_config(run_dir), files.finished_stages(run_dir)
    if not nodes:
        raise RecapError(
            f"{run_dir} holds no finished stage (no manifest.json); run loop.py with output={run_dir} first"
        )
    policies = _policies(run_dir, nodes)
    controls = _controls(run_dir, nodes)
    return {
        "name": config.get("name") or run_dir.resolve().name,
        "seed": config.get("seed", next((m["seed"] for m in nodes.values() if "seed" in m), None)),
        "policies": policies,
        "controls": controls,
        "comparisons": _comparisons(run_dir, policies, controls),
        "advantage": _advantage(run_dir, nodes),
        "wall_seconds": {node: seconds for node, m in nodes.items() if (seconds := files.wall_seconds(m)) is not None},
    }


def write_summary(run_dir: Path, summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write summary.json (built here unless given) and return it. Raises RecapError as `build_summary` does."""
    summary = build_summary(run_dir) if summary is None else summary
    write_atomic(
        Path(run_dir) / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return summary


def write_atomic(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename: no reader sees half a file. Raises RecapError when the disk refuses."""
    part = path.with_name(path.name + ".tmp")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise RecapError(
            f"cannot write {path}: {error.strerror}; check free space and permissions of {path.parent}"
        ) from error


def read_evaluation(run_dir: Path, node: str) -> dict[str, Any]:
    """result.json of a finished evaluation. Raises RecapError when it is damaged or lists no episodes."""
    path = run_dir / node / "result.json"
    result = files.read_json(path)
    if not result.get("episodes") or "fps" not in result:
        raise RecapError(f"{path} lists no episodes or no fps; delete {path.parent} and run the evaluation again")
    return result


# ---------------------------------------------------------------------------------------------------- parts
def _evaluation(run_dir: Path, nodes: dict[str, Any], node: str) -> dict[str, Any] | None:
    if node not in nodes:
        return None
    result = read_evaluation(run_dir, node)
    numbers = summarize(
        result["episodes"], result["fps"]
    )  # counted again, so that the summary cannot disagree with its episodes
    keys = ("successes", "success_rate", "ci95", "mean_steps_to_success", "successes_per_hour", "per_task")
    return {"episodes": numbers["n"], **{key: numbers[key] for key in keys}, "outcomes": f"{node}/result.json"}


def _policies(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    demonstrations = _demonstrations(run_dir, nodes)
    policies, rollouts = [], 0
    for iteration in [0, *files.iterations(nodes)]:
        head = files.iteration_dir(iteration)
        trained, evaluated = ("sft", "sft/eval") if iteration == 0 else (f"{head}/policy", f"{head}/eval")
        if f"{head}/rollout" in nodes:
            rollouts += files.count_episodes(run_dir / head / "rollout") or 0
        if trained in nodes or evaluated in nodes:
            policies.append(
                {
                    "iteration": iteration,
                    "stage": "sft" if iteration == 0 else "finetune",
                    "checkpoint": f"{trained}/checkpoints/last",
                    "eval": _evaluation(run_dir, nodes, evaluated),
                    "data": {"demonstrations": demonstrations, "rollouts": rollouts},
                }
            )
    return policies


def _demonstrations(run_dir: Path, nodes: dict[str, Any]) -> int | None:
    """Recorded demonstrations; with a data set from elsewhere, the episodes that the first advantage stage labelled."""
    if (count := files.count_episodes(run_dir / "demonstrations")) is not None:
        return count
    stage = next((node for node in nodes if node.split("/")[-1] == "advantage"), None)
    if stage is None:
        return None
    labelled = [table for table in files.read_advantages(run_dir / stage) if (table["source"] == "demonstration").any()]
    return sum(len(np.unique(table["episode_index"])) for table in labelled)


def _controls(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms of the last iteration; those of earlier ones stay in their directories."""
    last = max(files.iterations(nodes), default=0)
    head = f"{files.iteration_dir(last)}/controls/"
    arms = {node.removeprefix(head).split("/")[0] for node in nodes if node.startswith(head) and node.endswith("/eval")}
    ordered = [arm for arm in ARM_NAMES if arm in arms] + sorted(arms - set(ARM_NAMES))  # told in this order
    return [
        {"arm": arm, "iteration": last, "eval": _evaluation(run_dir, nodes, f"{head}{arm}/eval")} for arm in ordered
    ]


def _comparisons(run_dir: Path, policies: list[dict], controls: list[dict]) -> list[dict[str, Any]]:
    """Each iteration against the one before, the last against SFT, and each control against the last."""
    evaluated = [policy for policy in policies if policy["eval"]]
    pairs = list(pairwise(evaluated))
    if len(evaluated) > 2:
        pairs.append((evaluated[0], evaluated[-1]))
    pairs += [(control, evaluated[-1]) for control in controls if evaluated]
    return [
        {
            "before": before.get("arm", before["iteration"]),
            "after": after["iteration"],
            **compare(*(files.read_json(run_dir / side["eval"]["outcomes"])["episodes"] for side in (before, after))),
        }
        for before, after in pairs
    ]


def _advantage(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for node in nodes:
        head, _, word = node.rpartition("/")
        if word != "advantage" or not (head == "" or files.ITERATION.match(head)):
            continue
        thresholds = read_thresholds(run_dir / node)
        entries.append(
            {
                "iteration": int(head[5:]) if head else 0,
                "epsilon": thresholds.epsilon,
                "wanted_positive": thresholds.wanted_positive,
                "achieved_positive": thresholds.achieved_positive,
            }
        )
    return entries
