"""The process in which wandb lives: it sends what the run directory holds and W&B lacks. Started by client.py alone.

A W&B run is a copy of files: of metrics.jsonl row by row, `_step` being the training's step, and of a finished stage's
results as one row. So what was sent is known without a second book:

- online, W&B says which step it has, and rows up to it are passed over;
- offline, the files of an earlier attempt are dropped and written anew from the first row, because `wandb sync` takes
  two folders of one run for two versions of it, of which the last one wins.

Either way each step arrives once, however often the training was killed: it repeats itself to the digit.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from recap.console import SPELLED
from recap.tracking.content import CONTENT
from recap.tracking.session import Command, Session, alone
from recap.tracking.state import digest, is_sent, note_sent

# In which the server has to answer, by mode. wandb.init itself waits for ever for one that does not.
ANSWER_SECONDS = {"auto": 2.0, "online": 20.0}
POLL_SECONDS = 1.0  # between looks at a training's record
LEAVE_SECONDS = 60.0  # for what is on its way when the run has said that it leaves; it waits half as long
ORPHAN_SECONDS = 10.0  # the same when it was killed: what comes late is sent when it is started again
ERRORS = "errors.txt"
# Would give runs other ids, or another mode than the run has decided on.
OWN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH", "WANDB_SERVICE", "WANDB_MODE")
SECRET = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


class Mirror:
    """Sends stages to W&B, one after the other; `say` reaches the user's console."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._tell = say
        self._said: set[str] = set()
        self._failed: set[str] = set()
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
                with alone(Path(command["out"])) as lock:
                    self.session = self._open(command, live=True, lock=lock)
                self.session.send_records()
            elif command["do"] == "expect":
                self._mode(command)
            elif command["do"] == "failed":
                self._end_session(1)
                self._show_verdict(command)
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
        session = self.session if self.session and self.session.command["out"] == command["out"] else None
        if session is None:
            self._end_session(1)
            with alone(out) as lock:
                if is_sent(out, record):
                    return
                session = self._open(command, live=False, lock=lock)
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

    def _show_verdict(self, command: Command) -> None:
        """Of a gate that stopped the run: its numbers are what one wants to see then."""
        if command["kind"] == "gate" and (Path(command["out"]) / "gate.png").is_file():
            with alone(Path(command["out"])) as lock:
                session = self._open(command, live=False, lock=lock)
            session.send(0, CONTENT["gate"](session.out, 0))
            session.end(1)

    def _open(self, command: Command, *, live: bool, lock: ExitStack) -> Session:
        mode = self._mode(command)
        try:
            session = Session(command, mode, live=live, lock=lock)
        except Exception as error:
            if mode == "offline":
                raise
            self._online = False
            self.say(f"W&B: {_first_line(error)}; {self._later(command)}")
            return Session(command, "offline", live=live, lock=lock)
        if mode == "online":
            self.say(f"W&B: {session.run.project_url}, group {command['group']}")
        return session

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
            self._online = answers(server, ANSWER_SECONDS[command["mode"]])
            if not self._online:
                self.say(f"W&B: {server} does not answer; {self._later(command)}")
        return "online" if self._online else "offline"

    @staticmethod
    def _later(command: Command) -> str:
        return f"offline files, for later: wandb sync {command['shown']}/wandb/offline-run-*"

    def _report(self, command: Command, error: Exception) -> None:
        with suppress(OSError):
            folder = Path(command["run"]) / "wandb"
            folder.mkdir(exist_ok=True)
            with (folder / ERRORS).open("a", encoding="utf-8") as file:
                file.write(f"{command['name']}\n{''.join(traceback.format_exception(error))}\n")
        if self._online:
            self._online = None  # the server may have gone: it is asked again
        if (text := _first_line(error)) not in self._failed:  # what fails for one stage fails for all of them alike
            self._failed.add(text)
            self.say(f"W&B: {command['name']} was not sent ({text}); the record is local")


# ---------------------------------------------------------------------------------------------------- parts of it
def answers(server: str, seconds: float) -> bool:
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
    """What went wrong; of a variable that W&B cannot use, its name, its value and what it should be."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    value = ""
    if found := getattr(error, "errors", None):  # of pydantic, whose first line is a count
        first = found()[0]
        value, text = str(first["input"]), f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    for name, given in os.environ.items():
        if name.startswith("WANDB_") and name not in SECRET and given and (given == value or f"'{given}'" in text):
            return f"{name}={given}: {text.partition(': ')[2] if value else text}. Fix: unset {name}"
    return text


# ---------------------------------------------------------------------------------------------------- the process
@contextmanager
def _quiet() -> Iterator[Callable[[str], None]]:
    """`say`, which has the console; whatever wandb prints is dropped."""
    console = os.fdopen(os.dup(1), "w", buffering=1, errors=SPELLED)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(line: str) -> None:
        with suppress(OSError, ValueError):
            print(line, file=console, flush=True)

    yield say


def _commands(into: queue.Queue[Command | None]) -> None:
    """Reads on whatever this process does, so that the run never waits for the pipe. None: the run has gone.

    Then this process goes too, even where wandb does not come back.
    """
    last = ""
    for line in sys.stdin:
        into.put(command := json.loads(line))
        last = command["do"]
    into.put(None)
    time.sleep(LEAVE_SECONDS if last == "leave" else ORPHAN_SECONDS)
    _exit(1)


def _exit(code: int) -> None:
    """At once: wandb's own end waits for ever for a server that does not answer."""
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)  # this process's own, by now
    os._exit(code)


def main() -> None:
    # The run decides when this ends, by closing the pipe; what ends the run (Ctrl-C, SLURM) reaches this one too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for name in OWN:
        os.environ.pop(name, None)
    os.environ["WANDB_SILENT"] = "true"
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(
        prefix="wb"
    )  # what wandb would leave behind goes with it
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
        mirror.leave()
    _exit(0)


if __name__ == "__main__":
    main()
