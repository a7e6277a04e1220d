"""The report of a run: report.md with curves, and a table for the terminal. Reads only the run folder."""

from __future__ import annotations

from train.report.page import write_report
from train.report.table import print_table

__all__ = ["print_table", "write_report"]
