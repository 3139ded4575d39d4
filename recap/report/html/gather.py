"""What the page shows of labels, trainings and evaluations, as plain data: advantage histograms, losses, videos."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from recap.report.words import evaluated, policy_name
from recap.storage import readers as files

log = logging.getLogger(__name__)

HISTOGRAM_BINS = 48
LOSS_POINTS = 300
VIDEO_EPISODES = 4
VIDEO_BYTES = 12_000_000  # all videos of a report together
STATISTICS_TAIL = 0.5  # per cent of the advantages on either side that fall into the outermost bins


# ---------------------------------------------------------------------------------------------------- advantages
def advantage_histograms(run_dir: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """By iteration and task: the share of frames in each bin of the advantage, by source, and ε."""
    histograms = []
    for entry in summary["advantage"]:
        table = files.concatenate(files.read_advantages(files.stage_dir(run_dir, entry["iteration"], "advantage")))
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


def _round(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


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

    [{"title", "takes": [{"policy", "outcome", "success", "video" (an mp4, in base64)}]}]; at most VIDEO_EPISODES,
    VIDEO_BYTES together.
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
        episodes.setdefault(index, []).append({**take, "video": base64.b64encode(path.read_bytes()).decode()})
    return [{"title": titles[index], "takes": shown_takes} for index, shown_takes in episodes.items()]
