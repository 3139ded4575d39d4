"""report.html: one file that shows a run, with everything it needs inside it and nothing loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recap.report.html import learning, outcome, provenance
from recap.report.html.page import Page, contents
from recap.storage import readers as files


def write_html(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Write report.html of a run directory and return its path. `summary` is that of `build_summary`.

    What a run does not have (controls, videos, rollouts, iterations) has no section. Raises RecapError for files that
    are there but cannot be read, or when the page cannot be written.
    """
    run_dir, page = Path(run_dir), Page()
    nodes = files.finished_stages(run_dir)
    sections = [
        outcome.success(page, summary),
        outcome.pairs(summary),
        outcome.tasks(summary),
        *learning.rollouts(page, run_dir, summary),
        learning.advantages(page, run_dir, summary),
        learning.gates(run_dir, summary),
        learning.videos(page, run_dir, summary),
        learning.losses(page, run_dir, nodes),
        provenance.differences(run_dir, summary, nodes),
        provenance.provenance(run_dir, summary, nodes),
    ]
    head = [outcome.header(summary), outcome.advice(summary), outcome.tiles(summary), contents(sections)]
    page.write(run_dir / "report.html", f"{summary['name']} · RECAP report", [*head, *sections])
    return run_dir / "report.html"
