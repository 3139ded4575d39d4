"""The gate stage: judges the labels of an iteration, before a policy is trained on them. Seconds, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recap.config import Config
from recap.data.labels import PARQUET, THRESHOLDS, read_labels, read_thresholds
from recap.method.config import GateAction, Normalization, SourceKind, Threshold
from recap.stages.base import Inputs, Say, Stage
from recap.utils.errors import RecapError
from recap.utils.files import write_text
from recap.utils.ranks import WHOLE, Share

if TYPE_CHECKING:
    from recap.method.gate import Check, Labelled

RESULT, FIGURE = "gate.json", "gate.png"


@dataclass(frozen=True, kw_only=True)
class Gate(Stage):
    kind = "gate"
    keys = ("gate", "advantage")

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        del used["gate"]["action"], used["advantage"]["sft"]
        used["advantage"].pop("correction_prefix", None)
        return {**used, "value": {"bins": values["value"]["bins"]}}

    def run(self, say: Say, share: Share = WHOLE) -> None:
        gate_stage(self.cfg, self.read, self.out, say)


def gate_stage(cfg: Config, inputs: Inputs, out: Path, say: Say) -> None:
    """Writes gate.json, {"passed", "action", "checks": [Check, ...]}, and gate.png; both stay when it stops.

    Raises:
        RecapError: a check failed and gate.action=stop: with its numbers, the plot, and what to do.
    """
    from recap.method.gate import judge
    from recap.stages.gate_figure import draw

    labels = labelled(cfg, inputs["labels"])
    checks = judge(labels, cfg.gate)
    failed = [check for check in checks if not check.passed]
    result = {"passed": not failed, "action": cfg.gate.action.name, "checks": [_record(check) for check in checks]}
    write_text(out / RESULT, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    draw(labels, checks, out / FIGURE)
    for check in checks:
        if check.unknown:
            say(f"warning: {check.name}: {check.text}. Knob: {check.knob}")
    for check in failed:
        say(f"failed: {check.name}: {_sentence(check)}")
    if failed and cfg.gate.action is GateAction.stop:
        listed = "\n".join(f"  {check.name}: {_sentence(check)}" for check in failed)
        raise RecapError(
            f"{out}: the labels are not good enough to train a policy on.\n{listed}\n"
            f"{out / FIGURE} shows it. Fix: turn a knob, with name=<another>; "
            "or gate.action=warn, which trains on them all the same."
        )
    say(f"{sum(check.passed and not check.unknown for check in checks)} of {len(checks)} checks passed: {out / FIGURE}")


def _sentence(check: Check) -> str:
    return f"{check.text} (limit: {check.limit}). Knob: {check.knob}"


def _record(check: Check) -> dict[str, object]:
    return asdict(check) | {"value": None if check.value is None else round(check.value, 4)}


def labelled(cfg: Config, folder: Path) -> Labelled:
    """All data sets of an advantage stage together, without what an operator did: V has to judge the policy."""
    from recap.method.gate import ALL, Labelled

    thresholds, settings = read_thresholds(folder), cfg.advantage
    paths = sorted(folder.glob(f"*/{PARQUET}"))
    if not paths:
        raise RecapError(f"{folder} has {THRESHOLDS} but no labels. Fix: delete {folder}, run advantage.py again.")
    tables = [_acted(read_labels(path.parent).columns) for path in paths]
    tables = [table for table in tables if len(table["source"])]
    column = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    episode, start = [], 0
    for table in tables:
        episode.append(start + np.unique(table["episode_index"], return_inverse=True)[1])
        start = int(episode[-1].max()) + 1
    fraction = thresholds.wanted_positive
    wanted = {task: settings.positive_fraction_by_task.get(task, fraction) for task in thresholds.epsilon}
    return Labelled(
        value=column["value"],
        returns=column["return"],
        advantage=column["advantage"],
        indicator=column["indicator"],
        held_out=column["held_out"],
        success=column["success"],
        episode=np.concatenate(episode),
        task=column["task"],
        source=column["source"],
        epsilon=thresholds.epsilon,
        normalizer=thresholds.normalizer,
        wanted=wanted if settings.threshold is Threshold.per_task else {ALL: fraction},
        c_fail=thresholds.c_fail,
        bins=cfg.value.bins,
        clipped=settings.normalization is Normalization.per_task,
        forced=thresholds.forced,
    )


def _acted(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The frames in which no operator acted."""
    rows = table["source"] != SourceKind.correction.name
    return {name: column[rows] for name, column in table.items()}
