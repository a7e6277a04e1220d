"""The limits of the recipe (`check`): findings that exceed them fail a check."""

from __future__ import annotations

from train.check.findings import Report
from train.config import CheckConfig

EXIT_CODE = 65  # as sysexits.h: the data are wrong


def exceeded(report: Report, limits: CheckConfig) -> list[str]:
    """A line for each finding that exceeds its limit."""
    lines = []
    for found in report.findings:
        limit = getattr(limits, found.kind)
        if limit is not None and found.share > limit:
            first = f", the first: {found.examples[0]}" if found.examples else ""
            lines.append(
                f"check.{found.kind}: {found.count:,} of {found.of:,} rows of {found.source} ({found.share:.2%}), "
                f"the limit is {limit:.2%}{first}"
            )
    return lines
