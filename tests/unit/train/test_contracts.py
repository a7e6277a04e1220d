"""The contracts between objectives, tunings and the rest, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

from train.config import Config
from train.objectives import objective_class
from train.registry import OBJECTIVES, TUNINGS, own_keys

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path for room in ("train", "eval", "zerotune") for path in (ROOT / room).rglob("*.py"))
GETTERS = ("extra_metrics", "state", "can_checkpoint", "next_batch_is_slow", "samples")


def comparisons(source: str) -> Iterator[str]:
    """`line: code` of every comparison that asks which tuning or objective it is: a fact of its spec should say so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.Match):
            names = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            asked = ast.unparse(node.left if isinstance(node, ast.Compare) else node.subject)
            if asked.endswith((".kind", ".objective")) and {*names} & {*TUNINGS, *OBJECTIVES}:
                yield f"{node.lineno}: {ast.unparse(node)}"


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


def test_nothing_compares_names_of_tunings_or_objectives() -> None:
    found = {path: list(comparisons(path.read_text(encoding="utf-8"))) for path in FILES}
    assert not {path: lines for path, lines in found.items() if lines and path.parent.name != "tuning"}


@pytest.mark.parametrize(
    "line", ['config.tuning.kind == "full"', 'tuning.kind in ("lora", "prompt")', 'config.objective != "ppo"']
)
def test_comparisons_by_name_are_detected(line: str) -> None:
    assert list(comparisons(f"if {line}:\n    pass\n"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_spec_of_an_objective_names_its_class(name: str) -> None:
    kind = objective_class(name)
    assert OBJECTIVES[name].metrics
    assert kind.peft_task_type in ("CAUSAL_LM", "TOKEN_CLS", "SEQ_CLS", "FEATURE_EXTRACTION")


@pytest.mark.parametrize("name", TUNINGS)
def test_spec_of_a_tuning_names_its_classes(name: str) -> None:
    spec = TUNINGS[name]
    assert all(hasattr(resolve_name(spec.place), method) for method in ("load_options", "apply", "save"))
    assert all(hasattr(resolve_name(spec.merger), method) for method in ("is_tied", "tensor"))


def test_the_keys_of_objectives_are_keys_of_the_recipe() -> None:
    for key in own_keys():
        value: object = Config()
        for part in key.split("."):
            value = getattr(value, part)


def test_no_getter_changes_state() -> None:
    assert not [f"{path}:{found}" for path in FILES for found in state_changes(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("line", ["found, self._found = self._found, {}", "self.count += 1", "self.count: int = 1"])
def test_state_changes_in_getters_are_detected(line: str) -> None:
    assert list(state_changes(f"class A:\n    def extra_metrics(self):\n        {line}\n        return {{}}\n"))
