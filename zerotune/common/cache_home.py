"""The cache folder, of one user or shared by several."""

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
    """The cache folder of all runs: the chosen one, $ZEROTUNE_CACHE or ~/.cache/zerotune.

    The last one also replaces a folder of another user that is not writable, with one WARNING.
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
        return own  # the first write then raises an error with the reason
    log.warning(
        "%s belongs to another user and is not writable; tokenised data is cached in %s instead. To share the folder, "
        "its owner can run: chmod -R a+rwX %s", folder, own, folder,
    )  # fmt: skip
    return own


def make_folder(folder: Path, home: Path) -> None:
    """Create `folder` in the cache `home`, with its parents. If `home` is writable by its group or by all, so are
    these, whatever the umask, so that the next user can write there.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    mode = home.stat().st_mode
    for path in missing:
        if mode & SHARED and path.is_relative_to(home) and path != home:
            path.chmod(stat.S_IMODE(mode))


def share_file(path: Path, home: Path) -> None:
    """Likewise for a file, such as a lock, that other users must be able to open for writing."""
    mode = home.stat().st_mode & SHARED
    if mode and path.stat().st_uid == os.getuid():
        path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
