"""What the page shows of labels, trainings and evaluations: advantage histograms, losses, videos."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import numpy as np

from recap.report.html import figures
from recap.report.html.page import Page
from recap.report.words import evaluated, labels_of, policy_name, sentence_case
from recap.storage import readers as files

log = logging.getLogger(__name__)

HISTOGRAM_BINS = 48
LOSS_POINTS = 300
VIDEO_EPISODES = 4
VIDEO_BYTES = 12_000_000  # all videos of a report together
STATISTICS_TAIL = 0.5  # per cent of the advantages on either side that fall into the outermost bins


# ---------------------------------------------------------------------------------------------------- advantages
def histograms(page: Page, run_dir: Path, summary: dict[str, Any]) -> list[str]:
    """Draws the advantages of each iteration and task by source, as `advantage-0` and on: the names of the figures."""
    found: list[tuple[str, dict[str, Any]]] = []
    for entry in summary["advantage"]:
        table = files.concatenate(files.read_advantages(files.stage_dir(run_dir, entry["iteration"], "advantage")))
        for task in sorted(set(table["task"].tolist())) if table else []:
            epsilon = entry["epsilon"].get(task)
            found.append((task, {**_histogram(table, task, epsilon), "iteration": entry["iteration"]}))
    several = len({task for task, _ in found}) > 1
    names = []
    for number, (task, histogram) in enumerate(found):
        page.draw(f"advantage-{number}", figures.histogram(histogram))
        names.append(sentence_case(labels_of(histogram["iteration"])) + (f": {task}" if several else ""))
    return names


def _histogram(table: files.Columns, task: str, epsilon: float | None) -> dict[str, Any]:
    """Shares of the frames of a task in each bin of the advantage, by source: {"epsilon", "edges", "groups"}."""
    here, advantage = table["task"] == task, table["advantage"]
    low, high = np.percentile(advantage[here], [STATISTICS_TAIL, 100 - STATISTICS_TAIL])
    if epsilon is not None:
        low, high = min(low, epsilon), max(high, epsilon)
    pad = 0.02 * (high - low) or 0.01
    edges = np.linspace(low - pad, high + pad, HISTOGRAM_BINS + 1)
    groups = []
    for name, mask in files.groups(table).items():
        if (chosen := mask & here).any():
            counts, _ = np.histogram(np.clip(advantage[chosen], edges[0], edges[-1]), edges)
            positive = float(table["indicator"][chosen].mean())
            share = _round(counts / counts.sum(), 5)
            groups.append({"name": name, "share": share, "positive": positive, "frames": int(chosen.sum())})
    return {"epsilon": epsilon, "edges": _round(edges, 6), "groups": groups}


def _round(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


# ---------------------------------------------------------------------------------------------------- losses
def losses(page: Page, run_dir: Path, nodes: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Draws the training losses of policies and of value functions: (name of the figure, title, last losses)."""
    curves, shown = loss_curves(run_dir, nodes), []
    for name, title, of_value in (
        ("loss-policy", "Policy (flow matching)", False),
        ("loss-value", "Value function (cross-entropy)", True),
    ):
        chosen = [c for c in curves if c["node"].rpartition("/")[2].startswith("value") == of_value]
        if chosen:
            page.draw(name, figures.losses(chosen))
            own = (c for c in chosen if not files.ABLATION.match(c["node"]))
            shown.append((name, title, ", ".join(f"{c['node']} {c['loss'][-1]:.3g}" for c in own)))
    return shown


def loss_curves(run_dir: Path, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss by step of every finished training stage, thinned to at most LOSS_POINTS means over neighbouring records."""
    curves = []
    for node in nodes:
        records = files.read_metrics(run_dir / node / "metrics.jsonl")
        points = sorted(
            (r["step"], r["loss"]) for r in records if files.finite(r.get("step")) and files.finite(r.get("loss"))
        )
        if len(points) < 2:
            continue
        parts = np.array_split(np.array(points, dtype=float), min(len(points), LOSS_POINTS))
        means = np.array([part.mean(axis=0) for part in parts])
        loss = [float(f"{value:.4g}") for value in means[:, 1]]
        curves.append({"node": node, "step": _round(means[:, 0], 1), "loss": loss})
    return curves


# ---------------------------------------------------------------------------------------------------- videos
def videos(page: Page, run_dir: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The first filmed evaluation episodes, with the first and the last policy side by side.

    [{"title", "takes": [{"name" (of the video in the page), "policy", "outcome", "success"}]}]; at most VIDEO_EPISODES,
    VIDEO_BYTES together.
    """
    policies = evaluated(summary)
    takes: list[tuple[int, int, str, Path, dict[str, Any]]] = []
    for column, policy in enumerate(policies[:1] + policies[1:][-1:]):
        stage, name = (run_dir / policy["eval"]["outcomes"]).parent, policy_name(policy["iteration"])
        results = {episode["index"]: episode for episode in files.read_evaluation(stage)["episodes"]}
        filmed = files.films(stage)
        takes += [(index, column, name, path, results[index]) for index, path in filmed.items() if index in results]
    shown: dict[int, dict[str, Any]] = {}
    budget = VIDEO_BYTES
    for index, column, policy_shown, path, result in sorted(takes, key=lambda take: take[:2]):
        if index not in shown and len(shown) == VIDEO_EPISODES:
            break
        if path.stat().st_size > budget:
            log.warning("%s is left out of the report: the videos would pass %d MB", path, VIDEO_BYTES // 10**6)
            continue
        budget -= path.stat().st_size
        title = f"Initial state {result['initial_state']}: {result['task']}"
        ended = "succeeded in" if result["success"] else "failed after"
        take = {"name": f"take-{index}-{column}", "policy": policy_shown, "success": result["success"]}
        take["outcome"] = f"{ended} {result['steps']} steps"
        page.videos[take["name"]] = base64.b64encode(path.read_bytes()).decode()
        shown.setdefault(index, {"title": title, "takes": []})["takes"].append(take)
    return list(shown.values())
