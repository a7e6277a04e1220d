"""The documents: links resolve, prose is short and plain, and each Chinese page keeps in step with its English one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "benchmarks", "examples")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
TRANSLATIONS = {ROOT / "README.zh.md": ROOT / "README.md"} | {
    page: ROOT / "docs" / page.name for page in sorted((ROOT / "docs" / "zh").glob("*.md"))
}
ENGLISH = [page for page in PAGES if page not in TRANSLATIONS and page.name != "CHANGELOG.md"]
LONGEST = 120  # characters of a line of prose; tables, code and headings are as long as they need to be
NOT_PROSE = ("|", "    ", "#", "<!--")
PLAIN = {  # how these documents once spoke -> what a reader from another trainer understands
    r"\bgo(es)? on where\b": "resumes where it stopped",
    r"\bmend(s|ed)?\b": "fix",
    r"\bof before\b": "earlier",
    r"\b(is|are|was) told\b": "is reported, is given",
    r"\bat hand\b": "available",
    r"\banew\b": "again",
    r"\bhand-over\b": "export",
}
BLOCKS = re.compile(r"^```(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^    ((?:accelerate|python|make|sbatch|bash|source|tensorboard) .*)", re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """The page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) of each heading, in order."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.*)$", outside, re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)]
    return {
        title if titles[:i].count(title) == 0 else f"{title}-{titles[:i].count(title)}"
        for i, title in enumerate(titles)
    }


def code_spans(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each relative link and picture of a page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if "://" not in target:
            place, _, anchor = target.partition("#")
            yield (page.parent / place).resolve() if place else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    dead = [
        f"{file}#{anchor}"
        for file, anchor in links(page)
        if not file.is_file() or (anchor and anchor not in anchors(text_of(file)))
    ]
    assert not dead


@pytest.mark.parametrize("page", ENGLISH, ids=name)
def test_prose_is_short_and_plain(page: Path) -> None:
    outside = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in outside.splitlines() if len(line) > LONGEST and not line.startswith(NOT_PROSE)]
    prose = re.sub(r"\]\([^)]*\)", "]", without_code(outside))  # link targets keep their names
    assert not [(word, plain) for word, plain in PLAIN.items() if re.search(word, prose, re.IGNORECASE)]


def test_every_decision_is_listed_and_short() -> None:
    folder = ROOT / "docs" / "decisions"
    notes = {page for page in folder.glob("*.md") if page.name != "README.md"}
    assert notes == {file for file, _ in links(folder / "README.md")}
    assert not [page.name for page in notes if len(text_of(page).splitlines()) > 40]


def test_there_are_chinese_pages() -> None:
    assert {page.name for page in TRANSLATIONS} >= {"README.zh.md", "quickstart.md", "data-formats.md", "evaluation.md"}


@pytest.mark.parametrize(("chinese", "english"), TRANSLATIONS.items(), ids=map(name, TRANSLATIONS))
class TestTranslation:
    def test_has_the_same_structure(self, chinese: Path, english: Path) -> None:
        """Levels of headings, and the number of rows of all tables."""
        ours, theirs = text_of(chinese), text_of(english)
        assert [level for level, _ in headings(ours)] == [level for level, _ in headings(theirs)]
        assert len(re.findall(r"^\|", ours, re.MULTILINE)) == len(re.findall(r"^\|", theirs, re.MULTILINE))

    def test_shows_the_same_commands(self, chinese: Path, english: Path) -> None:
        ours, theirs = (
            [command.partition("  #")[0].strip() for command in COMMANDS.findall(text_of(page))]
            for page in (chinese, english)
        )
        assert ours == theirs

    def test_shows_the_same_blocks(self, chinese: Path, english: Path) -> None:
        """Output and recipes; comments may be translated."""
        ours, theirs = (
            [re.sub(r" *# .*", "", block) for block in BLOCKS.findall(text_of(page))] for page in (chinese, english)
        )
        assert ours == theirs

    def test_names_only_what_the_english_page_names(self, chinese: Path, english: Path) -> None:
        """Keys, options, files and metrics in code spans; a renamed one is renamed on both pages."""
        assert code_spans(text_of(chinese)) <= code_spans(text_of(english))

    def test_both_pages_link_to_each_other(self, chinese: Path, english: Path) -> None:
        assert english in {file for file, _ in links(chinese)}
        assert chinese in {file for file, _ in links(english)}
