"""The documentation's site has every page, what pages name exists, docstrings and searches are understood."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "docs/site/toc.yml").read_text(encoding="utf-8"))
# A module of ours, or something in it: no file name, no part of a longer name, no option.
CODE = re.compile(r"(?<![\w./-])(?:train|eval|zerotune)(?:\.[A-Za-z_]\w*)+(?![\w/])")
FILE = re.compile(r"(?<![\w./-])(?:train|eval|zerotune|tests|benchmarks|examples|slurm)/[\w/-]+\.(?:py|sh|md)\b")
USERS_OWN = "slurm/site.sh"  # what a user may put there
NOT_CODE = {"zerotune.evaluation"}  # the kind that an evaluation's result.json states


def pages() -> set[str]:
    """Every page of the repository that a reader may want, without .md."""
    found = [*ROOT.glob("*.md"), *(p for f in ("docs", "benchmarks", "examples") for p in (ROOT / f).rglob("*.md"))]
    return {str(path.relative_to(ROOT).with_suffix("")) for path in found}


def entries(part: Any) -> Iterator[str]:
    """The pages that a part of toc.yml names, those of a glob one by one."""
    if isinstance(part, list):
        for inner in part:
            yield from entries(inner)
    elif isinstance(part, dict):
        yield from (part[key] for key in ("root", "file") if key in part)
        if "glob" in part:
            yield from (str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob(f"{part['glob']}.md"))
        yield from entries([part.get("entries", []), part.get("subtrees", [])])


def test_every_page_is_in_the_order_once() -> None:
    named = list(entries(TOC))
    assert sorted(named) == sorted(pages())


def parts_of(name: str) -> tuple[Path, list[str]]:
    """The file of a dotted name of ours, and what is left of the name behind the module."""
    words = name.split(".")
    for count in range(len(words), 0, -1):
        path = ROOT.joinpath(*words[:count])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file, words[count:]
    return ROOT / name, words


def exists(name: str) -> bool:
    """Whether there is such a module, or such a class, function or variable in it."""
    file, rest = parts_of(name)
    return not rest or (file.is_file() and rest[0] in top_level_names(file))


def top_level_names(file: Path) -> set[str]:
    """What a module defines or imports."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {alias.asname or alias.name for alias in node.names}
            case ast.Assign():
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def test_names_of_code_in_pages_exist() -> None:
    """Code that moves, moves in the pages too; the changelog tells of the past."""
    found = [
        (page, name)
        for page in sorted(pages() - {"CHANGELOG"})
        for name in CODE.findall((ROOT / f"{page}.md").read_text(encoding="utf-8"))
    ]
    assert len(found) > 50
    assert not [f"{page}: {name}" for page, name in found if name not in NOT_CODE and not exists(name)]


def test_files_of_code_in_pages_exist() -> None:
    found = [
        (page, file)
        for page in sorted(pages() - {"CHANGELOG"})
        for file in FILE.findall((ROOT / f"{page}.md").read_text(encoding="utf-8"))
    ]
    assert len(found) > 50
    there = {file for _, file in found if any((root / file).exists() for root in (ROOT, ROOT / "tests"))}
    assert not [f"{page}: {file}" for page, file in found if file not in there | {USERS_OWN}]


def test_members_of_the_api_reference_exist() -> None:
    directives = [
        (module, members.split(", "))
        for page in (ROOT / "docs/api").glob("*.md")
        for module, members in re.findall(r"automodule:: (\S+)\n +:members: *(.*)", page.read_text(encoding="utf-8"))
    ]
    assert len(directives) > 5
    assert not [
        f"{module}.{name}" for module, names in directives for name in names if name and not exists(f"{module}.{name}")
    ]


def module_of_the_site(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/site/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = [
    "The token cache, 第一次训练 (LoRA).",
    "数据 格式",
    "一",
    "exact_match 和 GRPO2",
    "Größe, модель, モデル, 한국어",
    "",
]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_a_query_is_cut_as_the_pages_are() -> None:
    code = (ROOT / "docs/site/split_query.js").read_text(encoding="utf-8")
    show = f"console.log(JSON.stringify({json.dumps(TEXTS)}.map(splitQuery)))"
    found = subprocess.run(["node", "-e", code + show], capture_output=True, text=True, check=True, timeout=60).stdout
    search_terms = module_of_the_site("search_terms").search_terms
    assert json.loads(found) == [search_terms(text) for text in TEXTS]


def test_chinese_is_found_by_pairs_of_characters() -> None:
    search_terms = module_of_the_site("search_terms").search_terms
    assert search_terms("训练 LoRA 模型吗") == ["LoRA", "训练", "模型", "型吗"]


def documented(first: int, second: str = "") -> None:
    """Something with `code_` and 2 * 3.

    first: one thing: a number.
    second: another
        thing. first, second: both.
    """


def test_docstrings_become_fields() -> None:
    lines = str(inspect.getdoc(documented)).splitlines()
    module_of_the_site("docstrings").rewrite(None, "function", "documented", documented, None, lines)
    assert lines == [
        r"Something with `code_` and 2 \* 3.",
        "",
        ":param first: one thing: a number.",
        ":param second: another thing.",
        ":param first: both.",
        ":param second: both.",
        "",
    ]


def test_signatures_are_python() -> None:
    shown = module_of_the_site("docstrings").readable
    given = "(a: int = 1, b: list = <factory>, c: Callable = <function Spec.<lambda>>, d: type = <class 'float'>)"
    wanted = "(a: int = 1, b: list = ..., c: Callable = ..., d: type = float)"
    assert shown(None, "class", "Spec", None, None, given, None) == (wanted, None)
    assert shown(None, "class", "Protocol", None, None, "(*args, **kwargs)", None) == ("", None)
