"""A stage's work split among processes: array tasks of SLURM, and the processes that one job or command starts."""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recap.utils.environment import leave, number
from recap.utils.errors import RecapError

LOOK_SECONDS = 0.5  # between two looks at what the others do
NOTE_SECONDS = 30.0  # without a sign of them, until a line says who is waited for
# The same until this one gives up: others start within minutes, but the main process may first fetch weights.
PEER_SECONDS, MAIN_SECONDS = 1800.0, 6 * 3600.0


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`. Results do not depend on the split."""

    index: int = 0
    count: int = 1

    @property
    def whole(self) -> bool:
        return self.count == 1

    def of[T](self, items: Sequence[T]) -> Sequence[T]:
        """Its items, in order: every `count`-th."""
        return items[self.index :: self.count]

    def among(self, index: int, count: int) -> Share:
        """Its own part `index` of `count`."""
        return Share(self.index * count + index, self.count * count)

    def __str__(self) -> str:
        return f"{self.index}of{self.count}"


WHOLE = Share()


def process() -> Share:
    """This process among those that `accelerate launch`, torchrun or SLURM started together.

    Raises RecapError where RANK or WORLD_SIZE is not a number.
    """
    return Share(number("RANK", 0), number("WORLD_SIZE", 1))


def wait(done: Callable[[], bool], lock: Path, what: str) -> None:
    """Returns when the other processes have done `what`; they hold the file `lock` while they work.

    If one of them fails, whoever started them ends them all. Raises RecapError where they never come.
    """
    seen, noted = time.monotonic(), False
    patience = MAIN_SECONDS if process().index else PEER_SECONDS
    while not done():
        time.sleep(LOOK_SECONDS)
        alone = time.monotonic() - seen
        if _held(lock):
            seen = time.monotonic()
        elif alone > patience:
            raise missing(what)
        elif alone > NOTE_SECONDS and not noted:
            noted = True
            _say(what)


def missing(what: str) -> RecapError:
    """The other processes never came."""
    return RecapError(f"{_waits(what)}, and no sign of it. {leave(process().count)}")


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Around a library's own wait: after a while, a line says what it is for."""
    timer = threading.Timer(NOTE_SECONDS, _say, [what])
    timer.daemon = True
    if not process().whole:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(what: str) -> None:
    print(f"{_waits(what)}. If there is none: Ctrl-C. {leave(process().count)}", file=sys.stderr, flush=True)


def _waits(what: str) -> str:
    mine = process()
    return f"RANK={mine.index} of WORLD_SIZE={mine.count}: waits for the other process{'es' * (mine.count > 2)} {what}"


def _held(lock: Path) -> bool:
    """Whether a process works there. Looking changes nothing in the file."""
    try:
        with lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
