"""Checks the source and target of a merge before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from train.checkpoint import commit
from zerotune.common.errors import UserError
from zerotune.common.files import json_object


def find_run(path: Path) -> tuple[Path, Path | None]:
    """(run folder, checkpoint if `path` is one). Raises UserError if `path` is neither."""
    if (path / commit.STATE).is_file():
        return path.parent.parent, path
    if (path / "config.yaml").is_file():
        return path, None
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; give a run folder or one of its checkpoints")
    raise UserError(f"{path}: neither a run folder (no config.yaml) nor one of its checkpoints (no state.json)")


def refuse_foreign(out: Path) -> None:
    """Raise UserError if `out` exists and is not an earlier merge."""
    if not out.exists() and not out.is_symlink():
        return
    if "merge" not in json_object(out / "run.json") and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out}: exists already and is not an earlier merge; choose another folder, or remove it yourself"
        )
