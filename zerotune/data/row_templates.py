"""Values made of a row's columns: a column's own, or a text that a template makes of them.

A text with `{{` or `{%` is a Jinja template over the row's columns; any other names a column, `answers.text` one inside
another. Templates run in Jinja's sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zerotune.common.suggest import did_you_mean
from zerotune.data.fields import RowError

ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)  # takes off one line break at the end

Cell = Callable[[Mapping[str, Any]], Any]  # the value of one text in one row


def cell(text: str, name: str) -> Cell:
    """The column or template that `text` is; name: what its messages begin with.

    Raises TemplateSyntaxError; the cell raises RowError for a row that lacks what it needs.
    """
    if "{{" in text or "{%" in text:
        return template(text, name)
    return lambda row: _column(row, text, name)


def template(text: str, name: str) -> Cell:
    """The text as a template, even without a mark. Raises as `cell` does."""
    compiled = ENVIRONMENT.from_string(text)
    return lambda row: _evaluated(lambda: compiled.render(**row), row, name)


def condition(text: str, name: str) -> Cell:
    """Whether a Jinja expression over the row's columns holds: is true, or not empty. Raises as `cell` does."""
    compiled = ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    return lambda row: _evaluated(lambda: bool(compiled(**row)), row, name)


def _column(row: Mapping[str, Any], text: str, name: str) -> Any:
    value: Any = row
    for part in text.split("."):
        if not isinstance(value, Mapping) or part not in value:
            columns = ", ".join(map(str, row))
            raise RowError(f"{name}: there is no column {text}{did_you_mean(text, map(str, row))} ({columns})")
        value = value[part]
    if value is None:
        raise RowError(f"{name}: column {text} is null")
    return value


def _evaluated(evaluate: Callable[[], Any], row: Mapping[str, Any], name: str) -> Any:
    try:
        return evaluate()
    except TemplateError as error:
        raise RowError(f"{name}: {error.message} (columns: {', '.join(map(str, row))})") from error
    except Exception as error:  # a template is a program, and may fail in any way
        raise RowError(f"{name}: {type(error).__name__}: {error}") from error
