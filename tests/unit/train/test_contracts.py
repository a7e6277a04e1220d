"""The contracts between objectives, tunings and the rest, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path for room in ("train", "eval", "zerotune") for path in (ROOT / room).rglob("*.py"))
GETTERS = ("extra_metrics", "state", "can_checkpoint", "next_batch_is_slow", "samples")


def state_changes(source: str) -> Iterator[str]:
    """`line: getter` of every property or getter of an objective that assigns to an attribute of its object."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        if "property" not in map(ast.unparse, node.decorator_list) and node.name not in GETTERS:
            continue
        for inner in ast.walk(node):
            is_stored = isinstance(inner, ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store)
            if is_stored and ast.unparse(inner).startswith("self."):
                yield f"{inner.lineno}: {node.name}"


def test_no_getter_changes_state() -> None:
    assert not [f"{path}:{found}" for path in FILES for found in state_changes(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("line", ["found, self._found = self._found, {}", "self.count += 1", "self.count: int = 1"])
def test_a_getter_that_changes_state_is_found(line: str) -> None:
    assert list(state_changes(f"class A:\n    def extra_metrics(self):\n        {line}\n        return {{}}\n"))
