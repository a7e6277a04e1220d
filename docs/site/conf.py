"""The documentation as a site (`make docs`), built from the pages as they lie in the repository.

The source folder is the repository's root, so that a link means the same here and on GitHub. toc.yml has the order.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]

from docstrings import readable, rewrite  # noqa: E402
from search_terms import search_terms  # noqa: E402

project = "ZeroTune"
author = "the ZeroTune authors"
copyright = author
extensions = ["myst_parser", "sphinx_external_toc", "sphinx.ext.autodoc"]

# Which pages there are: those of toc.yml. Folders without any are not searched: .venv and runs are large.
external_toc_path = "docs/site/toc.yml"
external_toc_exclude_missing = True
WITH_PAGES = {"docs", "benchmarks", "examples"}
exclude_patterns = [entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name not in WITH_PAGES]

# Markdown as GitHub reads it: headings have anchors.
myst_heading_anchors = 4

highlight_language = "text"

# The API reference, from docstrings.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = project
html_static_path = ["static"]
templates_path = ["templates"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_search_language = "en-zh"
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}


class SearchBoth(SearchEnglish):
    """English words by their stem, and Chinese."""

    lang = "en-zh"
    language_name = "English"  # of the stemmer in JavaScript
    js_splitter_code = (Path(__file__).parent / "split_query.js").read_text(encoding="utf-8")

    def split(self, input: str) -> list[str]:
        """The terms of a text."""
        return search_terms(input)


def other_language(page: str, pages: set[str]) -> tuple[str, str] | None:
    """(page, name of its language) of a page's translation; where there is none, of the translated front page."""
    if page.startswith("docs/zh/") or page == "README.zh":
        found = page.replace("docs/zh/", "docs/").replace("README.zh", "README")
        return (found, "English") if found in pages else None
    found = "README.zh" if page == "README" else page.replace("docs/", "docs/zh/")
    return (found if found in pages else "README.zh"), "中文"


def set_language(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Tell the templates the language of a page, and where it is in the other one."""
    if page.startswith("docs/zh/") or page == "README.zh":
        context["language"] = "zh-CN"
    context["other_language"] = other_language(page, set(app.env.found_docs))


def add_front_page(app: Sphinx, error: Exception | None) -> None:
    """A web server shows index.html for a folder."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_search_language(SearchBoth)
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", readable)
    app.connect("html-page-context", set_language)
    app.connect("build-finished", add_front_page)
