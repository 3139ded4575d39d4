"""W&B or trackio beside the record: a thread sends what the run directory holds and they lack.

Nothing here raises into the run, asks or blocks: what fails costs a line on the console.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from recap.storage.manifest import is_main_process
from recap.tracking.config import TrackingKind, TrackingMode
from recap.tracking.mode import decide
from recap.tracking.run import INIT_SECONDS, Run, Shown, is_sent

# In which the server has to answer, by mode. wandb.init itself waits for ever for one that does not.
ANSWER_SECONDS = {TrackingMode.auto: 2.0, TrackingMode.online: 20.0}
POLL_SECONDS = 1.0  # between looks at a training's record
LEAVE_SECONDS = 30.0  # at the end of a command, for what is still on its way
PREEMPTED_SECONDS = 5.0  # the same before a job goes back into the queue
OWN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH", "WANDB_SERVICE")  # would give runs other ids
SECRET = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


# ---------------------------------------------------------------------------------------------------- what a run says
@contextmanager
def tracked(shown: Shown) -> Iterator[None]:
    """Around the work of a stage: a training is followed while it goes on, any other stage is sent when it is done."""
    sender = _sender(shown)
    if sender and shown.trains:
        sender.tell(sender.follow, shown)
    try:
        yield
    except BaseException:
        if sender:
            sender.tell(sender.failed, shown)
        raise
    if sender:
        sender.tell(sender.publish, shown)


def publish(shown: Shown) -> None:
    """Sends what was finished before, or a run so far, unless it was sent."""
    if not is_sent(shown) and (sender := _sender(shown)):
        sender.tell(sender.publish, shown)


def preempting() -> None:
    """Tells W&B that this process is preempted and will come back."""
    if _senders:
        _senders[0].tell(_senders[0].preempted)
        close(PREEMPTED_SECONDS)


def close(seconds: float = LEAVE_SECONDS) -> None:
    """Waits a little for what is on its way; the same command again sends the rest.

    Called at the end of commands and jobs: once Python shuts down, no thread starts any more, and wandb needs some.
    """
    while _senders:
        sender = _senders.pop()
        sender.tasks.put(None)
        with suppress(KeyboardInterrupt):
            sender.join(seconds)
        if sender.is_alive():
            sender.abandoned = True
            _say("tracking: not everything was sent; the same command again sends the rest")
            _end_service()  # or wandb's own end waits for the server, for ever


def _sender(shown: Shown) -> Sender | None:
    """None where nothing is to be sent."""
    if shown.wanted.kind is TrackingKind.local or not is_main_process():
        return None
    if shown.wanted.kind is TrackingKind.wandb:
        mode, line = decide(shown.wanted)
        if line:
            _say(line)
        if mode is TrackingMode.disabled:
            return None
    if not _senders:
        _senders.append(Sender())
    return _senders[0]


@cache
def _say(line: str) -> None:
    """Once."""
    sys.stdout.write(f"{line}\n")  # at once: another thread prints too
    sys.stdout.flush()


_senders: list[Sender] = []  # the one of this process
_failures: set[str] = set()  # what was said of them
atexit.register(close)


# ---------------------------------------------------------------------------------------------------- the thread
class Sender(threading.Thread):
    """Sends one stage after the other."""

    def __init__(self) -> None:
        super().__init__(name="tracking", daemon=True)
        self.tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # `put` is safe in a signal handler
        self.abandoned = False
        self._online: bool | None = None  # None: not asked yet
        self._run: Run | None = None  # of the training that goes on
        self.start()

    def tell(self, task: Callable[..., None], *shown: Shown) -> None:
        self.tasks.put(partial(self._try, task, *shown))

    def run(self) -> None:
        while True:
            try:
                task = self.tasks.get(timeout=POLL_SECONDS)
            except Empty:
                task = partial(self._try, self._look)
            if task is None:
                break
            task()
        self._try(self._leave)

    def _try(self, task: Callable[..., None], *shown: Shown) -> None:
        about = shown[0] if shown else self._run and self._run.shown
        try:
            task(*shown)
        except (Exception, SystemExit) as error:  # noqa: BLE001  theirs are of many kinds, and none may matter
            self._run = None
            self._online = None if self._online else self._online  # the server may have gone: it is asked again
            if about and not self.abandoned:
                _report(about, _first_line(error))
                _end_service()  # it may be what is broken

    # ------------------------------------------------------------------------------------------------ tasks
    def follow(self, shown: Shown) -> None:
        self._leave()
        self._run = self._open(shown)

    def _look(self) -> None:
        if self._run:
            self._run.send_records()

    def failed(self, shown: Shown) -> None:
        self._leave()
        if shown.kind == "gate" and (shown.out / "gate.png").is_file():  # its numbers are what one wants to see then
            with self._open(shown).closing(1) as run:
                run.send_results()

    def preempted(self) -> None:
        if self._run:
            self._run.run.mark_preempting()
        self._leave()

    def publish(self, shown: Shown) -> None:
        if self._run is None or self._run.shown.out != shown.out:
            self._leave()
            if is_sent(shown):
                return
            self._run = self._open(shown)
        run, self._run = self._run, None
        with run.closing(0):
            run.send_all()

    def _leave(self) -> None:
        """Ends an open run as unfinished: its stage failed, or this process goes."""
        run, self._run = self._run, None
        if run:
            with run.closing(1):
                run.send_records()

    # ------------------------------------------------------------------------------------------------ where to
    def _open(self, shown: Shown) -> Run:
        if shown.wanted.kind is TrackingKind.trackio:
            run = Run(shown)
            _say(f"trackio: trackio show --project {shown.project}, group {shown.group}")
            return run
        for name in OWN:
            os.environ.pop(name, None)
        if self._answers(shown):
            try:
                run = _wandb_run(shown, online=True)
                _say(f"W&B: {run.run.project_url}, group {shown.group}")
                return run
            except (Exception, SystemExit) as error:
                if self.abandoned:
                    raise
                self._online = False
                _end_service()  # it holds the run's id
                _say(f"W&B: {_first_line(error)}; {_later(shown)}")
        return _wandb_run(shown, online=False)

    def _answers(self, shown: Shown) -> bool:
        mode, _ = decide(shown.wanted)
        if mode is TrackingMode.offline:
            _say(f"W&B: {_later(shown)}")
            return False
        if self._online is None:
            server = _service().settings.base_url
            self._online = _answers_http(server, ANSWER_SECONDS[mode])
            if not self._online:
                _say(f"W&B: {server} does not answer; {_later(shown)}")
        return self._online


# ---------------------------------------------------------------------------------------------------- wandb itself
def _answers_http(server: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(server, timeout=seconds).close()
    except (OSError, ValueError) as error:
        return isinstance(error, urllib.error.HTTPError)
    return True


def _service() -> Any:
    """wandb's library with a process of its own, which no process of ours inherits.

    What the two leave in the temporary folder goes with this process.
    """
    import wandb

    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = _temporary_folder()
    try:
        library = wandb.setup(settings=wandb.Settings(silent=True))
    finally:
        tempfile.tempdir = None  # looked for again
        os.environ.pop("TMPDIR")
        os.environ.update({} if before is None else {"TMPDIR": before})
    os.environ.pop("WANDB_SERVICE", None)
    atexit.unregister(close)
    atexit.register(close)  # before wandb's own end, which waits without a limit
    return library


@cache
def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="wb")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _end_service() -> None:
    """Ends wandb's own process, whatever it waits for; the next run gets a new one."""
    if "wandb" not in sys.modules:
        return
    import psutil
    import wandb

    with suppress(Exception, SystemExit):
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                child.kill()
        wandb.teardown()


def _wandb_run(shown: Shown, *, online: bool) -> Run:
    _service()
    limit = threading.Timer(INIT_SECONDS, _end_service)  # wandb's own limit does not hold where the server falls silent
    limit.daemon = True
    limit.start()
    try:
        return Run(shown, online=online)
    finally:
        limit.cancel()


def _later(shown: Shown) -> str:
    run = shown.run.relative_to(Path.cwd()) if shown.run.is_relative_to(Path.cwd()) else shown.run
    return f"offline files, for later: wandb sync {run}/wandb/offline-run-*"


def _report(shown: Shown, text: str) -> None:
    """Once: what fails for one stage fails for all of them alike."""
    if text not in _failures:
        _failures.add(text)
        label = "W&B" if shown.wanted.kind is TrackingKind.wandb else "trackio"
        _say(f"{label}: {shown.name} was not sent ({text}); the record is local")


def _first_line(error: BaseException) -> str:
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
