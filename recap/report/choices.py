"""Which of several ways the episodes took, and how each went: the mechanism, where an environment records a choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recap.method.success import bootstrap_mean, wilson
from recap.report.paired import paired
from recap.storage import readers as files

Episodes = list[dict[str, Any]]


def choices(run_dir: Path, nodes: dict[str, Any], results: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each task in which episodes recorded a choice, by instruction; [] for all other runs.

    {"task", "names" (of the ways), "stages": [{"node" (that recorded or evaluated), "episodes", "none" (how many took
    no way), "taken": {way: {"episodes", "share" (of all), "share_ci95", "successes", "success_rate" (None: taken by
    none), "ci95"}}}], "shift": (see `_shift`), "moments": (see `_moments`), of the demonstrations and of each
    iteration's own rollouts}. Episodes in which an operator took over are left out.
    """
    recorded = {
        node: results[node]["episodes"] if node in results else files.read_episodes(run_dir / node / "dataset")
        for node in nodes
    }
    played = {node: [e for e in episodes if e.get("corrected_from") is None] for node, episodes in recorded.items()}
    own = [episode for node in nodes if not files.ABLATION.match(node) for episode in played[node]]
    tasks = sorted({episode["task"] for episode in own if episode.get("choice")})
    return [_of_task(run_dir, nodes, played, task) for task in tasks]


def shown_stages(choice: dict[str, Any], summary: dict[str, Any]) -> Episodes:
    """The stages of a choice that a reader wants to see: the run's own, and of an ablation its last evaluation."""
    of_node = {stage["node"]: stage for stage in choice["stages"]}
    last = [ablation["eval"]["outcomes"].rpartition("/")[0] for ablation in summary["ablations"]]
    own = [node for node in of_node if not files.ABLATION.match(node)]
    return [of_node[node] for node in [*own, *last] if node in of_node]


def _of_task(run_dir: Path, nodes: dict[str, Any], played: dict[str, Episodes], task: str) -> dict[str, Any]:
    mine = {node: [e for e in episodes if e["task"] == task] for node, episodes in played.items()}
    names = sorted({e["choice"] for episodes in mine.values() for e in episodes if e.get("choice")})
    labelled = [(0, "demonstrations")]
    for k in files.iterations(nodes):
        labelled += [(k, "demonstrations"), (k, f"{files.iteration_dir(k)}/rollout")]
    found = [_moments(run_dir, iteration, node, task, names) for iteration, node in labelled]
    return {
        "task": task,
        "names": names,
        "stages": [{"node": node, **_shares(episodes, names)} for node, episodes in mine.items() if episodes],
        "shift": _shift(mine, names),
        "moments": [moments for moments in found if moments],
    }


def _shares(episodes: Episodes, names: list[str]) -> dict[str, Any]:
    taken = {}
    for name in names:
        outcomes = [e["success"] for e in episodes if e.get("choice") == name]
        n, won = len(outcomes), sum(outcomes)
        share = {"episodes": n, "share": n / len(episodes), "share_ci95": list(wilson(n, len(episodes)))}
        rate = {"success_rate": won / n if n else None, "ci95": list(wilson(won, n)) if n else None}
        taken[name] = share | {"successes": won} | rate
    return {"episodes": len(episodes), "none": sum(not e.get("choice") for e in episodes), "taken": taken}


def _shift(played: dict[str, Episodes], names: list[str]) -> dict[str, Any] | None:
    """How the last policy chooses otherwise than the first on the same initial states; None for one policy.

    {"before", "after" (nodes), "taken": {way: the paired test, of taking it instead of success}}.
    """
    own = [node for node in played if node.endswith("eval") and played[node] and not files.ABLATION.match(node)]
    if len(own) < 2:
        return None
    sides = played[own[0]], played[own[-1]]

    def took(episodes: Episodes, name: str) -> Episodes:
        return [episode | {"success": episode.get("choice") == name} for episode in episodes]

    taken = {name: paired(*(took(episodes, name) for episodes in sides)) for name in names}
    return {"before": own[0], "after": own[-1], "taken": taken}


# ---------------------------------------------------------------------------------------------------- moments
def moments_of(table: files.Columns, episodes: Episodes) -> dict[str, np.ndarray]:
    """Way -> rows of the labels: of each episode the frame at which it set out on that way, where that was recorded."""
    alone = [episode for episode in episodes if episode.get("corrected_from") is None]
    known = [e for e in alone if e.get("choice") and e.get("choice_frame") is not None]
    way_at = {(e["episode_index"], e["choice_frame"]): e["choice"] for e in known}
    frames = zip(table["episode_index"].tolist(), table["frame_index"].tolist(), strict=True)
    ways = np.array([way_at.get(frame, "") for frame in frames])
    return {name: np.flatnonzero(ways == name) for name in sorted({*ways.tolist()} - {""})}


def labels_of_recorded(run_dir: Path, iteration: int, recorded: Path) -> files.Columns:
    """The labels that an iteration (0: the pre-training) gives the episodes of a recorded data set; {} without them."""
    lengths = {episode["episode_index"]: episode["steps"] for episode in files.read_episodes(recorded)}
    for table in files.read_advantages(files.stage_dir(run_dir, iteration, "advantage")) if lengths else []:
        found, counts = np.unique(table["episode_index"], return_counts=True)
        if lengths == dict(zip(found.tolist(), counts.tolist(), strict=True)):
            return table
    return {}


def _moments(run_dir: Path, iteration: int, node: str, task: str, names: list[str]) -> dict[str, Any] | None:
    """What an iteration's labels say of a data set at the moment of choice; None where that was not recorded.

    {"iteration", "node" (that recorded it), "taken": {way: {"episodes", "value", "advantage" (means), "ci95" (of the
    mean advantage, bootstrap over episodes), "positive" (share)}}, "p" (Kruskal and Wallis' test that the advantages
    are the same for all ways; None for one way)}.
    """
    recorded = run_dir / node / "dataset"
    table = labels_of_recorded(run_dir, iteration, recorded)
    mine = [episode for episode in files.read_episodes(recorded) if episode["task"] == task]
    rows = moments_of(table, mine) if table else {}
    if not rows:
        return None
    taken = {name: _labels(table, rows[name]) for name in names if name in rows}
    p = _apart([table["advantage"][found] for found in rows.values()])
    return {"iteration": iteration, "node": node, "taken": taken, "p": p}


def _apart(groups: list[np.ndarray]) -> float | None:
    from scipy import stats  # most of its second of import is not needed elsewhere

    if len(groups) < 2:
        return None
    return float(stats.kruskal(*groups).pvalue) if np.ptp(np.concatenate(groups)) > 0 else 1.0


def _labels(table: files.Columns, rows: np.ndarray) -> dict[str, Any]:
    advantage = table["advantage"][rows]
    return {
        "episodes": len(rows),
        "value": float(table["value"][rows].mean()),
        "advantage": float(advantage.mean()),
        "ci95": list(bootstrap_mean(advantage, resamples=2000)),
        "positive": float(table["indicator"][rows].mean()),
    }
