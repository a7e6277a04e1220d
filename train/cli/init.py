"""`zerotune init FOLDER`: makes a working folder with copies of the shipped recipes, configurations and scripts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from zerotune import shipped
from zerotune.common.arguments import Parser
from zerotune.common.errors import UserError
from zerotune.common.files import cannot_write

COPIED = ("recipes", "accelerate_configs", "ds_configs", "slurm", "examples")


def main(words: Sequence[str]) -> int:
    """Copy the files. Returns the exit code. Raises UserError, before anything is written, if one of them exists."""
    about = (
        "Make a folder with copies of the recipes, configurations of Accelerate and DeepSpeed, SLURM batch scripts "
        "and example data. The guides' sbatch commands work there: sbatch slurm/job.sh recipes/NAME.yaml."
    )
    parser = Parser(prog="zerotune init", description=about)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or one without such files")
    folder = parser.parse_args(words).folder
    if existing := [str(folder / name) for name in COPIED if (folder / name).exists()]:
        raise UserError(f"{', '.join(existing)}: already exists, and nothing is overwritten; choose another folder")
    for name in COPIED:
        try:
            shutil.copytree(shipped.HERE / name, folder / name, ignore=shutil.ignore_patterns("site.sh", "__pycache__"))
        except OSError as error:
            raise cannot_write(folder / name, error) from error
    sys.stdout.write(f"copied to {folder}: {', '.join(COPIED)}\n")
    return 0
