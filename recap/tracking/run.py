"""One run of W&B or trackio that is open, and the rows that it lacks.

It is a copy of metrics.jsonl, row by row, and of a finished stage's results as one row. Each step arrives once, however
often the training was killed, because a training repeats itself to the digit:

- online, W&B says which step it has, and rows up to it are passed over;
- offline and in trackio, what an earlier attempt left is dropped and written anew: `wandb sync` takes two folders of
  one run for two versions of it, of which the last one wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from recap.storage.manifest import git_commit, lock, results_digest, stage_of
from recap.tracking import media
from recap.tracking.config import TrackingConfig, TrackingKind
from recap.tracking.metrics import METRICS, records
from recap.utils.files import write_text

# In the directory that is sent. No ".wandb": where that is, wandb writes to it instead of to "wandb".
STATE, LOCK = ".wandb.json", ".tracking"
INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0  # nobody waits for them but the next stage's curves
ARTIFACTS = {"sft": "policy", "policy": "policy", "value": "value_function", "rollout": "dataset", "eval": "evaluation"}


@dataclass(frozen=True)
class Shown:
    """A stage, or what a run achieved so far (kind `loop`), as W&B shows it.

    run: the run directory; out: the stage's; job: its job type; inputs: role -> what it reads; config: resolved.
    """

    wanted: TrackingConfig
    run: Path
    out: Path
    name: str
    group: str
    kind: str
    job: str
    config: dict[str, Any]
    inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def project(self) -> str:
        own = os.environ.get("WANDB_PROJECT") if self.wanted.kind is TrackingKind.wandb else None
        return self.wanted.project or own or "recap"

    @property
    def tags(self) -> list[str]:
        arm = self.config.get("arm")
        return [tag[:64] for tag in [*self.wanted.tags, *([f"arm {arm}"] if arm else [])]]

    @property
    def digest(self) -> str:
        """Of the file that is written last; "" without."""
        record = self.out / ("summary.json" if self.kind == "loop" else "manifest.json")
        return hashlib.sha256(record.read_bytes()).hexdigest() if record.is_file() else ""


# ---------------------------------------------------------------------------------------------------- a run
class Run:
    """Open until `closing` ends it; no other process sends this directory meanwhile.

    Raises what wandb or trackio raise, OSError where files cannot be written, RecapError while another process sends.
    """

    def __init__(self, shown: Shown, *, online: bool = False) -> None:
        self.shown, self.online = shown, online
        self._seen: tuple[int, int] | None = None
        with ExitStack() as stack:
            stack.enter_context(lock(shown.out / LOCK))
            self.id = _run_id(shown.out)
            self.lib = import_module(shown.wanted.kind.name)
            if shown.wanted.kind is TrackingKind.wandb:
                self.run = self._wandb()
            else:
                from recap.tracking.trackio import TrackioRun

                made = {**_made(shown), "tags": shown.tags}
                self.run = TrackioRun(shown.project, self.id, shown.name, shown.group, made)
            self._lock = stack.pop_all()
        self.next: int = self.run.starting_step  # the first step that is lacking

    def _wandb(self) -> Any:
        shown, folder = self.shown, self.shown.run / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"offline-run-*-{self.id}*"):
            shutil.rmtree(old)
        run = self.lib.init(
            id=self.id,
            resume="allow" if self.online else None,
            mode="online" if self.online else "offline",
            project=shown.project,
            entity=shown.wanted.entity,
            name=shown.name,
            group=shown.group,
            job_type=shown.job,
            tags=shown.tags,
            dir=str(shown.run),
            reinit="create_new",  # never the run of a stage whose end was not heard
            config=_made(shown),
            settings=self.lib.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                git_commit=(git_commit() or "").removesuffix("-dirty") or None,
                x_disable_stats=shown.kind != "train",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,  # or else it would count as sent
            ),
        )
        if shown.kind == "loop":
            run.define_metric("iteration")
            run.define_metric("*", step_metric="iteration")
        return run

    def send(self, step: int, row: media.Row) -> None:
        if step >= self.next:
            self.run.log(row, step=step, commit=True)
            self.next = step + 1

    def send_records(self) -> None:
        """New rows of metrics.jsonl; row 0 is what the first batch looked like."""
        path = self.shown.out / METRICS
        with suppress(FileNotFoundError):
            state = path.stat()
            if (state.st_ino, state.st_size) == self._seen:
                return
            self._seen = (state.st_ino, state.st_size)
            rows = records(path)
            if rows and self.next == 0 and (first := media.first_batch(self.lib, self.shown.out)):
                self.send(0, first)
            for record in rows:
                numbers = {f"train/{key}": value for key, value in record.items() if key != "step"}
                self.send(int(record["step"]), numbers)

    def send_results(self) -> None:
        """The results of a stage other than a training: one row."""
        shown = self.shown
        if shown.kind != "train" and self.next == 0:
            self.send(0, media.results(self.lib, shown.kind, shown.out, shown.wanted.videos))

    def send_all(self) -> None:
        """All of a finished stage, or of the loop so far."""
        shown = self.shown
        if shown.kind == "loop":
            rows, totals = media.loop_rows(shown.out)
            for step, row in rows:
                self.send(step, row)
            self.run.summary.update(totals)
            return
        self.send_records()
        self.send_results()
        manifest = json.loads((shown.out / "manifest.json").read_text(encoding="utf-8"))
        self.run.summary.update({"minutes": round(manifest["wall_seconds"] / 60, 3)})
        if shown.wanted.kind is TrackingKind.wandb:
            self._send_artifact(manifest)

    def _send_artifact(self, manifest: dict[str, Any]) -> None:
        """An artifact of a stage's results: their hashes and where they are. Nothing is uploaded."""
        shown = self.shown
        for role, path in shown.inputs.items() if self.online else ():  # W&B refuses it offline; `made_from` names them
            stage = stage_of(path)
            if stage.is_relative_to(shown.run) and (stage / "manifest.json").is_file():
                name = _artifact_name(shown.group, str(stage.relative_to(shown.run)))
                with suppress(Exception):
                    self.run.use_artifact(f"{name}:{results_digest(stage)[:12]}", use_as=role)
        about = {key: manifest[key] for key in ("stage", "seed", "git_commit", "inputs", "host")}
        about |= {"results": results_digest(shown.out), "directory": str(shown.out.absolute())}
        kind = ARTIFACTS.get(shown.job, shown.job)
        made = self.lib.Artifact(_artifact_name(shown.group, shown.name), kind, metadata=about)
        made.add_reference(f"file://{shown.out.absolute() / 'manifest.json'}")
        self.run.log_artifact(made, aliases=["latest", about["results"][:12]])

    @contextmanager
    def closing(self, code: int) -> Iterator[Run]:
        """Ends it, as failed where something is raised. With code 0 it counts as sent, unless it has changed since."""
        seen = self.shown.digest
        with self._lock:
            try:
                yield self
            except BaseException:
                with suppress(Exception):
                    self.run.finish(exit_code=1)
                raise
            self.run.finish(exit_code=code)
            if code == 0 and seen == self.shown.digest:
                sent = {self.shown.wanted.kind.name: {"digest": seen, "run": self.id}}
                write_text(self.shown.out / STATE, json.dumps({**_state(self.shown.out), **sent}) + "\n")


def _made(shown: Shown) -> dict[str, Any]:
    """Its configuration, and where all of it comes from: each input with its hash and the run that it was sent as."""
    made_from = {}
    for role, path in shown.inputs.items():
        stage = stage_of(path)
        made_from[role] = {
            "path": os.path.relpath(path, shown.run) if stage.is_relative_to(shown.run) else str(path),
            "results": results_digest(path) if stage.exists() else None,
            "run": _state(stage).get(shown.wanted.kind.name, {}).get("run"),
        }
    job = os.environ.get("SLURM_JOB_ID")
    made_by = {"run_directory": str(shown.run.absolute()), "git_commit": git_commit(), "job": job}
    return {**json.loads(json.dumps(shown.config, default=str)), "made_by": made_by, "made_from": made_from}


def _artifact_name(group: str, path: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{group}-{path}")[:128]


# ---------------------------------------------------------------------------------------------------- what it knows
def is_sent(shown: Shown) -> bool:
    """Whether all was sent as it is now."""
    sent = _state(shown.out).get(shown.wanted.kind.name)
    return sent is not None and sent["digest"] == shown.digest


def _state(directory: Path) -> dict[str, Any]:
    """{} where nothing was ever sent."""
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _run_id(directory: Path) -> str:
    """The same after each restart; another one for a directory that is made anew or copied: its numbers differ."""
    state = {"token": uuid.uuid4().hex, **_state(directory)}
    write_text(directory / STATE, json.dumps(state) + "\n")
    return hashlib.sha256(f"{state['token']} {directory.resolve()}".encode()).hexdigest()[:16]
