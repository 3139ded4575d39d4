"""The page around the sections: HTML pieces, and one file with everything inside it and nothing loaded from elsewhere.

plotly.js stands in the page once, packed: 2 MB instead of 5. page.js unpacks it and draws the figures into their slots.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from functools import cache
from html import escape, unescape
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from recap.report.html.theme import LEFT, RIGHT, THEME
from recap.report.summary import write_atomic

PARTS = Path(__file__).parent


class Page:
    """Collects what sections hand to page.js: figures and videos by name, and traces to scrub."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.videos: dict[str, str] = {}
        self.traces: list[dict[str, Any]] = []

    def figure(self, name: str, figure: go.Figure | None, label: str) -> str:
        """A slot for a figure; `label` is what a screen reader says instead. None draws nothing."""
        if figure is None:
            return ""
        self.figures[name] = json.loads(figure.to_json())
        height = figure.layout.height
        return (
            f'<div class="figure" data-figure="{escape(name)}" role="img" aria-label="{escape(label)}" '
            f'style="height:{height}px"></div>'
        )

    def video(self, name: str, mp4: str, shape: tuple[int, int] | None = None) -> str:
        """A video, given in base64; shape: width and height, so that the page does not jump when it is there."""
        self.videos[name] = mp4
        ratio = f' style="aspect-ratio:{shape[0]}/{shape[1]}"' if shape else ""
        return f'<video data-video="{escape(name)}" muted playsinline preload="auto"{ratio}></video>'

    def write(self, path: Path, title: str, sections: list[str]) -> None:
        """Raises RecapError when the page cannot be written."""
        data = {
            "theme": THEME,
            "axis": [LEFT, RIGHT],
            "figures": self.figures,
            "videos": self.videos,
            "traces": self.traces,
        }
        packed = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        page = Template((PARTS / "page.html").read_text(encoding="utf-8")).substitute(
            title=escape(title),
            style=(PARTS / "page.css").read_text(encoding="utf-8"),
            script=(PARTS / "page.js").read_text(encoding="utf-8"),
            body="\n".join(section for section in sections if section),
            data=packed.replace("<", "\\u003c"),  # cannot end the script
            plotly=_plotly(),
        )
        write_atomic(path, page)


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def section(title: str, about: str, *content: str) -> str:
    """A headed part of the page; `about` is HTML."""
    return (
        f'<section id="{anchor(title)}">\n<h2>{escape(title)}</h2>\n<p class="about">{about}</p>\n'
        + "\n".join(content)
        + "\n</section>"
    )


def contents(sections: list[str]) -> str:
    """Links to the sections that there are."""
    titles = [found[1] for part in sections if (found := re.search(r"<h2>(.*?)</h2>", part))]
    links = "".join(f'<a href="#{anchor(unescape(title))}">{title}</a>' for title in titles)
    return f'<nav aria-label="Sections">{links}</nav>'


def anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def row(cells: list[str], tag: str = "td", kind: str = "") -> str:
    """A table row of HTML cells; one that brings its own tag keeps it."""
    inside = "".join(cell if cell.startswith(f"<{tag}") else f"<{tag}>{cell}</{tag}>" for cell in cells)
    return f'<tr class="{kind}">{inside}</tr>' if kind else f"<tr>{inside}</tr>"


def table(head: list[str], rows: list[str], kind: str = "", beside: int | None = None) -> str:
    """beside: how many cells stand beside each other on a phone, under the first one; None: all, and it scrolls."""
    head_row, body = row(head, "th"), "".join(rows)
    folds = "" if beside is None else f' style="--beside:{beside}"'
    kind = kind if beside is None else f"{kind} folds".strip()
    return (
        f'<div class="scroll"><table class="{kind}"{folds}><thead>{head_row}</thead><tbody>{body}</tbody></table></div>'
    )


def card(*content: str, kind: str = "") -> str:
    return f'<div class="card {kind}">{"".join(content)}</div>'


def breakable(node: str) -> str:
    """A node's name that a narrow card may break after a slash, a dot or an underscore."""
    text = escape(node.replace("controls/", ""))
    return text.replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>")
