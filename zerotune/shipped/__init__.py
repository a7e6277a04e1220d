"""The files that come with the program: recipes, launch configurations, batch scripts and small example data.

In a checkout, the folders beside this file are links to those at the top; an installed package holds copies of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES = (HERE / "recipes").resolve()
ACCELERATE = (HERE / "accelerate_configs").resolve()


def names(folder: Path) -> dict[str, Path]:
    """The YAML files in `folder` and below it, by name: eval/gsm8k is recipes/eval/gsm8k.yaml."""
    found = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.relative_to(folder).parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find(word: str, folder: Path) -> Path | None:
    """The file that `word` means: a file of the user's, else the one in `folder` of that name, or None.

    A name may be written as in the guides, where they show a checkout: recipes/demo.yaml for demo.
    """
    if Path(word).is_file():
        return Path(word)
    return names(folder).get(word.removeprefix(f"{folder.name}/").removesuffix(".yaml"))


def about(recipe: Path) -> str:
    """What a recipe is for: the comment at its top, up to where its first clause of some length ends."""
    comment = re.match(r"(?:#.*\n)*", recipe.read_text(encoding="utf-8"))
    text = re.sub(r"\s*\n# ?", " ", comment[0] if comment else "").removeprefix("# ")
    clause = re.match(r".{20,}?(?=[.:;](?:\s|$))", text)
    return clause[0] if clause else text


def from_here(path: str) -> str:
    """`path`, if it exists from the current folder; else the shipped file or folder of that name, if there is one."""
    shipped = HERE / path
    return str(shipped.resolve()) if not Path(path).exists() and shipped.exists() else path


def with_examples(value: Any, recipe: Path) -> Any:
    """The values of a recipe. Where it is a shipped one, the example data that it names is found from any folder."""
    return _each_example(value) if recipe.resolve().is_relative_to(RECIPES) else value


def _each_example(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _each_example(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each_example(inner) for inner in value]
    return from_here(value) if isinstance(value, str) and value.startswith("examples/") else value
