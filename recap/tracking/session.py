"""One W&B run that is open, and the rows that it lacks."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from recap.tracking.content import CONTENT, artifact, inputs_of, lineage, loop_rows, rest
from recap.tracking.record import METRICS, records
from recap.tracking.state import run_id

INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0  # nobody waits for them but the next stage's curves
LOCK_SECONDS = 60.0  # for an earlier process to let go of a W&B run

Command = dict[str, Any]


class Session:
    """One W&B run that is open; it keeps the lock until its end.

    Raises whatever wandb raises, and OSError where its files cannot be written.
    """

    def __init__(self, command: Command, mode: str, *, live: bool, lock: ExitStack) -> None:
        import wandb

        self.command, self.mode = command, mode
        self.out = Path(command["out"])
        self._seen: tuple[int, int] | None = None
        folder = Path(command["run"]) / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self.id = run_id(self.out)
        for old in folder.glob(f"offline-run-*-{self.id}*"):
            shutil.rmtree(old)
        self.run = wandb.init(
            id=self.id,
            resume="allow" if mode == "online" else None,
            mode="online" if mode == "online" else "offline",
            project=command["project"],
            entity=command["entity"],
            name=command["name"],
            group=command["group"],
            job_type=command["job"],
            tags=_tags(command),
            dir=command["run"],
            reinit="create_new",  # never the run of a stage whose end was not heard
            config=_config(command),
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                git_commit=(command["commit"] or "").removesuffix("-dirty") or None,
                x_disable_stats=not live,
                x_stats_pid=command["pid"],
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,  # or else it would count as sent
            ),
        )
        self._lock = lock.pop_all()
        self.next = self.run.starting_step  # the first step that W&B lacks
        if command["kind"] == "loop":
            self.run.define_metric("iteration")
            self.run.define_metric("*", step_metric="iteration")

    def send(self, step: int, row: dict[str, Any]) -> None:
        if step >= self.next:
            self.run.log(row, step=step, commit=True)
            self.next = step + 1

    def send_records(self) -> None:
        """New rows of metrics.jsonl; row 0 is what the first batch looked like."""
        path = self.out / METRICS
        with suppress(FileNotFoundError):
            state = path.stat()
            if (state.st_ino, state.st_size) == self._seen:
                return
            self._seen = (state.st_ino, state.st_size)
            rows = records(path)
            if rows and self.next == 0 and (first := CONTENT["first_batch"](self.out, 0)):
                self.send(0, first)
            for record in rows:
                numbers = {f"train/{key}": value for key, value in record.items() if key != "step"}
                self.send(int(record["step"]), numbers)

    def send_all(self) -> None:
        """What a finished stage, or a run so far, has to show."""
        command, videos = self.command, self.command["videos"]
        if command["kind"] == "loop":
            rows, totals = loop_rows(self.out)
            for step, row in rows:
                self.send(step, row)
            self.run.summary.update(totals)
            return
        self.send_records()
        if command["kind"] != "train" and self.next == 0:
            self.send(0, CONTENT.get(command["kind"], rest)(self.out, videos))
        manifest = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))
        self.run.summary.update({"minutes": round(manifest["wall_seconds"] / 60, 3)})
        made = artifact(command["group"], command["name"], command["job"], self.out, manifest)
        for role, name in inputs_of(command["group"], command["run"], command["inputs"]):
            if self.mode == "online":  # W&B refuses it offline; the configuration names the inputs in any case
                with suppress(Exception):
                    self.run.use_artifact(name, use_as=role)
        self.run.log_artifact(made, aliases=["latest", made.metadata["results"][:12]])

    def end(self, code: int) -> None:
        try:
            self.run.finish(exit_code=code)
        finally:
            self._lock.close()


# ---------------------------------------------------------------------------------------------------- parts of it
def _config(command: Command) -> dict[str, Any]:
    """The resolved configuration, and where all of it comes from."""
    made_by = {"run_directory": command["run"], "git_commit": command["commit"], "job": os.environ.get("SLURM_JOB_ID")}
    made_from = lineage(command["run"], command.get("inputs", {}))
    return {**command["config"], "made_by": made_by, "made_from": made_from}


def _tags(command: Command) -> list[str]:
    arm = command["config"].get("arm")
    return [tag[:64] for tag in [*command["tags"], *([f"arm {arm}"] if arm else [])]]


@contextmanager
def alone(directory: Path) -> Iterator[ExitStack]:
    """No other process sends this directory meanwhile; on, if a session takes the lock along.

    Raises TimeoutError while an earlier process still sends it.
    """
    with ExitStack() as lock:
        file = lock.enter_context((directory / ".wandb.lock").open("w"))
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process still sends it") from None
                time.sleep(0.2)
        yield lock
