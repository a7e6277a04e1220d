"""The order of the documentation's site (`make docs`) has every page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOC = yaml.safe_load((ROOT / "docs/site/toc.yml").read_text(encoding="utf-8"))


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
