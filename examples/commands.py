"""How the experiments of this folder call the project's commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str | Path) -> None:
    """A command of the project, as a user gives it; ends this one with the same exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
