"""The process in which wandb lives: it sends what the run directory holds and W&B lacks. Started by client.py alone.

A W&B run is a copy of files: of metrics.jsonl row by row, `_step` being the training's step, and of a finished stage's
results as one row. So what was sent is known without a second book:

- online, W&B says which step it has, and rows up to it are passed over;
- offline, the files of an earlier attempt are dropped and written anew from the first row, because `wandb sync` takes
  two folders of one run for two versions of it, of which the last one wins.

Either way each step arrives once, however often the training was killed: it repeats itself to the digit.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recap.tracking.content import CONTENT, artifact, inputs_of, loop_rows, rest
from recap.tracking.record import METRICS, records
from recap.tracking.state import digest, is_sent, note_sent, run_id

ANSWER_SECONDS = 2.0  # in which the server has to answer, for mode=auto
INIT_SECONDS, FINISH_SECONDS = 60.0, 300.0  # nobody waits for them but the next stage's curves
POLL_SECONDS = 1.0  # between looks at a training's record
ORPHAN_SECONDS = 10.0  # for the last rows when the run is gone
LOCK_SECONDS = 60.0  # for an earlier process to let go of a W&B run
ERRORS = "errors.txt"

Command = dict[str, Any]


class Mirror:
    """Sends stages to W&B, one after the other; `say` reaches the user's console."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._tell = say
        self._said: set[str] = set()
        self._online: bool | None = None  # None: not asked yet
        self.session: Session | None = None  # of the training that goes on

    def say(self, line: str) -> None:
        """Once."""
        if line not in self._said:
            self._said.add(line)
            self._tell(line)

    def do(self, command: Command) -> None:
        """Never raises: what goes wrong costs a line, and is sent when the run's command is given again."""
        try:
            if command["do"] == "follow":
                self._end_session(1)
                self.session = self._open(command, live=True)
                self.session.send_records()
            elif command["do"] == "failed":
                self._end_session(1)
            elif command["do"] == "publish":
                self._publish(command)
            elif command["do"] == "preempting" and self.session:
                self.session.run.mark_preempting()
                self._end_session(1)
        except Exception as error:  # noqa: BLE001  W&B's errors are of many kinds, and none may matter
            self._report(command, error)

    def look(self) -> None:
        """Sends the steps that the training has made meanwhile."""
        if self.session:
            try:
                self.session.send_records()
            except Exception as error:  # noqa: BLE001
                command, self.session = self.session.command, None
                self._report(command, error)

    def leave(self) -> None:
        self._end_session(1)

    # ------------------------------------------------------------------------------------------------ stages
    def _publish(self, command: Command) -> None:
        """All of a finished stage, or of a run so far."""
        out = Path(command["out"])
        record = "summary.json" if command["kind"] == "loop" else "manifest.json"
        if is_sent(out, record):
            return
        session = self.session if self.session and self.session.command["out"] == command["out"] else None
        if session is None:
            self._end_session(1)
            session = self._open(command, live=False)
        self.session = None
        try:
            seen = digest(out / record)
            session.send_all()
        except BaseException:
            session.end(1)
            raise
        session.end(0)
        if seen == digest(out / record):
            note_sent(out, record, session.id, session.mode)

    def _open(self, command: Command, *, live: bool) -> Session:
        mode = self._mode(command)
        try:
            return Session(command, mode, live=live)
        except Exception as error:
            if mode == "offline":
                raise
            self._online = False
            self.say(f"W&B: {_first_line(error)}; {self._later(command)}")
            return Session(command, "offline", live=live)
        finally:
            self._greet(command)

    def _end_session(self, code: int) -> None:
        session, self.session = self.session, None
        if session:
            with suppress(Exception):
                session.send_records()
            with suppress(Exception):
                session.end(code)

    # ------------------------------------------------------------------------------------------------ modes
    def _mode(self, command: Command) -> str:
        import wandb

        if command["mode"] == "offline":
            self.say(f"W&B: {self._later(command)}")
            return "offline"
        if self._online is None:
            server = wandb.setup().settings.base_url
            self._online = command["mode"] == "online" or answers(server)
            if not self._online:
                self.say(f"W&B: {server} does not answer; {self._later(command)}")
        return "online" if self._online else "offline"

    @staticmethod
    def _later(command: Command) -> str:
        return f"offline files, for later: wandb sync {command['shown']}/wandb/offline-run-*"

    def _greet(self, command: Command) -> None:
        import wandb

        if self._online and wandb.run is not None:
            self.say(f"W&B: {wandb.run.project_url}, group {command['group']}")

    def _report(self, command: Command, error: Exception) -> None:
        with suppress(OSError):
            folder = Path(command["run"]) / "wandb"
            folder.mkdir(exist_ok=True)
            with (folder / ERRORS).open("a", encoding="utf-8") as file:
                file.write(f"{command['name']}\n{''.join(traceback.format_exception(error))}\n")
        self.say(f"W&B: {command['name']} was not sent ({_first_line(error)}); the record is local")


class Session:
    """One W&B run that is open.

    Raises whatever wandb raises, and OSError where its files cannot be written.
    """

    def __init__(self, command: Command, mode: str, *, live: bool) -> None:
        import wandb

        self.command, self.mode = command, mode
        self.out = Path(command["out"])
        self._seen: tuple[int, int] | None = None
        folder = Path(command["run"]) / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self.id = run_id(self.out)
        self._lock = (self.out / ".wandb.lock").open("w")
        _flock(self._lock)
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
            config=_config(command),
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                git_commit=command["commit"],
                x_disable_stats=not live,
                x_stats_pid=command["pid"],
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
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
        self.run.finish(exit_code=code)
        self._lock.close()


# ---------------------------------------------------------------------------------------------------- parts of it
def _config(command: Command) -> dict[str, Any]:
    """The resolved configuration, and where all of it comes from."""
    from recap.tracking.content import lineage

    made_by = {"run_directory": command["run"], "git_commit": command["commit"], "job": os.environ.get("SLURM_JOB_ID")}
    made_from = lineage(command["run"], command.get("inputs", {}))
    return {**command["config"], "made_by": made_by, "made_from": made_from}


def _tags(command: Command) -> list[str]:
    arm = command["config"].get("arm")
    return [tag[:64] for tag in [*command["tags"], *([f"arm {arm}"] if arm else [])]]


def _flock(file: Any) -> None:
    """Raises TimeoutError while an earlier process still sends the same W&B run."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process still sends it") from None
            time.sleep(0.2)


def answers(server: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether anything answers HTTP there in time; names that nobody resolves count as no."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(server, timeout=seconds):
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)
        except (OSError, ValueError):
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found) and found[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------------------------------------------- the process
@contextmanager
def _quiet() -> Iterator[Callable[[str], None]]:
    """`say`, which has the console; whatever wandb prints is dropped."""
    console = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(line: str) -> None:
        with suppress(OSError, ValueError):
            print(line, file=console, flush=True)

    yield say


def _commands(into: queue.Queue[Command | None]) -> None:
    """Reads on whatever this process does, so that the run never waits for the pipe. None: the run has gone."""
    for line in sys.stdin:
        into.put(json.loads(line))
    into.put(None)


def main() -> None:
    # The run decides when this ends, by closing the pipe; what ends the run (Ctrl-C, SLURM) reaches this one too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.environ["WANDB_SILENT"] = "true"
    commands: queue.Queue[Command | None] = queue.Queue()
    threading.Thread(target=_commands, args=(commands,), daemon=True).start()
    with _quiet() as say:
        mirror = Mirror(say)
        while True:
            try:
                command = commands.get(timeout=POLL_SECONDS)
            except queue.Empty:
                mirror.look()
                continue
            if command is None or command["do"] == "leave":
                break
            mirror.do(command)
        if command is None:  # it was killed: what comes late is sent when it is started again
            threading.Timer(ORPHAN_SECONDS, os._exit, [1]).start()
        mirror.leave()
    os._exit(0)  # wandb's own end waits for ever for a server that does not answer


if __name__ == "__main__":
    main()
