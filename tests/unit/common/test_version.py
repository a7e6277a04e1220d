"""Which ZeroTune it is that runs: its version, and its commit where it is run from a repository."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from zerotune.common.version import code_state, own_version

ROOT = Path(__file__).resolve().parents[3]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "a").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "x")
    return tmp_path


def test_the_commit_and_whether_files_differ_from_it(repository: Path) -> None:
    state = code_state(repository)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (repository / "a").write_text("2")
    changed = code_state(repository)
    assert changed is not None
    assert changed["dirty"] is True


def test_there_is_none_outside_a_repository(tmp_path: Path) -> None:
    assert code_state(tmp_path) is None


def test_a_package_installed_inside_another_project_has_not_that_projects_commit(repository: Path) -> None:
    package = repository / ".venv" / "lib" / "eval"
    package.mkdir(parents=True)
    (package / "main.py").write_text("")
    assert code_state(package) is None


def test_the_version_is_that_of_this_checkout() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert own_version() == project["version"]
