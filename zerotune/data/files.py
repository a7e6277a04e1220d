"""Users' data files: which there are, and their rows."""

from __future__ import annotations

import glob
from pathlib import Path

from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.data import saved_datasets
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.readers import READERS, read, reader_of

__all__ = ["BadRow", "Row", "expand", "read"]


KNOWN = f"{', '.join(READERS)}; text files compressed too, as in .jsonl.gz"


def expand(*paths: str, split: str | None = None) -> list[Path]:
    """The data files that file names, folders (searched deeply) and globs stand for, each once: in the order of the
    paths, and of the names within each. A folder of `save_to_disk` stands for its Arrow files; split: which one,
    where it holds several.

    Raises:
        UserError: Nothing matches, or a file is of no known kind.
    """
    return list(dict.fromkeys(file for path in paths for file in _expand(path, split)))


def _expand(path: str, split: str | None) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        if not reader_of(place):
            kind = f"files of kind `{place.suffix}` cannot be read" if place.suffix else "its name has no ending"
            raise UserError(f"{path}: {kind}; known are {KNOWN}")
        return [place]
    if place.is_dir():
        if saved_datasets.splits(place):
            place = saved_datasets.chosen(place, split)
        if saved_datasets.is_saved(place):
            return saved_datasets.files(place)
        found = [(file, file.relative_to(place).parts) for file in place.rglob("*")]
        candidates = [file for file, parts in found if not any(part.startswith(".") for part in parts)]
        candidates = _without_saved(candidates)
    else:
        candidates = [Path(name) for name in glob.glob(str(place), recursive=True)]  # noqa: PTH207 (absolute globs)
    files = sorted((f for f in candidates if f.is_file() and reader_of(f)), key=lambda f: f.as_posix())
    if files:
        return files
    if candidates == [place]:
        raise UserError(
            f"{path}: is not a regular file (a pipe, or a device); rows are read more than once, so save them as a file"
        )
    if candidates or place.is_dir():
        raise UserError(f"{path}: holds no data file; known are {KNOWN}")
    raise UserError(f"{path}: no such file, folder or glob{nearest(place)}")


def _without_saved(candidates: list[Path]) -> list[Path]:
    """The files of a folder, of the data sets saved in it those that hold rows. Other Arrow files are mostly caches."""
    saved = {file.parent for file in candidates if file.name == saved_datasets.STATE}
    saved = {folder for folder in saved if saved_datasets.is_saved(folder)}
    kept = [f for f in candidates if f.parent not in saved and f.suffix != ".arrow" and f.name != saved_datasets.SPLITS]
    return kept + [file for folder in saved for file in saved_datasets.files(folder)]
