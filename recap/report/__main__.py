"""The report of a run once more, or several runs beside each other, from their directories alone.

python -m recap.report outputs/demo                        summary.json and report.html anew, and the table
python -m recap.report outputs/demo outputs/two_pots       a comparison, in the terminal and as comparison.html
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from recap.report import print_table, write_html, write_summary
from recap.report.html.compare import PAGE, print_comparison, read_runs, write_comparison
from recap.storage.inside import stay_inside
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 with one line on standard error for a problem the user can fix."""
    spell()
    parser = argparse.ArgumentParser(
        prog="python -m recap.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=home.path, nargs="+", help="run directories, such as outputs/demo")
    parser.add_argument("--page", type=home.path, help=f"where a comparison goes; by default {PAGE} beside the runs")
    console = Console()
    try:
        given = parser.parse_args(arguments)
        page = _one(given.run[0], console) if len(given.run) == 1 else _several(given.run, given.page, console)
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(f" {page}", style="dim", highlight=False, soft_wrap=True)
    return 0


def _one(run: Path, console: Console) -> Path:
    stay_inside(run, "run")
    summary = write_summary(run)
    page = write_html(run, summary)
    print_table(summary, console)
    return page


def _several(folders: list[Path], page: Path | None, console: Console) -> Path:
    runs = read_runs(folders)
    beside = Path(os.path.commonpath([folder.absolute().parent for folder in folders])) / PAGE
    written = write_comparison(runs, page or beside)
    print_comparison(runs, console)
    return written


if __name__ == "__main__":
    sys.exit(main())
