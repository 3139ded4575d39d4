"""summary.json: what a run achieved, from the files of its run directory alone."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recap.data.labels import read_thresholds
from recap.method.success import compare, summarize
from recap.report.advice import advise, best_policy, got_worse
from recap.report.words import ARM_NAMES
from recap.storage import readers as files
from recap.utils.errors import RecapError
from recap.utils.files import write_text

# What advice goes by, of the run's configuration.
SETTINGS = (
    *(f"policy.{key}" for key in ("sft.indicator", "indicator_dropout")),
    *(f"policy.finetune.{key}" for key in ("steps", "learning_rate", "indicator", "outcomes", "demo_fraction")),
    *("value.finetune.steps", "value.finetune.demo_fraction"),
    *("advantage.n_step", "advantage.positive_fraction", "advantage.force_positive"),
    *("rollout.episodes", "rollout.beta", "eval.episodes", "eval.beta"),
)


def build_summary(run_dir: Path) -> dict[str, Any]:
    """What the finished stages of a run directory say, in the format of summary.json.

    Keys: name, seed; worse, best, advice (see `recap.report.advice`); policies (one entry an iteration, 0 is SFT),
    controls, comparisons (paired, on the same initial states), forgetting (the same, on tasks without rollouts), gate,
    advantage, settings (of the configuration, by key), wall_seconds. `before` and `after` of a comparison are
    iterations, or the name of a control arm. `eval` is None for a policy that was trained but not evaluated; a count of
    episodes that no file tells is None.
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
    controls, settings = _controls(run_dir, nodes, policies), files.flat(config)
    summary = {
        "name": config.get("name") or run_dir.resolve().name,
        "seed": config.get("seed", next((m["seed"] for m in nodes.values() if "seed" in m), None)),
        **dict.fromkeys(("worse", "best", "advice")),  # what is said first follows from the rest
        "policies": policies,
        "controls": controls,
        "comparisons": _comparisons(run_dir, policies, controls),
        "forgetting": _forgetting(run_dir, policies),
        "gate": files.read_gates(run_dir),
        "advantage": _advantage(run_dir, nodes),
        "settings": {key: settings[key] for key in SETTINGS if key in settings},
        "wall_seconds": {node: seconds for node, m in nodes.items() if (seconds := files.wall_seconds(m)) is not None},
    }
    return summary | {"worse": got_worse(summary), "best": best_policy(summary), "advice": advise(summary)}


def write_summary(run_dir: Path, summary: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write summary.json (built here unless given) and return it; the link `best` leads to the checkpoint to keep.

    Raises RecapError as `build_summary` does.
    """
    summary = build_summary(run_dir) if summary is None else summary
    write_atomic(
        Path(run_dir) / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    _link(Path(run_dir), summary["best"])
    return summary


def _link(run_dir: Path, best: dict[str, Any] | None) -> None:
    """The relative link `best` in the run directory, exchanged at once; without one where there can be no links."""
    link, part = run_dir / "best", run_dir / ".best.tmp"
    somebody_elses = link.exists() and not link.is_symlink()
    if best is None or somebody_elses or not (run_dir / best["checkpoint"]).exists():
        return
    with suppress(OSError):
        part.unlink(missing_ok=True)
        part.symlink_to(best["checkpoint"])
        os.replace(part, link)


def write_atomic(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename: no reader sees half a file. Raises RecapError when the disk refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise RecapError(
            f"cannot write {path}: {error.strerror}; check free space and permissions of {path.parent}"
        ) from error


def read_evaluation(run_dir: Path, node: str) -> dict[str, Any]:
    """result.json of a finished evaluation. Raises RecapError when it is damaged or lists no episodes."""
    path = run_dir / node / "result.json"
    result = files.read_json(path)
    if not result["episodes"]:
        raise RecapError(f"{path} lists no episodes; delete {path.parent} and run the evaluation again")
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
    longest = files.read_config(run_dir / node).get("env", {}).get("max_steps")
    return {
        "episodes": numbers["n"],
        **{key: numbers[key] for key in keys},
        "timeouts": None if longest is None else sum(_timed_out(episode, longest) for episode in result["episodes"]),
        **{key: result.get(key) for key in ("prompt", "beta")},
        "outcomes": f"{node}/result.json",
    }


def _timed_out(episode: dict[str, Any], longest: int) -> bool:
    return not episode["success"] and episode["steps"] >= longest


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


def _controls(run_dir: Path, nodes: dict[str, Any], policies: list[dict]) -> list[dict[str, Any]]:
    """The arms beside the last evaluated policy; `changes`: {key: value} where their configuration is another."""
    last = max((policy["iteration"] for policy in policies if policy["eval"]), default=0)
    head = files.iteration_dir(last)
    found = (re.fullmatch(rf"{head}/controls/([^/]+)/eval", node) for node in nodes)
    arms = sorted(match[1] for match in found if match)
    order = [arm for arm in ARM_NAMES if arm in arms] + [arm for arm in arms if arm not in ARM_NAMES]
    return [
        {
            "arm": arm,
            "iteration": last,
            "changes": _changes(run_dir, head, arm),
            "eval": _evaluation(run_dir, nodes, f"{head}/controls/{arm}/eval"),
        }
        for arm in order
    ]


def _changes(run_dir: Path, head: str, arm: str) -> dict[str, Any]:
    """Where an arm's configuration is another than that of RECAP's own stages, by keys of the run's configuration."""
    changes: dict[str, Any] = {}
    for stage, prefix in (("sft", ""), ("advantage", ""), ("policy", ""), ("eval", "eval.")):
        recap = stage if stage == "sft" else f"{head}/{stage}"
        own, theirs = (
            files.flat(files.read_config(run_dir / path)) for path in (recap, f"{head}/controls/{arm}/{stage}")
        )
        for key, value in theirs.items() if own else ():
            if key in own and own[key] != value:
                changes[key if "." in key else prefix + key] = value
    return changes


def _comparisons(run_dir: Path, policies: list[dict], controls: list[dict]) -> list[dict[str, Any]]:
    """Each iteration against the one before, the last against SFT, the best and each control."""
    ran = [policy for policy in policies if policy["eval"]]
    best = best_policy({"policies": policies}) or {}
    pairs = list(pairwise(ran))
    pairs += [(before, ran[-1]) for before in ran[:-2] if before is ran[0] or before["iteration"] == best["iteration"]]
    pairs += [(control, ran[-1]) for control in controls if ran]
    return [
        {
            "before": before.get("arm", before["iteration"]),
            "after": after["iteration"],
            **_compared(run_dir, before["eval"]["outcomes"], after["eval"]["outcomes"]),
        }
        for before, after in pairs
    ]


def _compared(run_dir: Path, *results: str) -> dict[str, Any]:
    """The paired test of two evaluations. Raises RecapError, which names their files, where they have no pairs."""
    try:
        return compare(*(files.read_json(run_dir / path)["episodes"] for path in results))
    except RecapError as error:
        if str(run_dir) in str(error):
            raise
        raise RecapError(f"{' and '.join(str(run_dir / path) for path in results)}: {error}") from error


def _forgetting(run_dir: Path, policies: list[dict]) -> dict[str, Any] | None:
    """The first and the last policy on the tasks that no rollouts were collected for; None where there are none.

    {"tasks", "before", "after" (iterations), "episodes", "fixed", "broke", "mcnemar_p"}.
    """
    datasets = run_dir.glob("iter_*/rollout/dataset")
    collected = {episode["task"] for dataset in datasets for episode in files.read_episodes(dataset)}
    ran = [policy for policy in policies if policy["eval"]]
    tasks = sorted(set(ran[-1]["eval"]["per_task"]) - collected) if ran and collected else []
    if not tasks or len(ran) < 2:
        return None
    sides = [
        [
            e
            for e in read_evaluation(run_dir, policy["eval"]["outcomes"].rpartition("/")[0])["episodes"]
            if e["task"] in tasks
        ]
        for policy in (ran[0], ran[-1])
    ]
    ends = {"before": ran[0]["iteration"], "after": ran[-1]["iteration"]}
    return {"tasks": tasks, **ends, "episodes": len(sides[0]), **compare(*sides)}


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
