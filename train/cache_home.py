"""Where caches are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home(chosen: str | None = None) -> Path:
    """Where what is made once for all runs is kept: the chosen folder, $ZEROTUNE_CACHE or ~/.cache/zerotune."""
    return Path(chosen or os.environ.get("ZEROTUNE_CACHE") or "~/.cache/zerotune").expanduser()
