"""`zerotune init FOLDER`: a folder to work in, with copies of what comes with the program, to be changed."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.files import cannot_write

COPIED = ("recipes", "accelerate_configs", "ds_configs", "slurm", "examples")


def main(words: Sequence[str]) -> int:
    """Copy, and say where; the exit code. Raises UserError where something of it exists, before anything is written."""
    about = (
        "Make a folder with copies of the recipes, configurations of accelerate and DeepSpeed, batch scripts of "
        "SLURM and example data. The guides' commands work there: sbatch slurm/job.sh recipes/NAME.yaml."
    )
    parser = argparse.ArgumentParser(prog="zerotune init", description=about)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to make, or one without such files")
    folder = parser.parse_args(words).folder
    if existing := [str(folder / name) for name in COPIED if (folder / name).exists()]:
        raise UserError(f"{', '.join(existing)}: exists already, and nothing is overwritten; name another folder")
    for name in COPIED:
        try:
            shutil.copytree(shipped.HERE / name, folder / name, ignore=shutil.ignore_patterns("site.sh", "__pycache__"))
        except OSError as error:
            raise cannot_write(folder / name, error) from error
    sys.stdout.write(f"{folder} holds {', '.join(COPIED)}\n")
    return 0
