"""Determines from the source of a model's forward whether it returns its output layer's logits unchanged.

Some families scale or cap the logits after the layer (Gemma 2, Cohere, Granite, ...). No common attribute shows this,
so the source is analysed, and logits that are not provably unchanged count as changed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

KEEPS_VALUES = {"float", "contiguous"}
_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def gives_logits_unchanged(model: nn.Module, head: nn.Module) -> bool:
    """True if `model.forward` provably returns the outputs of `head`, except for a cast to float32.

    Args:
        model: A transformers model without wrappers and adapters around it.
        head: Its output layer, or the copy of it that an adapter trains.
    """
    known = _KNOWN.get(head)
    if known is None:
        known = _KNOWN[head] = _proven(model, head)
    return known


def _proven(model: nn.Module, head: nn.Module) -> bool:
    heads = {f"self.{name}" for name, child in model.named_children() if child is head or _is_copy(child, head)}
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(model).forward)))
    except (OSError, TypeError):
        return False
    function = ast.parse(source).body[0]
    parents = {child: parent for parent in ast.walk(function) for child in ast.iter_child_nodes(parent)}
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and ast.unparse(node.func) in heads]
    if len(calls) != 1:
        return False
    assignment = parents[_cast(calls[0], parents)]
    target = assignment.targets[0] if isinstance(assignment, ast.Assign) else None
    if not isinstance(target, ast.Name):
        return False
    uses = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == target.id]
    never = {"labels is not None"} | _unset(getattr(model, "config", None))
    return all(use is target or _hands_on(use, parents) or _inside(use, never, parents) for use in uses)


def _is_copy(wrapper: nn.Module, head: nn.Module) -> bool:
    copies = getattr(wrapper, "modules_to_save", None)
    return isinstance(copies, nn.ModuleDict) and head in set(copies.values())


def _unset(config: Any) -> set[str]:
    """Conditions that are false because the configuration value is None."""
    values = config.to_dict() if config is not None else {}
    return {f"self.config.{key} is not None" for key, value in values.items() if value is None}


def _cast(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """The outermost of `node`, `node.float()`, `node.float().contiguous()`, ..."""
    while isinstance(method := parents[node], ast.Attribute) and method.attr in KEEPS_VALUES:
        node = parents[method]
    return node


def _hands_on(use: ast.Name, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether this mention only passes the logits on, or casts them in place (`logits = logits.float()`)."""
    parent = parents[_cast(use, parents)]
    if isinstance(parent, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id == use.id for t in parent.targets) and _is_cast(
            parent.value, use.id
        )
    return isinstance(parent, ast.Tuple) or (isinstance(parent, ast.keyword) and parent.arg == "logits")


def _is_cast(value: ast.expr, name: str) -> bool:
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in KEEPS_VALUES:
        value = value.func.value
    return isinstance(value, ast.Name) and value.id == name


def _inside(node: ast.AST, conditions: set[str], parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether the node runs only under one of `conditions`, none of which holds when we call the model."""
    while node in parents:
        above = parents[node]
        if isinstance(above, ast.If) and node in above.body and ast.unparse(above.test) in conditions:
            return True
        node = above
    return False
