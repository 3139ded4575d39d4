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
from pydantic import TypeAdapter

from recap.data.labels import read_thresholds
from recap.method.success import summarize
from recap.report.advice import advise, best_policy, got_worse
from recap.report.choices import choices
from recap.report.ladder import controls, rungs
from recap.report.paired import paired
from recap.report.words import ABLATION_NAMES
from recap.rollout.config import CorrectionsConfig
from recap.storage import readers as files
from recap.storage.manifest import refuse_earlier
from recap.utils.errors import RecapError
from recap.utils.files import write_text

# What advice goes by, of the run's configuration.
SETTINGS = (
    *(f"policy.{key}" for key in ("sft.indicator", "indicator_dropout")),
    *(f"policy.finetune.{key}" for key in ("steps", "learning_rate", "indicator", "episode_filter", "demo_fraction")),
    *("value.finetune.steps", "value.finetune.demo_fraction"),
    *("advantage.n_step", "advantage.positive_fraction", "advantage.force_positive"),
    *("rollout.episodes", "rollout.beta", "eval.episodes", "eval.beta"),
)


def build_summary(run_dir: Path) -> dict[str, Any]:
    """What the finished stages of a run directory say, in the format of summary.json.

    Keys: name, seed; worse, best, advice (see `recap.report.advice`); policies (one entry an iteration, 0 is SFT),
    ablations, comparisons (paired, on the same initial states), forgetting (the same, on tasks without rollouts),
    ladder, controls (see `_ladder`), choices (see `recap.report.choices`), gate, advantage, settings (of the
    configuration, by key), wall_seconds. `before` and `after` of a comparison are iterations, or the name of an
    ablation. `eval` is None for a policy that was trained but not evaluated; a count of episodes that no file holds is
    None.
    Raises RecapError when the directory is missing, was written by an earlier version, holds no finished stage, or
    holds a file that cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RecapError(f"run directory {run_dir} does not exist. Fix: name one that loop.py wrote: outputs/demo")
    config, nodes = files.read_config(run_dir), files.finished_stages(run_dir)
    refuse_earlier(run_dir, config)
    if not nodes:
        raise RecapError(f"{run_dir} holds no finished stage (no manifest.json). Fix: loop.py output={run_dir}")
    results = {node: files.read_evaluation(run_dir / node) for node in nodes if node.endswith("eval")}
    policies = _policies(run_dir, nodes, results)
    ablations, settings = _ablations(run_dir, nodes, results), files.flat(config)
    summary = {
        "name": config.get("name") or run_dir.resolve().name,
        "seed": config.get("seed", next((m["seed"] for m in nodes.values() if "seed" in m), None)),
        **dict.fromkeys(("worse", "best", "advice")),  # shown first; they follow from the rest
        "policies": policies,
        "ablations": ablations,
        "comparisons": _comparisons(run_dir, results, policies, ablations),
        "forgetting": _forgetting(run_dir, results, policies),
        **dict.fromkeys(("ladder", "controls")),  # follow from the rest, too
        "choices": choices(run_dir, nodes, results),
        "gate": files.read_gates(run_dir),
        "advantage": _advantage(run_dir, nodes),
        "settings": {key: settings[key] for key in SETTINGS if key in settings},
        "wall_seconds": {node: seconds for node, m in nodes.items() if (seconds := files.wall_seconds(m)) is not None},
    }
    summary |= _ladder(run_dir, results, summary)
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


# ---------------------------------------------------------------------------------------------------- parts
def _evaluation(run_dir: Path, node: str, result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result.json, counted again, so that the summary cannot disagree with its episodes."""
    numbers = summarize(result["episodes"], result["fps"])
    keys = ("successes", "success_rate", "ci95", "mean_steps_to_success", "successes_per_hour", "per_task")
    longest = files.read_config(run_dir / node).get("env", {}).get("max_steps")
    timed_out = [not e["success"] and longest is not None and e["steps"] >= longest for e in result["episodes"]]
    return {
        "episodes": numbers["n"],
        **{key: numbers[key] for key in keys},
        "timeouts": None if longest is None else sum(timed_out),
        **{key: result.get(key) for key in ("prompt", "beta")},
        "outcomes": f"{node}/result.json",
    }


def _policies(run_dir: Path, nodes: dict[str, Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    demonstrations = _demonstrations(run_dir, nodes)
    policies, rollouts = [], 0
    for iteration in [0, *files.iterations(nodes)]:
        trained, evaluated = files.policy_node(iteration), files.eval_node(iteration)
        if (recorded := f"{files.iteration_dir(iteration)}/rollout") in nodes:
            rollouts += files.count_episodes(run_dir / recorded) or 0
        if trained in nodes or evaluated in nodes:
            policies.append(
                {
                    "iteration": iteration,
                    "stage": "finetune" if iteration else "sft",
                    "checkpoint": f"{trained}/checkpoints/last",
                    "eval": _evaluation(run_dir, evaluated, results[evaluated]) if evaluated in results else None,
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


# ---------------------------------------------------------------------------------------------------- ablations
def _ablations(run_dir: Path, nodes: dict[str, Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    """The ablations that were evaluated, each at its last iteration, those with a name in `ABLATION_NAMES` first.

    {"name", "iteration", "changes" ({key: value} where its configuration is another than the run's), "trained"
    (whether it has a policy of its own), "without_rollouts" (whether that one saw demonstrations alone), "eval",
    "comparison" (the paired test, RECAP's own evaluation being the later one; None where it has none)}.
    """
    own: dict[str, list[str]] = {}
    for node in nodes:
        if found := files.ABLATION.match(node):
            own.setdefault(found["name"], []).append(node)
    order = [*(name for name in ABLATION_NAMES if name in own), *sorted(own.keys() - ABLATION_NAMES.keys())]
    return [_ablation(run_dir, nodes, results, own[name], name) for name in order if results.keys() & set(own[name])]


def _ablation(run_dir: Path, nodes: dict[str, Any], results: dict[str, Any], own: list[str], name: str) -> dict:
    """One entry of `_ablations`; own: the ablation's nodes."""
    head = f"{files.ABLATIONS}/{name}"
    evaluation = max(results.keys() & set(own), key=files.iteration_of)
    iteration = files.iteration_of(evaluation)
    recap, policy = files.eval_node(iteration), files.policy_node(iteration)
    trained = f"{head}/{policy}"
    saw_rollouts = [any(role.startswith("rollouts") for role in files.inputs_of(nodes, n)) for n in (policy, trained)]
    return {
        "name": name,
        "iteration": iteration,
        "changes": _changes(run_dir, [node for node in own if files.iteration_of(node) in (0, iteration)], head),
        "trained": trained in nodes,
        "without_rollouts": trained in nodes and saw_rollouts == [True, False],
        "eval": _evaluation(run_dir, evaluation, results[evaluation]),
        "comparison": _paired(run_dir, results, evaluation, recap) if recap in results else None,
    }


def _changes(run_dir: Path, own: list[str], head: str) -> dict[str, Any]:
    """{key of the run's configuration: value} where a stage's config.yaml is another than that of the run's own one."""
    nobody = TypeAdapter(CorrectionsConfig).dump_python(CorrectionsConfig(), mode="json")
    at_defaults = files.flat(nobody, "rollout.corrections.")  # left out of config.yaml where nobody corrects
    known, changes = at_defaults | files.flat(files.read_config(run_dir)), {}
    for node in own:
        stage = node.removeprefix(f"{head}/")
        theirs, mine = (files.flat(files.read_config(run_dir / path)) for path in (stage, node))
        for key, before, value in files.config_changes(theirs, mine) if theirs else ():
            name = files.run_key(key, stage, known)
            if before != files.ABSENT or known.get(name, files.ABSENT) != value:  # not what only never mattered before
                changes[name] = value
    return changes


# ---------------------------------------------------------------------------------------------------- comparisons
def _comparisons(
    run_dir: Path, results: dict[str, Any], policies: list[dict], ablations: list[dict]
) -> list[dict[str, Any]]:
    """Each iteration against the one before, the last against SFT and the best, each ablation against RECAP."""
    ran = [policy["iteration"] for policy in policies if policy["eval"]]
    best = best_policy({"policies": policies})
    pairs = [*pairwise(ran), *((k, ran[-1]) for k in ran[:-2] if k == ran[0] or (best and k == best["iteration"]))]
    return [
        {"before": a, "after": b, **_paired(run_dir, results, files.eval_node(a), files.eval_node(b))} for a, b in pairs
    ] + [{"before": a["name"], "after": a["iteration"], **a["comparison"]} for a in ablations if a["comparison"]]


def _ladder(run_dir: Path, results: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """{"ladder": from SFT to RECAP and its corrections, "controls": the ablations beside it}, as far as they were run.

    A rung: {"name" (an iteration or an ablation), "adds" (what its step does), "successes", "episodes", "success_rate",
    "ci95", "comparison" (with the rung before)}. A control has "than" instead of "adds": the rung that its comparison
    is with, this one being the later side. Without a comparison it is None.
    """
    ladder = rungs(summary)
    pairs = [None, *(_paired(run_dir, results, *map(_node, pair)) for pair in pairwise(r.evaluation for r in ladder))]
    shown = [
        {"name": rung.side, "adds": rung.adds, **_counts(rung.evaluation), "comparison": pair}
        for rung, pair in zip(ladder, pairs, strict=False)
    ]
    above = {rung.side: rung.evaluation for rung in ladder}
    beside = []
    for ablation, than in controls(summary, ladder):
        pair = ablation["comparison"]
        if isinstance(than, str):
            pair = _paired(run_dir, results, _node(ablation["eval"]), _node(above[than]))
        beside.append({"name": ablation["name"], "than": than, **_counts(ablation["eval"]), "comparison": pair})
    return {"ladder": shown, "controls": beside}


def _counts(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {key: evaluation[key] for key in ("successes", "episodes", "success_rate", "ci95")}


def _node(evaluation: dict[str, Any]) -> str:
    return evaluation["outcomes"].rpartition("/")[0]


def _paired(run_dir: Path, results: dict[str, Any], *nodes: str) -> dict[str, Any]:
    """The paired test of two evaluations. Raises RecapError, which names their files, where they have no pairs."""
    try:
        return paired(*(results[node]["episodes"] for node in nodes))
    except RecapError as error:
        where = " and ".join(str(run_dir / node / "result.json") for node in nodes)
        raise RecapError(f"{where}: {error}") from error


def _forgetting(run_dir: Path, results: dict[str, Any], policies: list[dict]) -> dict[str, Any] | None:
    """The first and the last policy on the tasks that no rollouts were collected for; None where there are none.

    {"tasks", "before", "after" (iterations), "episodes", "lead", "fixed", "broke", "mcnemar_p"}.
    """
    datasets = run_dir.glob("iter_*/rollout/dataset")
    collected = {episode["task"] for dataset in datasets for episode in files.read_episodes(dataset)}
    ran = [policy for policy in policies if policy["eval"]]
    tasks = sorted(set(ran[-1]["eval"]["per_task"]) - collected) if ran and collected else []
    if not tasks or len(ran) < 2:
        return None
    ends = {"before": ran[0]["iteration"], "after": ran[-1]["iteration"]}
    all_episodes = (results[files.eval_node(iteration)]["episodes"] for iteration in ends.values())
    sides = [[episode for episode in episodes if episode["task"] in tasks] for episodes in all_episodes]
    return {"tasks": tasks, **ends, "episodes": len(sides[0]), **paired(*sides)}


def _advantage(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    stages = {files.iteration_of(node): node for node in nodes if re.fullmatch(r"(iter_\d+/)?advantage", node)}
    entries = []
    for iteration, node in stages.items():
        found = read_thresholds(run_dir / node)
        keys = ("epsilon", "wanted_positive", "achieved_positive")
        entries.append({"iteration": iteration, **{key: getattr(found, key) for key in keys}})
    return entries
