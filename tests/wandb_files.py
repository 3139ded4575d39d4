"""W&B's offline files of a run directory, read as `wandb sync` reads them: its own datastore and its own records."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


@dataclass
class OfflineRun:
    """One folder offline-run-…; rows: the history, each with its `_step`."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    commit: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)  # name or pattern -> its x-axis
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]

    def media(self) -> list[Path]:
        """Every file that a row names."""
        return [self.folder / "files" / name for row in self.rows for name in _paths(row)]


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    return [_read(path) for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))]


def by_name(run_dir: Path) -> dict[str, OfflineRun]:
    """{name: run}; no two folders may be of the same run: `wandb sync` would keep one of them."""
    runs = offline_runs(run_dir)
    assert len({run.id for run in runs}) == len(runs)
    assert len({run.name for run in runs}) == len(runs)
    return {run.name: run for run in runs}


def _read(path: Path) -> OfflineRun:
    found, store = OfflineRun(path.parent), DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _take(found, record)
    return found


def _take(found: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run = record.run
        found.id, found.name, found.group, found.job = run.run_id, run.display_name, run.run_group, run.job_type
        found.project, found.tags, found.commit = run.project, list(run.tags), run.git.commit
        found.config |= _values(run.config.update)
    elif kind == "config":
        found.config |= _values(record.config.update)
    elif kind == "history":
        found.rows.append(_values(record.history.item))
    elif kind == "summary":
        found.summary |= _values(record.summary.update)
    elif kind == "metric":
        found.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "artifact":
        found.artifacts.append(record.artifact)
    elif kind == "exit":
        found.exit_code = record.exit.exit_code
    elif kind == "preempting":
        found.preempting = True


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values


def _paths(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["path"]] if isinstance(value.get("path"), str) and "_type" in value else []
        return own + list(value.get("filenames", [])) + [p for v in value.values() for p in _paths(v)]
    return [p for v in value for p in _paths(v)] if isinstance(value, list) else []
