"""The page around a template: one file with everything inside it and nothing loaded from elsewhere.

plotly.js stands in the page once, packed: 2 MB instead of 5. page.js unpacks it and draws the figures into their slots.
"""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from recap.report import words
from recap.report.html.theme import LEFT, RIGHT, THEME
from recap.report.paired import direction
from recap.report.summary import write_atomic


class Page:
    """What the templates hand to page.js: figures and videos by name, and traces to scrub."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.videos: dict[str, str] = {}
        self.traces: list[dict[str, Any]] = []

    def draw(self, name: str, figure: go.Figure | None) -> None:
        """None draws nothing."""
        if figure is not None:
            self.figures[name] = json.loads(figure.to_json())

    def write(self, path: Path, template: str, title: str, **context: Any) -> Path:
        """Raises RecapError when the page cannot be written."""
        body = _templates().get_template(template).render(page=self, **context)
        data = {"theme": THEME, "axis": [LEFT, RIGHT], **vars(self)}
        packed = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        page = (
            _templates()
            .get_template("page.html")
            .render(
                title=title,
                body=Markup(body),
                data=Markup(packed.replace("<", "\\u003c")),  # cannot end the script
                plotly=_plotly(),
            )
        )
        write_atomic(path, page)
        return path


@cache
def _templates() -> Environment:
    """Templates see the words of the report as functions; a name that nobody passed is an error."""
    made = Environment(
        loader=PackageLoader("recap.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {name: found for name, found in vars(words).items() if callable(found)}
    made.globals |= {"anchor": anchor, "breakable": breakable, "direction": direction}
    return made


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def breakable(text: object) -> Markup:
    """A value or a node's name that a narrow card may break after a slash, a dot or an underscore."""
    shown = words.plain(text) if not isinstance(text, str) else text
    return Markup("".join(f"{escape(letter)}<wbr>" if letter in "/_." else escape(letter) for letter in shown))
