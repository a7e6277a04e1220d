"""The day that a run's chat template reads, where it reads the clock: that of the run's first start."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from train.data.rank_sync import share
from train.protocols import Ranks
from zerotune.models.run_facts import read_run_json, template_date_of


def run_day(folder: str, ranks: Ranks) -> date:
    """As run.json in the run's folder has it, else today; that of the first rank on all ranks."""
    known = template_date_of(read_run_json(Path(folder))) if ranks.index == 0 else None
    return date.fromisoformat(share(ranks, (known or date.today()).isoformat() if ranks.index == 0 else ""))
