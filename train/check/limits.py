"""The limits of the recipe (`check`): findings that exceed them fail a check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from train.check.findings import Finding
from train.config import CheckConfig
from zerotune.common.metric_format import percent

EXIT_CODE = 65  # as sysexits.h: the data are wrong


def exceeded(findings: Sequence[Finding], limits: CheckConfig) -> list[str]:
    """A line for each finding that exceeds its limit."""
    lines = []
    for found in findings:
        limit = getattr(limits, found.kind)
        if limit is not None and found.share > limit:
            first = f"; the first: {found.examples[0]}" if found.examples else ""
            lines.append(
                f"check.{found.kind}: {found.count:,} of {found.of:,} rows of {found.source} ({percent(found.share)}); "
                f"the limit is {percent(limit)}{first}"
            )
    return lines


def unchecked(findings: Sequence[Finding], limits: CheckConfig) -> list[str]:
    """A line for each limit that these rows cannot exceed, since nothing was compared with it."""
    seen = {found.kind for found in findings}
    names = [key for key, limit in dataclasses.asdict(limits).items() if limit is not None and key not in seen]
    return [f"check.{name}: not checked: these rows cannot have this finding" for name in names]
