"""A process's notice that its time is nearly up, and how it leaves.

Most work is durable at every moment, and the process leaves at once. A training reads `given` after each step, saves
and leaves; if its next step is too far away, it leaves without.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 0.6  # of the notice: so long a good moment is waited for


class Notice:
    """The notice of this process; there is one."""

    def __init__(self) -> None:
        self._go: Callable[[], None] | None = None
        self._seconds = 0.0
        self._waits = False
        self.given = False

    @property
    def expected(self) -> bool:
        """Whether anybody may give notice."""
        return self._go is not None

    def heed(self, number: signal.Signals, seconds: float, go: Callable[[], None]) -> None:
        """From now on the signal is the notice. seconds: from notice to end; go: how to leave, which may return."""
        self._go, self._seconds, self.given = go, seconds, False
        signal.signal(number, self._arrives)
        signal.signal(signal.SIGALRM, lambda *_: self.leave())

    @contextmanager
    def at_a_good_moment(self) -> Iterator[None]:
        """Within, the notice waits until `leave` is called, or until it can wait no longer."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def leave(self) -> None:
        self.given = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._go is not None:
            self._go()

    def _arrives(self, *_: object) -> None:
        self.given = True
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE * self._seconds)
        else:
            self.leave()


NOTICE = Notice()
