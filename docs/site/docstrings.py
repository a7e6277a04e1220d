"""The house's docstrings as Sphinx reads them: prose with `code`, and `name: what it is.` for parameters and fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

CODE = re.compile(r"(`[^`]*`)")


def known_names(documented: Any) -> dict[str, str]:
    """Names that a docstring may explain -> Sphinx's word for what they are."""
    annotated = {
        name: "ivar" for part in getattr(documented, "__mro__", ()) for name in vars(part).get("__annotations__", ())
    }
    try:
        parameters = inspect.signature(documented).parameters
    except (TypeError, ValueError):
        return annotated
    return annotated | dict.fromkeys(parameters, "param")


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that are not blank; `Args:` begins its own."""
    found: list[str] = []
    for line in [*lines, ""]:
        if line.strip() and line.strip() != "Args:":
            found.append(line)
        elif found:
            yield found
            found = []


def escaped(text: str) -> str:
    """Text in which only backquotes mean something."""
    parts = CODE.split(text)
    return "".join(p if p.startswith("`") else re.sub(r"([*|\\]|_\b|:(?=\S))", r"\\\1", p) for p in parts)


def as_fields(paragraph: list[str], kinds: dict[str, str]) -> list[str]:
    """A paragraph that explains names, as a field of each; any other as it is."""
    names = "|".join(map(re.escape, kinds)) or "(?!)"
    beginning = re.compile(rf"(?:^|(?<=[.;)] ))((?:{names})(?:(?:, | and )(?:{names}))*): ")
    text = " ".join(line.strip() for line in paragraph)
    if not beginning.match(text):
        return [escaped(line) for line in paragraph]
    _, *parts = beginning.split(text)
    fields = []
    for explained, meaning in zip(parts[::2], parts[1::2], strict=True):
        for name in re.split(", | and ", explained):
            fields.append(f":{kinds[name]} {name}: {escaped(meaning.strip())}")
    return fields


def rewrite(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """For the event autodoc-process-docstring."""
    kinds = known_names(documented)
    lines[:] = [line for paragraph in paragraphs(lines) for line in (*as_fields(paragraph, kinds), "")]


def readable(
    app: Any, what: str, name: str, documented: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """For the event autodoc-process-signature: defaults as one would write them."""
    if signature == "(*args, **kwargs)":  # of a protocol, which nobody calls
        return "", returns
    shown = re.sub(r"<class '([\w.]+)'>", r"\1", signature or "")
    shown = re.sub(r"<(?:factory|function [\w.<>]+)>", "...", shown)
    return shown or signature, returns
