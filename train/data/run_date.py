"""The date for chat templates that read the clock: the day of the run's first start."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from train.data.rank_sync import share
from train.protocols import Ranks
from zerotune.models.run_facts import read_run_json, template_date_of


def run_day(folder: str, ranks: Ranks) -> date:
    """The day in the folder's run.json, else today; on all ranks that of rank 0."""
    known = template_date_of(read_run_json(Path(folder))) if ranks.index == 0 else None
    return date.fromisoformat(share(ranks, (known or date.today()).isoformat() if ranks.index == 0 else ""))
