"""The day that a run's chat template reads, where it reads the clock: that of the run's first start."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from eval.origin import day_of, facts_of
from train.data.together import share
from train.protocols import Ranks


def run_day(folder: str, ranks: Ranks) -> date:
    """As run.json in the run's folder has it, else today; that of the first rank on all ranks."""
    known = day_of(facts_of(Path(folder))) if ranks.index == 0 else None
    return date.fromisoformat(share(ranks, (known or date.today()).isoformat() if ranks.index == 0 else ""))
