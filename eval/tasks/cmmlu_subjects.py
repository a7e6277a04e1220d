"""The 67 subjects of CMMLU (arXiv:2306.09212): Chinese names from its prompts, categories from its evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CHINA_SPECIFIC = "China-specific"  # a category across the other four


@dataclass(frozen=True)
class Subject:
    """chinese: name in prompts. category: one of the four. is_china_specific: also belongs to CHINA_SPECIFIC."""

    chinese: str
    category: str
    is_china_specific: bool


with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as _table:
    SUBJECTS: Mapping[str, Subject] = {
        row["subject"]: Subject(row["chinese"], row["category"], row["china_specific"] == "yes")
        for row in csv.DictReader(_table)
    }
