"""The version of ZeroTune, and its commit if it runs from a repository."""

from __future__ import annotations

import platform
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def own_version() -> str | None:
    """Of this checkout, else of the installed package; None where neither says."""
    try:  # first: an installation beside a checkout may be another one
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "zerotune":
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass
    return installed_version("zerotune")


def installed_version(package: str) -> str | None:
    """Of a library; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those of the packages that are installed."""
    found = {name: installed_version(name) for name in packages}
    return {"python": platform.python_version()} | {name: number for name, number in found.items() if number}


def code_state(folder: Path) -> dict[str, Any] | None:
    """The git commit that `folder` stands at and whether tracked files differ from it.

    None outside a repository, and where it tracks nothing of the folder (a package installed inside another project).
    """
    try:
        if not _git(folder, "ls-files", ".").strip():
            return None
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout
