"""What the tests of files of strangers share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recap.utils.errors import RecapError


class Runs:
    """A pickle of this makes the marker when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(error: RecapError, *says: str) -> None:
    text = str(error)
    assert len(text) < 1500
    assert len(text.splitlines()) <= 10
    assert "Fix: " in text
    for part in says:
        assert part in text, text
