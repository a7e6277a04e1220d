"""Where caches are kept, by one user or by several together."""

from __future__ import annotations

import functools
import logging
import os
import stat
from pathlib import Path

DEFAULT = "~/.cache/zerotune"
SHARED = stat.S_IWGRP | stat.S_IWOTH

log = logging.getLogger(__name__)


def cache_home(chosen: str | None = None) -> Path:
    """Where what is made once for all runs is kept: the chosen folder, $ZEROTUNE_CACHE or ~/.cache/zerotune.

    The last one also in place of a folder that another user made and we may not write into, with one WARNING.
    """
    home = Path(chosen or os.environ.get("ZEROTUNE_CACHE") or DEFAULT).expanduser()
    inside = next((path for path in (home / "tokens", home) if path.exists()), None)
    if inside is not None and not os.access(inside, os.W_OK):
        return _instead_of(inside)
    return home


@functools.cache
def _instead_of(folder: Path) -> Path:
    own = Path(DEFAULT).expanduser()
    if folder.is_relative_to(own):
        return own  # nowhere else to go: whoever writes there says why that is not possible
    log.warning(
        "%s belongs to another user and cannot be written; tokenised data is kept in %s instead. To share it, its "
        "owner may run: chmod -R a+rwX %s", folder, own, folder,
    )  # fmt: skip
    return own


def make_folder(folder: Path, home: Path) -> None:
    """Make `folder` in the cache `home`, and what is missing above it. Where `home` may be written by its group or by
    all, so may these: a umask would keep the next user out.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    mode = home.stat().st_mode
    for path in missing:
        if mode & SHARED and path.is_relative_to(home) and path != home:
            path.chmod(stat.S_IMODE(mode))


def share_file(path: Path, home: Path) -> None:
    """The same for a file, such as a lock, that the next user must be able to open for writing."""
    mode = home.stat().st_mode & SHARED
    if mode and path.stat().st_uid == os.getuid():
        path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
