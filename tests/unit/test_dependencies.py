"""pyproject.toml declares what is imported, and nothing else; requirements.lock pins it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"train", "eval", "zerotune"}
# Packages that are not called as what they bring is imported.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Used without an import.
NOT_IMPORTED = {
    "furo": "the theme that docs/site/conf.py names",
    "myst-parser": "Sphinx loads it, as docs/site/conf.py says",
    "sphinx-external-toc": "Sphinx loads it, as docs/site/conf.py says",
    "flash-attn": "transformers imports it, where model.attention asks for it",
    "gguf": "transformers reads GGUF files with it, for examples/get_smollm2.py",
    "ninja": "DeepSpeed compiles its operators with it",
    "mypy": "a program",
    "pre-commit": "a program",
    "pytest-timeout": "pytest loads it",
    "pytest-xdist": "pytest loads it",
    "ruff": "a program",
    "types-psutil": "mypy reads it",
    "types-pyyaml": "mypy reads it",
}
# benchmarks/ compares with these in environments of its own.
PEERS = {"lm_eval"}
# The lock leaves out what only some machines need.
NOT_LOCKED = {"flash-attn"}


def declared(*extras: str) -> dict[str, Requirement]:
    """What the project needs, and what the extras add, by canonical name."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


EXTRAS = tuple(PROJECT["optional-dependencies"])


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def imports(path: Path) -> tuple[tuple[int, str, bool], ...]:
    """(line, library, lazy) of every import, those by name (`find_spec("trl")`) too. lazy: inside a function."""
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("find_spec", "import_module")):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            yield node.lineno, name.partition(".")[0], id(node) in inside


def third_party(*folders: str) -> list[tuple[str, str, bool]]:
    """(file:line, library, lazy) of what neither Python nor this project has."""
    files = python_files(*folders)
    own = OURS | {"tests", "benchmarks", "examples"} | {path.stem for path in files}
    found = []
    for path in files:
        for line, name, lazy in imports(path):
            if name not in own | PEERS | set(sys.stdlib_module_names):
                found.append((f"{path.relative_to(ROOT)}:{line}", name, lazy))
    return found


def package_of(library: str) -> str:
    """The canonical name of the package that brings a library."""
    return str(canonicalize_name(PACKAGES.get(library, library)))


def undeclared(folders: Iterable[str], requirements: Mapping[str, Requirement]) -> list[str]:
    return [f"{at}: {name}" for at, name, _ in third_party(*folders) if package_of(name) not in requirements]


def test_what_the_package_imports_is_declared() -> None:
    assert len(third_party("train", "eval", "zerotune")) > 100
    assert not undeclared(("train", "eval", "zerotune"), declared("eval", "ntloss"))


def test_what_tests_and_examples_import_is_declared() -> None:
    assert not undeclared(("tests", "benchmarks", "examples", "docs"), declared(*EXTRAS))


def test_extras_are_imported_only_inside_functions() -> None:
    """Without an extra the package works, and says what is missing when that is asked for."""
    outside = [
        f"{at}: {name}"
        for at, name, lazy in third_party("train", "eval", "zerotune")
        if not lazy and package_of(name) not in declared()
    ]
    assert not outside


def test_what_is_declared_is_used() -> None:
    everywhere = third_party("train", "eval", "zerotune", "tests", "benchmarks", "examples", "docs")
    used = {package_of(name) for _, name, _ in everywhere}
    by_package = {package_of(name) for _, name, _ in third_party("train", "eval", "zerotune")}
    assert sorted(set(declared()) - by_package - set(NOT_IMPORTED)) == []
    assert sorted(set(declared(*EXTRAS)) - used - set(NOT_IMPORTED)) == []
    assert sorted(set(NOT_IMPORTED) - set(declared(*EXTRAS))) == []


def test_mypy_skips_only_what_is_imported() -> None:
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]
    skipped = {module.partition(".")[0] for section in overrides for module in section["module"]}
    assert sorted(skipped - {name for _, name, _ in third_party("train", "eval", "zerotune")}) == []


def lock() -> dict[str, str]:
    """Canonical name -> version."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_lock_is_names_and_versions_alone() -> None:
    """No address of an index or a file, no local suffix such as +cpu: it installs from whatever pip is set up for."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)]
    assert lines == sorted(lines, key=lambda line: canonicalize_name(line.partition("==")[0]))
    assert len(lock()) == len(lines)


def test_the_lock_pins_what_is_declared_within_its_range() -> None:
    for name, requirement in declared(*EXTRAS).items():
        if name not in NOT_LOCKED:
            assert name in lock(), f"requirements.lock lacks {name}"
            assert lock()[name] in requirement.specifier, (
                f"requirements.lock: {name}=={lock()[name]} is not {requirement}"
            )


def needed() -> set[str]:
    """Everything that the declared packages need in the end, by what is installed."""
    waiting = [requirement for name, requirement in declared(*EXTRAS).items() if name not in NOT_LOCKED]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (str(canonicalize_name(requirement.name)), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += [r for r in _requires(requirement) if not r.name.startswith(("nvidia", "cuda", "triton"))]
    return {name for name, _ in seen}


def _requires(requirement: Requirement) -> Iterator[Requirement]:
    for line in metadata.requires(requirement.name) or ():
        inner = Requirement(line)
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            yield inner


def test_the_lock_pins_all_that_is_needed_and_nothing_else() -> None:
    missing = [name for name in lock() if not _is_installed(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make venv")
    assert sorted(needed()) == sorted(lock())


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_lock_installs_on_the_oldest_python_that_the_project_admits() -> None:
    """Debian 12 has 3.11.2, and `make` needs no newer one."""
    (oldest,) = (specifier.version for specifier in SpecifierSet(PROJECT["requires-python"]))
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = [Requirement(line) for line in text.splitlines() if line and not line.startswith(("#", "-"))]
    newer = []
    for requirement in pinned:
        try:
            found = metadata.metadata(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if not SpecifierSet(found.get("Requires-Python") or "").contains(f"{oldest}.0"):
            newer.append(f"{requirement.name} {found['Version']} needs Python {found['Requires-Python']}")
    assert not newer
