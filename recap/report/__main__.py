"""`python -m recap.report outputs/demo`: build summary.json and report.html again and print the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from recap.errors import RecapError
from recap.report import print_table, write_html, write_summary


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 with one line on standard error for a problem the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m recap.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run directory, such as outputs/demo")
    run_dir = parser.parse_args(arguments).run_dir
    try:
        summary = write_summary(run_dir)
        page = write_html(run_dir, summary)
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    print_table(summary, console)
    console.print(f" {page}", style="dim", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
