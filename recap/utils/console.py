"""For a console that cannot show every letter: the others are spelled out in those that it has."""

from __future__ import annotations

import codecs
import io
import sys

SPELLED = "recap.spelled"  # the error handler's name, for `open(errors=…)`
WORDS = {
    "─": "-",
    "│": "|",
    "…": "...",
    "·": "*",
    "×": "x",
    "±": "+-",
    "→": "->",
    "←": "<-",
    "−": "-",
    "–": "-",
    "—": "-",
    "≥": ">=",
    "≤": "<=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "\u00a0": " ",
    "\u202f": " ",
    "π": "pi",
    "ε": "epsilon",
    "β": "beta",
    "✓": "ok",
    "✗": "x",
}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(WORDS.get(letter) or ascii(letter)[1:-1] for letter in text), error.end


codecs.register_error(SPELLED, _spelled)


def spell() -> None:
    """From now on, letters that the console lacks are spelled out: `pi0` instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)
