"""The report of a run: summary.json, the table in the terminal, report.html; from the run directory alone."""

from recap.report.html.write import write_html
from recap.report.summary import build_summary, write_summary
from recap.report.table import print_table

__all__ = ["build_summary", "print_table", "write_html", "write_summary"]
